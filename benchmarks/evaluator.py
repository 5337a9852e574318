"""Measure the evaluator: what it adds to the bare engine, what the entropy pass costs, how fast the statistics are.

    python benchmarks/evaluator.py overhead [--problems 64] [--samples 32] [--rounds 15] [--hidden 0]
    python benchmarks/evaluator.py metrics [--problems 10000] [--samples 64] [--resamples 10000]
    python benchmarks/evaluator.py coverage [--datasets 4000]

``overhead`` runs the same prompts with the same n three ways in turn: the bare engine, the engine with entropies, and
the evaluator, on one torch thread (it verifies one shard while it draws the next). Of each way the least of the rounds
counts; what is printed are fractions of the bare engine's time. Machines whose speed drifts blur the difference of two
such times, so the evaluator's own work (decode, verify, measure, write) is timed by itself, too: ``judge_frac`` is its
CPU time over the engine's: what it would add, but for waiting for the disk, if none of it ran beside the engine.
``--hidden`` takes a random Llama of that width, with a vocabulary of 32,000, instead of the embedded checkpoint.
``metrics`` times everything from the files on, in a process of its own, with its peak memory. ``coverage`` prints the
table of docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("OMP_NUM_THREADS", "1")


def overhead(options: argparse.Namespace) -> dict[str, Any]:
    """Time the bare engine, the engine with scores, and the evaluator on the same completions."""
    import torch

    from progrpo.checkpoints.importer import import_checkpoint
    from progrpo.checkpoints.loading import load_tokenizer, render_prompts
    from progrpo.config import CheckpointConfig, CountdownSource, DatasetConfig, EvaluateConfig
    from progrpo.data.dataset import load_problems
    from progrpo.data.prepare import prepare_dataset
    from progrpo.evaluation.loading import load_engine
    from progrpo.evaluation.sampling import Sampler, problem_key, sample_ranges, sampling_settings
    from progrpo.evaluation.shards import Shards

    torch.set_num_threads(1)
    n = options.samples
    config = EvaluateConfig(
        num_samples=n, temperature=1.0, top_p=1.0, max_completion_tokens=options.tokens, batch_size=n * options.shard
    )
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        import_checkpoint(CheckpointConfig(uri="embedded://countdown-sft"), root / "checkpoint")
        source = CountdownSource(num_train=8, num_eval=options.problems, seed=0)
        prepare_dataset(DatasetConfig(source=source), root / "dataset")
        problems = load_problems(root / "dataset", "eval")
        tokenizer = load_tokenizer(root / "checkpoint")
        prompts = render_prompts(tokenizer, problems)
        engine, model = load_engine(config, root / "checkpoint", tokenizer, torch.device("cpu"))
        if options.hidden:
            engine, model = _random_llama(options.hidden, config, tokenizer.eos_token_id)
        sampler = Sampler(config, engine, model, tokenizer)
        shards = Shards(root / "shards", len(problems), n)
        shards.open({})
        with_scores = sampling_settings(config)
        plain = replace(with_scores, score_temperature=None)

        ranges = shards.missing(config.batch_size)

        def draw(first: int, last: int, settings: Any) -> list[Any]:
            rows = [prompts[p] for p in range(first, last) for _ in range(n)]
            keys = [(problem_key(problems[p]), i) for p in range(first, last) for i in range(n)]
            return engine.complete(rows, keys, settings, config.seed)

        def bare() -> int:
            return sum(len(completion.token_ids) for r in ranges for completion in draw(*r, plain))

        def scored() -> None:
            for r in ranges:
                draw(*r, with_scores)

        def whole() -> None:
            sample_ranges(sampler, shards, ranges, problems, prompts)

        ways, tokens = {"bare": bare, "scored": scored, "whole": whole}, bare()  # and a warm-up
        # The least of several rounds: what is left of other processes' noise is small.
        least = dict.fromkeys(ways, float("inf"))
        least_cpu = dict(least)
        for round_number in range(options.rounds):
            for name in list(ways)[:: 1 if round_number % 2 == 0 else -1]:
                started, cpu = time.perf_counter(), time.process_time()
                ways[name]()
                least_cpu[name] = min(least_cpu[name], time.process_time() - cpu)
                least[name] = min(least[name], time.perf_counter() - started)
        drawn = [sampler.draw(problems[first:last], prompts[first:last]) for first, last in ranges]

        def judged() -> None:
            for (first, last), of_range in zip(ranges, drawn, strict=True):
                shards.write(first, *sampler.judge(problems[first:last], *of_range))

        judge_s = float("inf")
        for _ in range(options.rounds):
            cpu = time.thread_time()
            judged()
            judge_s = min(judge_s, time.thread_time() - cpu)
        last = ranges[-1]
        memory = _peak_of_scoring(model, [prompts[p] for p in range(*last) for _ in range(n)], draw(*last, plain))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "completions": len(problems) * n,
        "tokens": tokens,
        **_fractions("wall", least),
        **_fractions("cpu", least_cpu),
        "judge_cpu_s": round(judge_s, 3),
        "judge_frac": round(judge_s / least_cpu["bare"], 3),
        **memory,
    }


def _fractions(clock: str, seconds: dict[str, float]) -> dict[str, float]:
    """What entropy and all the rest add to the bare engine; CPU time counts what ran beside it on another core, too."""
    bare = seconds["bare"]
    return {
        f"bare_{clock}_s": round(bare, 2),
        f"entropy_{clock}_frac": round(seconds["scored"] / bare - 1, 3),
        f"rest_{clock}_frac": round((seconds["whole"] - seconds["scored"]) / bare, 3),
    }


def _random_llama(hidden: int, config: Any, eos: int) -> tuple[Any, Any]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from progrpo.generation.transformers_engine import TransformersEngine

    torch.manual_seed(0)
    architecture = LlamaConfig(
        vocab_size=32_000, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=6,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64, eos_token_id=eos, initializer_range=0.05,
    )  # fmt: skip
    model = LlamaForCausalLM(architecture).eval()
    engine = TransformersEngine(model, eos_token_ids=[eos], pad_token_id=eos, batch_size=config.batch_size)
    return engine, model


def _peak_of_scoring(model: Any, prompts: list[Any], completions: list[Any]) -> dict[str, Any]:
    """Largest tensor that scoring makes, against logits [B, T, V] of the same batch."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from progrpo.generation.scoring import score_completions

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if hasattr(result, "numel"):
                Largest.elements = max(Largest.elements, result.numel())
            return result

    with Largest():
        score_completions(model, prompts, [c.token_ids for c in completions])
    longest = max(len(c.token_ids) for c in completions)
    return {
        "largest_tensor": Largest.elements,
        "logits_would_be": len(completions) * longest * model.config.vocab_size,
    }


