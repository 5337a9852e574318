"""The evaluate step: a checkpoint and held-out problems in, completions and metrics with intervals out."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progrpo.checkpoints.loading import check_room, context_length, load_tokenizer, render_prompts
from progrpo.checkpoints.preflight import chat_template_digest
from progrpo.config import START, Arm, EvaluateConfig
from progrpo.data.dataset import Problem, load_problems
from progrpo.environment import describe_hardware, library_versions, resolve_device
from progrpo.errors import ConfigError, DataError
from progrpo.evaluation.loading import load_engine
from progrpo.evaluation.summary import BOOTSTRAP, Sample, Tally
from progrpo.generation.engine import Engine, SamplingSettings
from progrpo.manifest import MANIFEST_NAME, Manifest, read_manifest, write_atomic, write_manifest
from progrpo.metrics import Progress
from progrpo.rewards import VERIFIER_VERSIONS, verify_batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def evaluate(
    config: EvaluateConfig,
    *,
    dataset: Path,
    checkpoint: Path,
    output: Path,
    arm: Arm | None = None,
    seed: int | None = None,
    training: Path | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Measure a checkpoint on the held-out problems.

    Writes ``problems.parquet`` (problem_id, prompt), ``samples.parquet`` (one row a completion, see
    :class:`progrpo.evaluation.summary.Sample`), ``evaluation.json`` and, last, the
    manifest. Equal inputs, configuration and machine give equal completions and metrics; only wall times differ.

    Args:
        config: n, k, sampling settings, device.
        dataset: a dataset artifact; its ``eval`` split is used.
        checkpoint: a checkpoint artifact.
        output: directory of the evaluation, made if absent.
        arm: what trained the checkpoint; None: nothing did, it is the ``start`` of a comparison.
        seed: the training seed of a trained arm.
        training: the training run directory behind the checkpoint, for its wall time.
        progress: told after each batch, with Pass@1 so far.

    Raises:
        ManifestError: an input that is not a finished artifact of its kind.
        ConfigError: settings that do not fit the checkpoint, a trained arm without a seed, no such device.
        DataError: no held-out problems, or a prompt that cannot be rendered or leaves no room for a completion.
        CheckpointError: no chat template, no EOS token, or weights that cannot be loaded.
    """
    started = time.monotonic()
    progress = progress or Progress()
    if (arm is None) != (seed is None):
        raise ConfigError(
            f"arm = {arm.name if arm else None}, seed = {seed}: a trained arm has a seed, 'start' has none."
        )
    dataset_manifest = read_manifest(dataset, "dataset")
    checkpoint_manifest = read_manifest(checkpoint, "checkpoint")
    # Only a number is read of the training run, so its (large) files are not digested again.
    run = read_manifest(training, "training", verify=False) if training else None
    device = resolve_device(config.device)
    problems = load_problems(dataset, "eval")[: config.max_problems]
    if not problems:
        raise DataError(
            f"{dataset / 'eval.parquet'} has no problems: nothing to evaluate. Prepare it with held-out rows."
        )
    tokenizer = load_tokenizer(checkpoint)
    prompts = render_prompts(tokenizer, problems)
    check_room(problems, prompts, config.max_completion_tokens, context_length(checkpoint))

    output.mkdir(parents=True, exist_ok=True)
    (output / MANIFEST_NAME).unlink(missing_ok=True)
    _write_problems(output / "problems.parquet", problems)
    with _cpu_threads(config.num_threads), _memory_errors(config):
        sampler = _Sampler(config, *load_engine(config, checkpoint, tokenizer, device), tokenizer)
        tally, num_unscored = _sample_all(sampler, problems, prompts, output / "samples.parquet", progress)
    if num_unscored:
        logger.warning(
            "%d of %d completions could not be scored (a verifier failed or ran out of time) and count as incorrect",
            num_unscored,
            len(problems) * config.num_samples,
        )
    arm_name = arm.name if arm else START
    result = {
        "schema_version": 1,
        "arm": arm_name,
        "algorithm": arm.algorithm.model_dump(mode="json", exclude_none=True) if arm else None,
        "seed": seed,
        "num_problems": len(problems),
        "num_samples": config.num_samples,
        "ks": config.pass_at_ks,
        "metrics": {name: asdict(interval) for name, interval in tally.metrics(config.pass_at_ks).items()},
        "unscored": num_unscored,
        "bootstrap": BOOTSTRAP,
        "protocol": _protocol(config, problems, tokenizer, dataset_manifest),
        "checkpoint_digest": checkpoint_manifest.digest,
        "eval_wall_time_s": time.monotonic() - started,
        "train_wall_time_s": run.metadata.get("train_wall_time_s") if run else None,
        "hardware": describe_hardware(device),
        "versions": library_versions("torch", "transformers"),
    }
    write_atomic(output / "evaluation.json", json.dumps(result, indent=2))
    return write_manifest(
        output,
        "evaluation",
        inputs={"dataset": dataset_manifest.digest, "checkpoint": checkpoint_manifest.digest},
        config={
            "arm": arm.model_dump(mode="json") if arm else None,
            "seed": seed,
            "evaluation": config.model_dump(mode="json"),
        },
        metadata={"arm": arm_name, "num_problems": len(problems), "unscored": num_unscored},
    )


