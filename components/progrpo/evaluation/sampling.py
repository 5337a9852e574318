"""Sample, score and verify the completions of ranges of problems, in this process or in several.

``python -m progrpo.evaluation.sampling JOB.json`` is one of several: it samples its share of the ranges and exits
with 0, or with 2 after an error the user can mend, which it leaves beside the job.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from progrpo.checkpoints.loading import load_tokenizer, render_prompts
from progrpo.config import EvaluateConfig
from progrpo.data.dataset import Problem, load_problems
from progrpo.environment import resolve_device
from progrpo.errors import ConfigError, ProGRPOError, error_named
from progrpo.evaluation.diversity import distinct_ngram_frac, self_bleu, solution_path, words
from progrpo.evaluation.loading import load_engine
from progrpo.evaluation.samples import SCHEMA, position_edges, token_columns
from progrpo.evaluation.shards import ProblemStatistics, Shards
from progrpo.generation.engine import Completion, Engine, SamplingSettings, Scores
from progrpo.metrics import Progress
from progrpo.rewards import verify_batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

POLL_S = 0.2


class Job(BaseModel):
    """What one of several sampling processes needs to know."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    config: EvaluateConfig
    dataset: Path
    checkpoint: Path
    shards: Path
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Sampler:
    """What turns prompts into scored completions."""

    config: EvaluateConfig
    engine: Engine
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def draw(
        self, problems: Sequence[Problem], prompts: Sequence[Sequence[int]]
    ) -> tuple[list[Completion], Sequence[Scores]]:
        """Return the n completions of each problem, problem by problem, and their scores."""
        config, n = self.config, self.config.num_samples
        rows = [prompt for prompt in prompts for _ in range(n)]
        keys = [(problem_key(problem), i) for problem in problems for i in range(n)]
        completions = self.engine.complete(rows, keys, sampling_settings(config), config.seed)
        return completions, self._scores(rows, completions)

    def judge(
        self, problems: Sequence[Problem], completions: Sequence[Completion], scores: Sequence[Scores]
    ) -> tuple[pa.Table, list[ProblemStatistics]]:
        """Verify what was drawn; return rows of ``samples.parquet``, and what is measured on a problem's as a whole."""
        config, n = self.config, self.config.num_samples
        owners = [p for p in range(len(problems)) for _ in range(n)]
        token_ids = list(dict.fromkeys(completion.token_ids for completion in completions))
        decoded = self.tokenizer.batch_decode([list(ids) for ids in token_ids], skip_special_tokens=True)
        text_of = dict(zip(token_ids, decoded, strict=True))
        texts, distinct = [text_of[completion.token_ids] for completion in completions], set(decoded)
        verdicts = verify_batch([(problems[p].task, problems[p].answer, t) for p, t in zip(owners, texts, strict=True)])
        paths = {text: solution_path(text) for text in distinct}
        samples = {
            "problem_id": [problems[p].id for p in owners],
            "sample_index": [i % n for i in range(len(owners))],
            "completion": texts,
            "answer": [verdict.answer for verdict in verdicts],
            "correct": [verdict.correct for verdict in verdicts],
            "scored": [verdict.scored for verdict in verdicts],
            "num_tokens": [len(completion.token_ids) for completion in completions],
            "finish_reason": [completion.finish_reason for completion in completions],
            **token_columns(scores, position_edges(config.max_completion_tokens)),
            "solution_path": [paths[text] for text in texts],
        }
        split = {text: words(text) for text in distinct}
        groups = [[split[text] for text in texts[start : start + n]] for start in range(0, len(texts), n)]
        statistics = [ProblemStatistics(self_bleu(group), distinct_ngram_frac(group)) for group in groups]
        return pa.table(samples, SCHEMA), statistics

    def _scores(self, prompts: Sequence[Sequence[int]], completions: Sequence[Completion]) -> Sequence[Scores]:
        """Take the engine's own scores where it has them, else run the model over the completions once more."""
        known = [completion.scores for completion in completions if completion.scores is not None]
        if len(known) == len(completions):
            return known
        from progrpo.generation.scoring import score_completions

        token_ids = [completion.token_ids for completion in completions]
        return score_completions(self.model, prompts, token_ids, self.config.score_temperature)


def sampling_settings(config: EvaluateConfig) -> SamplingSettings:
    """Return how completions are drawn and scored."""
    return SamplingSettings(
        config.temperature, config.top_p, config.max_completion_tokens, config.top_k, config.score_temperature
    )


def problem_key(problem: Problem) -> int:
    """Return the number that names a problem's random numbers: the same in any selection or order of problems."""
    return int.from_bytes(hashlib.sha256(problem.id.encode()).digest()[:8], "big")


def sample_here(
    config: EvaluateConfig,
    shards: Shards,
    ranges: Sequence[tuple[int, int]],
    *,
    checkpoint: Path,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    prompts: Sequence[Sequence[int]],
    progress: Progress | None = None,
) -> None:
    """Sample the ranges of problems in this process, a shard each.

    Args:
        config: n, sampling settings, device.
        shards: where completions go.
        ranges: (first, last + 1) of the problems of each shard.
        checkpoint: a checkpoint artifact.
        tokenizer: the checkpoint's.
        problems: all P.
        prompts: their token ids.
        progress: told after each shard, with Pass@1 of what this process sampled.

    Raises:
        ConfigError: settings that do not fit the checkpoint or its engine, no memory.
        CheckpointError: no EOS token, or weights that cannot be loaded.
    """
    if not ranges:
        return
    with _cpu_threads(config.num_threads), _memory_errors(config):
        engine, model = load_engine(config, checkpoint, tokenizer, resolve_device(config.device))
        sampler = Sampler(config, engine, model, tokenizer)
        sample_ranges(sampler, shards, ranges, problems, prompts, progress)


