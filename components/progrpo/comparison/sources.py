"""Reading what is compared: evaluations and, optionally, the training runs behind them.

Dimensions: P problems, in the order of the dataset.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from progrpo.config import ARM_NAME, START
from progrpo.errors import ComparisonError, ManifestError
from progrpo.evaluation.ability import ABILITY
from progrpo.evaluation.resampling import Interval
from progrpo.evaluation.table import ProblemTable, read_table
from progrpo.manifest import MANIFEST_NAME, read_manifest, sha256_file
from progrpo.metrics import read_jsonl

_SCHEMA_VERSION = 2
_ROWS_A_BATCH = 1024  # of completions, which may be long
Floats = npt.NDArray[np.float64]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


@dataclass(frozen=True)
class PositionBin(Interval):
    """Entropy, nats, over the tokens at positions ``start`` to ``end - 1``, the first being 0."""

    start: int
    end: int


class ReliabilityBin(_Part):
    """Completions of about one confidence, and the fraction of them that is correct."""

    confidence: float
    accuracy: Interval
    num_completions: int


class Calibration(_Part):
    """What c(o|q) says about correctness; no area under the ROC curve where all or none is correct."""

    auroc: Interval | None
    auroc_within: Interval | None = Field(description="mean over problems with both outcomes")
    bins: tuple[ReliabilityBin, ...]


class Curves(_Part):
    """The curves of an evaluation that are shown as it measured them."""

    entropy_by_position: dict[str, tuple[PositionBin, ...]] = Field(default_factory=dict)


class EvaluationSummary(_Part):
    """The part of ``evaluation.json`` that a comparison needs."""

    schema_version: int
    arm: str = Field(pattern=ARM_NAME)
    algorithm: dict[str, Any] | None
    seed: int | None
    num_problems: int = Field(ge=1)
    num_samples: int = Field(ge=1)
    ks: tuple[int, ...] = Field(min_length=1)
    protocol: dict[str, Any]
    checkpoint_digest: str
    eval_wall_time_s: float = Field(ge=0)
    train_wall_time_s: float | None = None
    hardware: str = "unknown"
    unscored: int = Field(0, ge=0)  # completions whose verifier failed
    versions: dict[str, str] = Field(default_factory=dict)
    metrics: dict[str, Interval] = Field(default_factory=dict)
    curves: Curves = Curves()
    calibration: Calibration | None = None


@dataclass(frozen=True)
class Evaluation:
    """One evaluation artifact, its completions summed up problem by problem."""

    directory: Path
    summary: EvaluationSummary
    digest: str
    config: dict[str, Any]
    table: ProblemTable

    @property
    def problem_ids(self) -> tuple[str, ...]:
        """The problems, in the order of the dataset."""
        return self.table.problem_ids

    @property
    def arm(self) -> str:
        """Name of the arm that was evaluated."""
        return self.summary.arm

    @property
    def seed(self) -> int | None:
        """Training seed; None for the checkpoint before training."""
        return self.summary.seed

    @property
    def ability(self) -> Path | None:
        """The measurement of general ability, where the evaluation made one."""
        directory = self.directory / ABILITY
        return directory if (directory / MANIFEST_NAME).is_file() else None

    @property
    def label(self) -> str:
        """The arm and seed, as shown to people."""
        return self.arm if self.seed is None else f"{self.arm} seed {self.seed}"


@dataclass(frozen=True)
class Training:
    """One training run: how it was configured and what it logged."""

    directory: Path
    arm: str
    seed: int
    digest: str
    inputs: dict[str, str]  # digests of the dataset and of the start checkpoint
    config: dict[str, Any]
    metadata: dict[str, Any]
    checkpoint_digest: str | None
    rows: list[dict[str, float]]

    @property
    def label(self) -> str:
        """The arm and seed, as shown to people."""
        return f"{self.arm} seed {self.seed}"


def read_evaluation(directory: Path, *, arm: str | None = None) -> Evaluation:
    """Read one evaluation artifact and check that its files agree with each other.

    Args:
        directory: the artifact.
        arm: name of its arm in this comparison; None: its own.

    Raises:
        ManifestError: the artifact is not finished or was changed.
        ComparisonError, DataError: its files disagree, or are not of this version.
    """
    manifest = read_manifest(directory, "evaluation")
    path = directory / "evaluation.json"
    try:
        summary = EvaluationSummary.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ComparisonError(f"{path} cannot be read: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ComparisonError(f"{path} is not an evaluation: {where}: {first['msg']}. Evaluate again.") from None
    if summary.schema_version != _SCHEMA_VERSION:
        raise ComparisonError(
            f"{path} has schema version {summary.schema_version}, {_SCHEMA_VERSION} is needed. Evaluate again."
        )
    if (summary.arm == START) != (summary.seed is None):
        raise ComparisonError(
            f"{path}: arm {summary.arm!r} with seed {summary.seed}. A trained arm has a seed and {START!r}, "
            f"the checkpoint before training, has none. Evaluate again with the right arm and seed."
        )
    table = read_table(directory)
    if (len(table.problem_ids), table.num_samples) != (summary.num_problems, summary.num_samples):
        raise ComparisonError(
            f"{directory / 'samples.parquet'} has {len(table.problem_ids)} problems and {table.num_samples} "
            f"completions of each, {path.name} says {summary.num_problems} and {summary.num_samples}. Evaluate again."
        )
    if arm is not None:
        summary = summary.model_copy(update={"arm": arm})
    return Evaluation(directory, summary, manifest.digest, manifest.config, table)


def iterate_samples(directory: Path, columns: Sequence[str], problem_ids: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the completions of some problems, row by row in the order of the file, without holding all of them."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    wanted = pa.array(problem_ids, pa.string())
    for batch in pq.ParquetFile(directory / "samples.parquet").iter_batches(_ROWS_A_BATCH, columns=list(columns)):
        yield from batch.filter(pc.is_in(batch["problem_id"], wanted)).to_pylist()


def read_prompts(directory: Path, problem_ids: Sequence[str] | None = None) -> dict[str, str]:
    """Read the prompts of an evaluation as text, where it kept them in ``problems.parquet``; else nothing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = directory / "problems.parquet"
    if not path.is_file():
        return {}
    filters = None if problem_ids is None else [("problem_id", "in", list(problem_ids))]
    try:
        rows = pq.read_table(path, columns=["problem_id", "prompt"], filters=filters).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ComparisonError(f"{path} cannot be read with the columns problem_id, prompt: {error}") from None
    return {
        row["problem_id"]: "\n\n".join(f"{message['role']}: {message['content']}" for message in row["prompt"])
        for row in rows
    }


