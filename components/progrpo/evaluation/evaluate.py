"""The evaluate step: a checkpoint and held-out problems in, completions and metrics with intervals out."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from progrpo.checkpoints.loading import check_room, context_length, load_tokenizer, render_prompts
from progrpo.checkpoints.preflight import chat_template_digest
from progrpo.config import START, Arm, EvaluateConfig
from progrpo.data.dataset import Problem, load_problems, problems_table
from progrpo.environment import describe_hardware, library_versions, resolve_device
from progrpo.errors import ConfigError, DataError, ManifestError
from progrpo.evaluation.ability import ABILITY, check_ability, measure_ability
from progrpo.evaluation.protocol import protocol_record
from progrpo.evaluation.samples import SCHEMA, position_edges
from progrpo.evaluation.sampling import sample_here, sample_in_processes
from progrpo.evaluation.shards import DIRECTORY, ProblemStatistics, Shards
from progrpo.evaluation.summary import BOOTSTRAP, summarise
from progrpo.evaluation.table import build_table
from progrpo.manifest import MANIFEST_NAME, Manifest, read_manifest, write_atomic, write_manifest
from progrpo.metrics import Progress
from progrpo.rewards import check_verifiers

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 2
"""Of evaluation.json and the parquet files beside it."""


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

    Writes ``samples.parquet`` (one row a completion, see :data:`progrpo.evaluation.samples.SCHEMA`),
    ``problems.parquet`` (one row a problem), ``evaluation.json``, with ``config.ability`` the directory ``ability``
    (see :func:`progrpo.evaluation.ability.measure_ability`) and, last, the manifest. Equal inputs, configuration
    and machine give equal completions and metrics; only wall times differ. Killed, it goes on from the completions it
    has when it is called again with the same inputs, configuration and output.

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
        ConfigError: settings that do not fit the checkpoint, a trained arm without a seed, no such device, no sandbox
            for problems of code, no lm-eval where general ability is to be measured.
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
    check_verifiers({problem.task for problem in problems})
    tokenizer = load_tokenizer(checkpoint)
    prompts = render_prompts(tokenizer, problems)
    check_room(problems, prompts, config.max_completion_tokens, context_length(checkpoint))

    if config.ability is not None:
        check_ability(config.ability)

    output.mkdir(parents=True, exist_ok=True)
    (output / MANIFEST_NAME).unlink(missing_ok=True)
    _measure_ability(config, checkpoint, checkpoint_manifest.digest, output / ABILITY)
    protocol = protocol_record(
        config,
        problems=problems,
        prompts=prompts,
        dataset_digest=dataset_manifest.digest,
        chat_template_digest=chat_template_digest(tokenizer),
    )
    versions = library_versions("torch", "transformers")
    shards = Shards(output / DIRECTORY, len(problems), config.num_samples)
    shards.open({"protocol": protocol, "checkpoint": checkpoint_manifest.digest, "versions": versions})
    ranges = shards.missing(config.batch_size)
    if resumed := shards.num_done():
        logger.info("going on with %d of %d problems sampled", resumed, len(problems))
    if config.num_processes > 1 and len(ranges) > 1:
        sample_in_processes(config, shards, ranges, checkpoint=checkpoint, dataset=dataset, progress=progress)
    else:
        sample_here(
            config,
            shards,
            ranges,
            checkpoint=checkpoint,
            tokenizer=tokenizer,
            problems=problems,
            prompts=prompts,
            progress=progress,
        )
    _write_problems(output / "problems.parquet", problems, shards.merge(output / "samples.parquet"))
    sampled_s = time.monotonic() - started
    edges = position_edges(config.max_completion_tokens)
    table = build_table(
        pq.read_table(output / "problems.parquet"),
        pq.read_table(output / "samples.parquet", columns=[c for c in SCHEMA.names if c != "completion"]),
        edges,
    )
    num_unscored = int(table.unscored_P.sum())
    if num_unscored:
        logger.warning(
            "%d of %d completions could not be scored (a verifier failed or ran out of time) and count as incorrect",
            num_unscored,
            len(problems) * config.num_samples,
        )
    arm_name = arm.name if arm else START
    result = {
        "schema_version": SCHEMA_VERSION,
        "arm": arm_name,
        "algorithm": arm.algorithm.model_dump(mode="json") if arm else None,
        "seed": seed,
        "num_problems": len(problems),
        "num_samples": config.num_samples,
        "ks": config.pass_at_ks,
        **summarise(table, config.pass_at_ks),
        "position_edges": edges,
        "unscored": num_unscored,
        "resumed_problems": resumed,
        "bootstrap": BOOTSTRAP,
        "protocol": protocol,
        "checkpoint_digest": checkpoint_manifest.digest,
        "sampling_wall_time_s": sampled_s,
        "eval_wall_time_s": time.monotonic() - started,
        "train_wall_time_s": run.metadata.get("train_wall_time_s") if run else None,
        "hardware": describe_hardware(device),
        "versions": versions,
    }
    write_atomic(output / "evaluation.json", json.dumps(result, indent=2))
    manifest = write_manifest(
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
    shards.remove()
    return manifest


def _measure_ability(config: EvaluateConfig, checkpoint: Path, digest: str, output: Path) -> None:
    """Measure general ability where it is asked for, unless an attempt before this one did.

    Before anything is sampled: a data set that is not there is then known at once, and the model that lm-eval loads
    does not have to share a GPU with an engine.
    """
    wanted = None if config.ability is None else config.ability.model_dump(mode="json")
    try:
        done = read_manifest(output, "ability")
    except ManifestError:
        done = None
    if done is not None and (done.config.get("ability"), done.inputs.get("checkpoint")) == (wanted, digest):
        return
    shutil.rmtree(output, ignore_errors=True)
    if config.ability is not None:
        measure_ability(config.ability, checkpoint, output)


def _write_problems(path: Path, problems: Sequence[Problem], statistics: Sequence[ProblemStatistics]) -> None:
    """Keep the problems beside the completions, so that a report needs no other artifact to show both."""
    table = problems_table(problems)
    for name in ("self_bleu", "distinct_ngram_frac"):
        table = table.append_column(name, pa.array([getattr(of, name) for of in statistics], pa.float32()))
    pq.write_table(table, path)