def metrics(options: argparse.Namespace) -> dict[str, Any]:
    """Time table and statistics of a made-up evaluation, read from disk as compare does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from progrpo.evaluation.resampling import Bootstrap
    from progrpo.evaluation.samples import SCHEMA, position_edges
    from progrpo.evaluation.summary import summarise
    from progrpo.evaluation.table import read_table

    num_problems, n = options.problems, options.samples
    with tempfile.TemporaryDirectory() as scratch:
        root, child = Path(scratch), os.fork()
        if child == 0:  # what makes the files must not count as memory of what reads them
            _write_evaluation(root, num_problems, n, pa, pq, SCHEMA, position_edges(8192))
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit("the evaluation could not be made up")
        started, cpu = time.monotonic(), time.process_time()
        table = read_table(root)
        read_s = time.process_time() - cpu
        ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= n]
        bootstrap = Bootstrap(num_resamples=options.resamples, level=0.95, seed=0)
        number = len(summarise(table, ks, bootstrap)["metrics"])
        return {
            "problems": num_problems,
            "samples": n,
            "resamples": options.resamples,
            "metrics": number,
            "read_cpu_s": round(read_s, 1),
            "cpu_s": round(time.process_time() - cpu, 1),
            "wall_s": round(time.monotonic() - started, 1),
            "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        }


def _write_evaluation(root: Path, num_problems: int, n: int, pa: Any, pq: Any, schema: Any, edges: list[int]) -> None:
    rng = np.random.default_rng(0)
    ids = [f"problem-{p:06d}" for p in range(num_problems)]
    none = pa.nulls(num_problems, pa.float64())
    columns = {"problem_id": ids, "difficulty": rng.random(num_problems), "self_bleu": rng.random(num_problems)}
    pq.write_table(pa.table({**columns, "distinct_ngram_frac": none}), root / "problems.parquet")
    (root / "evaluation.json").write_text(json.dumps({"position_edges": edges}))
    with pq.ParquetWriter(root / "samples.parquet", schema) as writer:
        for start in range(0, num_problems, 100):
            rates = rng.beta(0.5, 0.8, 100)
            correct = rng.random((100, n)) < rates[:, None]
            wrong_answer = rng.geometric(0.2, (100, n))
            tokens = np.clip(rng.lognormal(6, 1, (100, n)), 1, 8192).astype(int)
            rows = []
            for p in range(100):
                for i in range(n):
                    length, right = int(tokens[p, i]), bool(correct[p, i])
                    reached = int(np.searchsorted(edges, length))
                    rows.append(
                        {
                            "problem_id": ids[start + p], "sample_index": i, "completion": "x" * 200,
                            "answer": "right" if right else f"wrong {wrong_answer[p, i]}",
                            "correct": right, "scored": True, "num_tokens": length,
                            "finish_reason": "length" if length == 8192 else "stop", "logprob_sum": -0.3 * length,
                            "entropy_sum": 0.3 * length, "answer_confidence": float(rng.random()),
                            "position_entropy": [0.3] * reached, "solution_path": f"{wrong_answer[p, i]:016d}",
                        }
                    )  # fmt: skip
            writer.write_table(pa.Table.from_pylist(rows, schema))


POPULATIONS: dict[str, list[tuple[float, tuple[float, float] | float]]] = {
    "Beta(1, 1)": [(1.0, (1, 1))],
    "Beta(5, 5)": [(1.0, (5, 5))],
    "Beta(0.2, 0.2)": [(1.0, (0.2, 0.2))],
    "all 0.5": [(1.0, 0.5)],
    "Beta(1, 3)": [(1.0, (1, 3))],
    "Beta(0.5, 10)": [(1.0, (0.5, 10))],
    "Beta(0.1, 10)": [(1.0, (0.1, 10))],
    "60 % never, 30 % always, Beta(2, 2)": [(0.6, 0.0), (0.3, 1.0), (0.1, (2, 2))],
    "5 % always, else Beta(1, 20)": [(0.05, 1.0), (0.95, (1, 20))],
    "3 % never, else Beta(20, 1)": [(0.03, 0.0), (0.97, (20, 1))],
    "10 % always, else never": [(0.1, 1.0), (0.9, 0.0)],
    "1 % always, else never": [(0.01, 1.0), (0.99, 0.0)],
}


def coverage(options: argparse.Namespace) -> dict[str, Any]:
    """Coverage of the 95 % intervals of Pass@1, and of the percentile bootstrap beside it."""
    from progrpo.evaluation.resampling import Term, bootstrap_terms

    rng, rows = np.random.default_rng(0), {}
    for name, parts in POPULATIONS.items():
        truth = sum(weight * (of[0] / sum(of) if isinstance(of, tuple) else of) for weight, of in parts)
        row = {"truth": round(float(truth), 3)}
        for num_problems, n in ((10, 4), (10, 32), (30, 32), (100, 4), (100, 32)):
            size = (num_problems, options.datasets)
            kind = rng.choice(len(parts), p=[weight for weight, _ in parts], size=size)
            draws = [rng.beta(*of, size=size) if isinstance(of, tuple) else np.full(size, of) for _, of in parts]
            values = rng.binomial(n, np.choose(kind, draws)) / n
            curve = bootstrap_terms([Term(1.0, values[None], None)], (0.0, 1.0), num_resamples=1000)
            held = (curve.low <= truth + 1e-12) & (truth - 1e-12 <= curve.high)
            weights = rng.multinomial(num_problems, np.full(num_problems, 1 / num_problems), size=1000)
            low, high = np.quantile(weights @ values / num_problems, [0.025, 0.975], axis=0)
            percentile = (low <= truth) & (truth <= high)
            row[f"P={num_problems} n={n}"] = f"{100 * held.mean():.1f} ({100 * percentile.mean():.1f})"
        rows[name] = row
        print(name, row, file=sys.stderr)
    return rows


def main() -> None:
    """Run one of the three and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("overhead")
    one.set_defaults(run=overhead)
    for name, default in (
        ("problems", 64),
        ("samples", 32),
        ("rounds", 15),
        ("hidden", 0),
        ("tokens", 16),
        ("shard", 8),
    ):
        one.add_argument(f"--{name}", type=int, default=default)
    two = commands.add_parser("metrics")
    two.set_defaults(run=metrics)
    for name, default in (("problems", 10_000), ("samples", 64), ("resamples", 10_000)):
        two.add_argument(f"--{name}", type=int, default=default)
    three = commands.add_parser("coverage")
    three.set_defaults(run=coverage)
    three.add_argument("--datasets", type=int, default=4000)
    options = parser.parse_args()
    print(json.dumps(options.run(options), indent=2))


if __name__ == "__main__":
    main()
