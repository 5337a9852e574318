"""One step from a configuration file, without Kubeflow: what ``progrpo step`` runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from progrpo.config import CheckpointConfig, CompareConfig, Config, DatasetConfig, EvaluateConfig, TrainConfig, parse
from progrpo.errors import ConfigError
from progrpo.manifest import Manifest
from progrpo.storage import make_directory
from progrpo_components import steps


class TrainStep(steps.Run):
    """File of ``progrpo step train``."""

    dataset: Path = Field(description="dataset artifact")
    checkpoint: Path = Field(description="checkpoint artifact to start from")
    train: TrainConfig = TrainConfig()
    tracking: steps.Tracking | None = Field(None, description="absent: nothing is logged to MLflow")


class EvaluateStep(Config):
    """File of ``progrpo step evaluate``."""

    dataset: Path = Field(description="dataset artifact")
    model: Path = Field(description="checkpoint artifact, or training run")
    evaluation: EvaluateConfig = EvaluateConfig()
    tracking: steps.Tracking | None = Field(None, description="absent: nothing is logged to MLflow")


class CompareStep(Config):
    """File of ``progrpo step compare``."""

    evaluations: tuple[Path, ...] = Field(min_length=1, description="evaluation artifacts")
    trainings: tuple[Path, ...] = Field((), description="the training runs behind them")
    comparison: CompareConfig = CompareConfig()
    tracking: steps.Tracking | None = Field(None, description="absent: nothing is logged to MLflow")


class PromoteStep(Config):
    """File of ``progrpo step promote``."""

    comparison: Path = Field(description="comparison artifact with a gate")
    training: str = Field("", description="the candidate's training run, a path or URI; may be absent if rejected")
    tracking: steps.Tracking | None = Field(None, description="absent: nothing is registered")


def _prepare_dataset(config: DatasetConfig, output: Path) -> Manifest:
    return steps.prepare_dataset(config.model_dump(), output=output)


def _import_checkpoint(config: CheckpointConfig, output: Path) -> Manifest:
    return steps.import_checkpoint(config.model_dump(), output=output)


def _train(config: TrainStep, output: Path) -> Manifest:
    return steps.train(
        {"arm": config.arm.model_dump(), "seed": config.seed},
        config.train.model_dump(),
        dataset=config.dataset,
        checkpoint=config.checkpoint,
        output=output,
        tracking=config.tracking,
    )


def _evaluate(config: EvaluateStep, output: Path) -> Manifest:
    return steps.evaluate(
        config.evaluation.model_dump(),
        dataset=config.dataset,
        model=config.model,
        output=output,
        tracking=config.tracking,
    )


def _compare(config: CompareStep, output: Path) -> Manifest:
    return steps.compare(
        config.comparison.model_dump(),
        evaluations=config.evaluations,
        trainings=config.trainings,
        output=output,
        tracking=config.tracking,
    )


def _promote(config: PromoteStep, output: Path) -> Manifest:
    return steps.promote(
        comparison=config.comparison, training_uri=config.training, output=output, tracking=config.tracking
    )


STEPS: dict[str, tuple[type[Config], Callable[[Any, Path], Manifest]]] = {
    "prepare-dataset": (DatasetConfig, _prepare_dataset),
    "import-checkpoint": (CheckpointConfig, _import_checkpoint),
    "train": (TrainStep, _train),
    "evaluate": (EvaluateStep, _evaluate),
    "compare": (CompareStep, _compare),
    "promote": (PromoteStep, _promote),
}


def run_step(name: str, values: Mapping[str, Any], output: Path, *, source: str) -> Manifest:
    """Run a step into ``output``, which appears whole or not at all.

    Args:
        name: a key of :data:`STEPS`.
        values: the contents of the configuration file; relative paths start at the working directory.
        output: directory to make; must be absent or empty.
        source: where the values came from, named in errors.

    Raises:
        ConfigError: a wrong configuration, or an output that holds something already.
        StorageError: an output that cannot be written.
    """
    model, run = STEPS[name]
    config = parse(model, values, source=source)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"--output {output} exists and is not empty; give a new directory, nothing is overwritten.")
    unfinished = output.absolute().with_name(f".{output.absolute().name}.{os.getpid()}.unfinished")
    make_directory(output.absolute().parent, name=f"--output {output}")
    unfinished.mkdir()
    try:
        manifest = run(config, unfinished)
        unfinished.replace(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return manifest
