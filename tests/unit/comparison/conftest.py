"""Real evaluation and training artifacts with invented numbers."""

import importlib.util
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from progrpo.comparison.compare import compare
from progrpo.config import CompareConfig
from progrpo.evaluation.resampling import Bootstrap
from progrpo.evaluation.samples import SCHEMA
from progrpo.evaluation.summary import summarise
from progrpo.evaluation.table import build_table
from progrpo.manifest import write_manifest

ALGORITHMS = {
    "grpo": {"type": "grpo"},
    "progrpo": {"type": "progrpo", "alpha": 0.3, "tail_frac": 0.2, "prompt_confidence": "low_prob", "apply_to": "all"},
    "progrpo-gated": {
        "type": "progrpo", "alpha": 0.3, "tail_frac": 0.2, "prompt_confidence": "low_prob", "apply_to": "correct",
    },
}  # fmt: skip
TRAIN = {"steps": 100, "group_size": 16, "learning_rate": 1e-6, "loss": {"clip_low": 0.2, "kl_beta": 0.0}}
EDGES = [0, 1, 2, 4, 8, 16, 32, 64]
VERSIONS = {"progrpo": "0.1.0", "torch": "2.13.0", "commit": "0123abc"}


@pytest.fixture(scope="session")
def chromium(require_all):
    # Tests are no package under --import-mode=importlib, hence loaded by path.
    spec = importlib.util.spec_from_file_location("progrpo_tests_chromium", Path(__file__).parents[2] / "chromium.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    found = module.find_chromium()
    if found is None:
        reason = "chromium is not installed (apt-get install chromium)"
        pytest.fail(reason) if require_all else pytest.skip(reason)
    return found


@pytest.fixture(scope="session")
def write_evaluation():
    return _write_evaluation


@pytest.fixture(scope="session")
def write_training():
    return _write_training


@pytest.fixture(scope="session")
def write_experiment():
    return _write_experiment


@pytest.fixture(scope="session")
def report_directory(tmp_path_factory) -> Path:
    """A comparison of start and three arms, two seeds each, small enough for many tests."""
    root = tmp_path_factory.mktemp("experiment")
    evaluations, trainings = _write_experiment(root, num_problems=24, num_samples=8)
    config = CompareConfig(num_resamples=200)
    compare(config, evaluations=evaluations, trainings=trainings, output=root / "comparison")
    return root / "comparison"


def _write_evaluation(
    directory: Path,
    arm: str = "grpo",
    seed: int | None = 0,
    *,
    correct,
    answers=None,
    completions=None,
    num_tokens=10,
    entropy=0.5,
    nll=0.4,
    truncated=False,
    confidence=0.5,
    problem_ids=None,
    prompts=None,
    protocol=None,
    **summary,
) -> Path:
    """Write one evaluation artifact.

    Args:
        correct: [P, n] bool; num_tokens, entropy and nll (nats a token), truncated and answers broadcast to it.
        protocol: keys that differ from the default protocol.
        summary: keys of evaluation.json that differ.
    """
    correct = np.asarray(correct, dtype=bool)
    num_problems, num_samples = correct.shape
    ids = problem_ids or [f"p{i:04d}" for i in range(num_problems)]
    tokens = np.broadcast_to(num_tokens, correct.shape)
    if answers is None:
        answers = np.where(correct, "right", None)
    answers = np.broadcast_to(np.asarray(answers, dtype=object), correct.shape)
    if completions is None:
        completions = np.where(correct, "so it is right", "so it is wrong")
    entropy_per_token = np.broadcast_to(np.asarray(entropy, float), correct.shape).ravel()
    columns = {
        "problem_id": np.repeat(ids, num_samples).tolist(),
        "sample_index": np.tile(np.arange(num_samples), num_problems).tolist(),
        "completion": np.broadcast_to(np.asarray(completions, dtype=object), correct.shape).ravel().tolist(),
        "answer": answers.ravel().tolist(),
        "correct": correct.ravel().tolist(),
        "scored": [True] * correct.size,
        "num_tokens": tokens.ravel().tolist(),
        "finish_reason": np.where(np.broadcast_to(truncated, correct.shape), "length", "stop").ravel().tolist(),
        "logprob_sum": (-np.asarray(nll) * tokens).ravel().tolist(),
        "entropy_sum": (entropy_per_token * tokens.ravel()).tolist(),
        "answer_confidence": np.broadcast_to(confidence, correct.shape).ravel().tolist(),
        "position_entropy": [
            [rate * min(count - low, high - low) for low, high in itertools.pairwise(EDGES) if low < count]
            for rate, count in zip(entropy_per_token, tokens.ravel().tolist(), strict=True)
        ],
        "solution_path": ["a"] * correct.size,
    }
    table = pa.table(columns, SCHEMA)
    problems = pa.table(
        {
            "problem_id": ids,
            "prompt": [[{"role": "user", "content": prompt}] for prompt in (prompts or [f"Solve {i}." for i in ids])],
            "difficulty": pa.nulls(num_problems, pa.float64()),
            "self_bleu": pa.nulls(num_problems, pa.float32()),
            "distinct_ngram_frac": pa.nulls(num_problems, pa.float32()),
        }
    )
    ks = sorted({1 << i for i in range(num_samples.bit_length()) if 1 << i <= num_samples} | {num_samples})
    directory.mkdir(parents=True)
    pq.write_table(table, directory / "samples.parquet")
    pq.write_table(problems, directory / "problems.parquet")
    content = {
        "schema_version": 2,
        "arm": arm,
        "algorithm": None if arm == "start" else ALGORITHMS.get(arm, {"type": "grpo"}),
        "seed": seed,
        "num_problems": num_problems,
        "num_samples": num_samples,
        "ks": ks,
        "position_edges": EDGES,
        **summarise(build_table(problems, table, EDGES), ks, Bootstrap(num_resamples=20, level=0.95, seed=0)),
        "protocol": {
            "temperature": 0.6, "top_p": 0.95, "max_completion_tokens": 64, "num_samples": num_samples, "seed": 0,
            "chat_template_digest": "c" * 64, "verifier": {"countdown": "1"}, "dataset_digest": "d" * 64,
            "max_problems": None,
        }
        | (protocol or {}),
        "checkpoint_digest": "e" * 64,
        "eval_wall_time_s": 30.0,
        "train_wall_time_s": None if arm == "start" else 600.0,
        "hardware": "2 cores",
        "versions": VERSIONS,
    } | summary  # fmt: skip
    (directory / "evaluation.json").write_text(json.dumps(content))
    config = {
        "arm": arm,
        "seed": seed,
        "evaluation": {"num_samples": num_samples, "temperature": 0.6, "dtype": "float32"},
    }
    write_manifest(directory, "evaluation", config=config)
    return directory


def _write_training(
    directory: Path, arm: str = "grpo", seed: int = 0, *, rows, train=None, inputs=None, hardware="1 GPU"
) -> Path:
    directory.mkdir(parents=True)
    lines = [json.dumps({"step": step, **row}) for step, row in enumerate(rows, start=1)]
    (directory / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    metadata = {"train_wall_time_s": 600.0, "hardware": hardware, "versions": VERSIONS | {"trl": "1.16.0"}}
    config = {"arm": {"name": arm, "algorithm": ALGORITHMS[arm]}, "seed": seed, "train": TRAIN | (train or {})}
    write_manifest(directory, "training", inputs=inputs, config=config, metadata=metadata)
    return directory


def _write_experiment(root: Path, *, num_problems: int, num_samples: int, steps: int = 100):
    """Write start and three arms with two seeds each; GRPO sharpens, ProGRPO keeps more of the tail."""
    rng = np.random.default_rng(0)
    difficulty = rng.beta(0.7, 1.6, size=num_problems)
    prompts = [f"Using 3, {i % 9 + 1} and 7, reach {i + 11}. Each number once." for i in range(num_problems)]
    strength = {"start": (0.55, 0.9), "grpo": (1.15, 0.35), "progrpo": (1.15, 0.6), "progrpo-gated": (1.2, 0.45)}
    evaluations, trainings = [], []
    for arm, (gain, spread) in strength.items():
        for seed in (None,) if arm == "start" else (0, 1):
            rate = np.clip(gain * difficulty ** (1.6 - spread) * rng.normal(1, 0.03), 0.0, 0.97)
            correct = rng.random((num_problems, num_samples)) < rate[:, None]
            variants = rng.integers(1 + int(4 * spread), size=correct.shape)
            answers = np.where(correct, np.char.add("3*7-", variants.astype(str)), None)
            evaluations.append(
                _write_evaluation(
                    root / f"evaluation-{arm}-{seed}",
                    arm,
                    seed,
                    correct=correct,
                    answers=answers,
                    completions=np.where(
                        correct,
                        "We need the target. First 3 * 7 = 21, then we take away.\n<answer>(3 * 7) - 4</answer>",
                        "Let me try 3 + 7 = 10, then 10 * 4 = 40. That is too much.\n<answer>40</answer>",
                    ),
                    num_tokens=rng.integers(12, 60, size=correct.shape),
                    entropy=spread * rng.uniform(0.4, 1.0, size=correct.shape),
                    nll=spread * rng.uniform(0.35, 0.9, size=correct.shape),
                    truncated=rng.random(correct.shape) < 0.03,
                    prompts=prompts,
                    eval_wall_time_s=40 + 5 * rng.random(),
                    confidence=np.clip(rng.uniform(0.1, 0.7, correct.shape) + 0.25 * correct, 0, 1),
                )
            )
            if seed is not None:
                trainings.append(
                    _write_training(
                        root / f"training-{arm}-{seed}", arm, seed, rows=_rows(rng, steps, gain, spread, arm)
                    )
                )
    return evaluations, trainings


def _rows(rng, steps, gain, spread, arm):
    t = np.arange(steps) / steps
    rows = {
        "train/reward": 0.3 + 0.4 * gain * (1 - np.exp(-3 * t)) + rng.normal(0, 0.04, steps),
        "train/entropy": spread + (0.9 - spread) * np.exp(-4 * t) + rng.normal(0, 0.03, steps),
        "train/completion_tokens": 35 + 4 * t + rng.normal(0, 1.5, steps),
        "train/grad_norm": 0.4 + 0.1 * rng.random(steps),
    }
    if arm != "grpo":
        rows["train/arm/prompt_confidence"] = 0.6 + 0.2 * t + rng.normal(0, 0.01, steps)
        rows["train/arm/answer_confidence"] = 0.5 + 0.3 * t + rng.normal(0, 0.01, steps)
    return [{name: float(values[i]) for name, values in rows.items()} for i in range(steps)]