def sample_ranges(
    sampler: Sampler,
    shards: Shards,
    ranges: Sequence[tuple[int, int]],
    problems: Sequence[Problem],
    prompts: Sequence[Sequence[int]],
    progress: Progress | None = None,
) -> None:
    """Sample the ranges, a shard each; one is verified and written while the next is drawn.

    Args:
        sampler: of the checkpoint.
        shards: see :func:`sample_here`, as the rest.
        ranges: see there.
        problems: see there.
        prompts: see there.
        progress: see there.
    """
    n, done, correct, sampled = sampler.config.num_samples, shards.num_done(), 0, 0

    def finish(first: int, last: int, completions: Sequence[Completion], scores: Sequence[Scores]) -> None:
        nonlocal done, correct, sampled
        samples, statistics = sampler.judge(problems[first:last], completions, scores)
        shards.write(first, samples, statistics)
        done, sampled = done + last - first, sampled + len(samples)
        correct += samples["correct"].to_pylist().count(True)
        if progress is not None:
            progress.update(done * n, len(problems) * n, pass_at_1=correct / sampled)

    with ThreadPoolExecutor(1) as thread:
        waiting: Future[None] | None = None
        for first, last in ranges:
            completions, scores = sampler.draw(problems[first:last], prompts[first:last])
            if waiting is not None:
                waiting.result()  # one shard behind at most, and its error ends the evaluation
            waiting = thread.submit(finish, first, last, completions, scores)
        if waiting is not None:
            waiting.result()


def sample_in_processes(
    config: EvaluateConfig,
    shards: Shards,
    ranges: Sequence[tuple[int, int]],
    *,
    checkpoint: Path,
    dataset: Path,
    progress: Progress | None = None,
) -> None:
    """Sample the ranges in ``config.num_processes`` processes, each with a model of its own, on a GPU of its own.

    Args:
        config: see :func:`sample_here`, as ``shards`` and ``ranges``, which are dealt out in turn.
        shards: see there.
        ranges: see there.
        checkpoint: a checkpoint artifact.
        dataset: a dataset artifact.
        progress: told how many completions there are.

    Raises:
        ProGRPOError: what a process raised, with its type; the others are ended.
        RuntimeError: a process failed otherwise.
    """
    gpus = _gpus(config)
    with TemporaryDirectory(prefix="progrpo-sampling-") as scratch:
        processes = []
        try:
            for index in range(min(config.num_processes, len(ranges))):
                job = Job(
                    config=config,
                    dataset=dataset.resolve(),
                    checkpoint=checkpoint.resolve(),
                    shards=shards.directory.resolve(),
                    ranges=tuple(ranges[index :: config.num_processes]),
                )
                path = Path(scratch) / f"{index}.json"
                path.write_text(job.model_dump_json(), encoding="utf-8")
                environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} if gpus else {})}
                command = [sys.executable, "-m", "progrpo.evaluation.sampling", os.fspath(path)]
                processes.append((path, subprocess.Popen(command, env=environment)))
            _wait(processes, shards, progress)
        finally:
            for _, process in processes:
                process.terminate()
                process.wait()


def _wait(processes: Sequence[tuple[Path, subprocess.Popen[bytes]]], shards: Shards, progress: Progress | None) -> None:
    done = shards.num_done()
    running = True
    while running:
        running = any(process.poll() is None for _, process in processes)
        for path, process in processes:
            if process.returncode:
                raise _error_of(path, process.returncode)
        now = shards.num_done()
        if progress is not None and now > done:
            progress.update(now * shards.num_samples, shards.num_problems * shards.num_samples)
        done = now
        if running:
            time.sleep(POLL_S)


def _error_of(job: Path, code: int) -> Exception:
    """Return what a process left beside its job."""
    path = job.with_suffix(".error")
    if not path.is_file():
        return RuntimeError(f"a sampling process ended with {code}; its output is above.")
    name, message = json.loads(path.read_text(encoding="utf-8"))
    return error_named(name, message) or RuntimeError(f"{name}: {message}")


def _gpus(config: EvaluateConfig) -> list[str]:
    """Return the GPUs this process sees, as CUDA_VISIBLE_DEVICES names them; none on a CPU.

    Raises:
        ConfigError: more processes than GPUs.
    """
    import torch

    if resolve_device(config.device).type == "cpu":
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]
    if config.num_processes > len(gpus):
        raise ConfigError(
            f"evaluation.num_processes = {config.num_processes}, but there are {len(gpus)} GPUs, and each process "
            f"needs one of its own. Lower it, or give the step more GPUs."
        )
    return gpus


@contextmanager
def _cpu_threads(num_threads: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _memory_errors(config: EvaluateConfig) -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"out of GPU memory with batch_size = {config.batch_size} and max_completion_tokens = "
            f"{config.max_completion_tokens}: lower either, or take a larger GPU. {error}"
        ) from error


def main(arguments: Sequence[str]) -> int:
    """Run one sampling process and return its exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    path = Path(arguments[0])
    job = Job.model_validate_json(path.read_bytes())
    try:
        problems = load_problems(job.dataset, "eval")[: job.config.max_problems]
        tokenizer = load_tokenizer(job.checkpoint)
        sample_here(
            job.config,
            Shards(job.shards, len(problems), job.config.num_samples),
            job.ranges,
            checkpoint=job.checkpoint,
            tokenizer=tokenizer,
            problems=problems,
            prompts=render_prompts(tokenizer, problems),
        )
    except ProGRPOError as error:
        path.with_suffix(".error").write_text(json.dumps([type(error).__name__, str(error)]), encoding="utf-8")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