def read_training(directory: Path, *, arm: str | None = None) -> Training:
    """Read a training run's configuration and metrics.

    Only ``metrics.jsonl`` is checked against the manifest: digesting gigabytes of weights that are not used here
    would take longer than the comparison.

    Args:
        directory: the artifact, or its manifest, metrics and the checkpoint's manifest alone.
        arm: name of its arm in this comparison; None: its own.

    Raises:
        ManifestError: the run is not finished, or its metrics were changed.
        ComparisonError: the manifest names no arm or seed.
    """
    manifest = read_manifest(directory, "training", verify=False)
    path = directory / "metrics.jsonl"
    entry = manifest.files.get(path.name)
    if entry is None or not path.is_file() or sha256_file(path) != entry.sha256:
        raise ManifestError(f"{path} is missing or differs from its manifest. Copy or make the artifact again.")
    trained, seed = manifest.config.get("arm"), manifest.config.get("seed")
    if not isinstance(trained, dict) or "name" not in trained or not isinstance(seed, int):
        raise ComparisonError(
            f"{directory / MANIFEST_NAME}: config must hold arm.name and seed, got arm {trained!r} and seed {seed!r}."
        )
    return Training(
        directory=directory,
        arm=arm or trained["name"],
        seed=seed,
        digest=manifest.digest,
        inputs=manifest.inputs,
        config=dict(manifest.config.get("train") or {}),
        metadata=manifest.metadata,
        checkpoint_digest=_checkpoint_digest(directory / "checkpoint"),
        rows=read_jsonl(path),
    )


def _checkpoint_digest(directory: Path) -> str | None:
    if not (directory / MANIFEST_NAME).is_file():
        return None
    return read_manifest(directory, "checkpoint", verify=False).digest