def _write_problems(path: Path, problems: Sequence[Problem]) -> None:
    """Keep the prompts beside the completions, so that a report needs no other artifact to show both."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"problem_id": [problem.id for problem in problems], "prompt": [list(p.prompt) for p in problems]}
    pq.write_table(pa.table(columns), path)


@dataclass(frozen=True)
class _Sampler:
    """What turns prompts into scored completions."""

    config: EvaluateConfig
    engine: Engine
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def batch(
        self, problems: Sequence[Problem], prompts: Sequence[list[int]], first_sample: int, count: int, seed: int
    ) -> tuple[list[Sample], int]:
        """Sample, score and verify ``count`` completions of each problem; also return how many were not verifiable."""
        from progrpo.generation.scoring import score_completions

        settings = SamplingSettings(self.config.temperature, self.config.top_p, self.config.max_completion_tokens)
        groups = self.engine.sample(prompts, count, settings, seed)
        owners = [p for p, group in enumerate(groups) for _ in group]
        completions = [completion for group in groups for completion in group]
        scores = score_completions(self.model, [prompts[p] for p in owners], [c.token_ids for c in completions])
        texts = [self.tokenizer.decode(c.token_ids, skip_special_tokens=True) for c in completions]
        verdicts = verify_batch([(problems[p].task, problems[p].answer, t) for p, t in zip(owners, texts, strict=True)])
        samples = [
            Sample(
                problem_id=problems[p].id,
                sample_index=first_sample + i % count,
                completion=text,
                answer=verdict.answer,
                correct=verdict.correct,
                num_tokens=len(completion.token_ids),
                logprob_sum=float(score.logprobs.sum(dtype="float64")),
                entropy_sum=float(score.entropies.sum(dtype="float64")),
                finish_reason=completion.finish_reason,
            )
            for i, (p, completion, score, text, verdict) in enumerate(
                zip(owners, completions, scores, texts, verdicts, strict=True)
            )
        ]
        return samples, sum(not verdict.scored for verdict in verdicts)


def _sample_all(
    sampler: _Sampler, problems: Sequence[Problem], prompts: Sequence[list[int]], path: Path, progress: Progress
) -> tuple[Tally, int]:
    """Write every completion to ``path``, a row group a batch, and return their tally and the number not verifiable."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    config = sampler.config
    schema = pa.schema(
        [
            ("problem_id", pa.string()),
            ("sample_index", pa.int32()),
            ("completion", pa.string()),
            ("answer", pa.string()),
            ("correct", pa.bool_()),
            ("num_tokens", pa.int32()),
            ("logprob_sum", pa.float32()),
            ("entropy_sum", pa.float32()),
            ("finish_reason", pa.string()),
        ]
    )
    assert schema.names == [field.name for field in fields(Sample)]
    tally, num_unscored, done = Tally([problem.id for problem in problems], config.num_samples), 0, 0
    with pq.ParquetWriter(path, schema) as writer:
        for first, last, first_sample, count in _batches(len(problems), config.num_samples, config.batch_size):
            # The seed names the batch, so that a batch draws the same whatever came before it.
            seed = np.random.SeedSequence([config.seed, first, first_sample]).generate_state(1)[0]
            samples, unscored = sampler.batch(problems[first:last], prompts[first:last], first_sample, count, int(seed))
            num_unscored += unscored
            for sample in samples:
                tally.add(sample)
            writer.write_table(pa.Table.from_pylist([vars(sample) for sample in samples], schema))
            done += len(samples)
            progress.update(done, len(problems) * config.num_samples, pass_at_1=tally.num_correct / done)
    return tally, num_unscored


def _batches(num_problems: int, num_samples: int, batch_size: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (first problem, last + 1, first sample, number of samples): whole problems, or a part of one."""
    step = max(1, batch_size // num_samples)
    for first in range(0, num_problems, step):
        for first_sample in range(0, num_samples, batch_size):
            yield first, min(first + step, num_problems), first_sample, min(batch_size, num_samples - first_sample)


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


def _protocol(
    config: EvaluateConfig, problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, dataset: Manifest
) -> dict[str, Any]:
    """Return all that must be equal for two evaluations to be comparable."""
    shared = {"temperature", "top_p", "max_completion_tokens", "num_samples", "seed", "max_problems", "dtype"}
    return config.model_dump(mode="json", include=shared) | {
        "chat_template_digest": chat_template_digest(tokenizer),
        "verifier": {task: VERIFIER_VERSIONS[task] for task in sorted({problem.task for problem in problems})},
        "dataset_digest": dataset.digest,
    }
