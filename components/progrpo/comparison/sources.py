"""Reading what is compared: evaluations and, optionally, the training runs behind them.

Dimensions: P problems, sorted by id.
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
from progrpo.manifest import MANIFEST_NAME, read_manifest, sha256_file
from progrpo.metrics import read_jsonl

_SCHEMA_VERSIONS = (1, 2)  # 2 adds curves, calibration and metrics
_ROWS_A_BATCH = 1024  # of completions, which may be long
Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Measured(_Part):
    """A number of an evaluation with its interval over problems."""

    value: float
    low: float
    high: float


class PositionBin(Measured):
    """Entropy, nats, over the tokens at positions ``start`` to ``end - 1``, the first being 0."""

    start: int
    end: int


class ReliabilityBin(_Part):
    """Completions of about one confidence, and the fraction of them that is correct."""

    confidence: float
    accuracy: Measured
    num_completions: int


class Calibration(_Part):
    """What c(o|q) says about correctness; no area under the ROC curve where all or none is correct."""

    auroc: Measured | None
    auroc_within: Measured | None = Field(description="mean over problems with both outcomes")
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
    metrics: dict[str, Measured] = Field(default_factory=dict)
    curves: Curves = Curves()
    calibration: Calibration | None = None


@dataclass(frozen=True)
class Evaluation:
    """One evaluation artifact, its completions counted problem by problem."""

    directory: Path
    summary: EvaluationSummary
    digest: str
    config: dict[str, Any]
    problem_ids: tuple[str, ...]
    num_correct_P: Counts
    distinct_correct_P: Counts
    num_tokens_P: Counts
    num_truncated_P: Counts
    entropy_sum_P: Floats  # nats, summed over the tokens of a problem's completions
    nll_sum_P: Floats

    @property
    def arm(self) -> str:
        """Name of the arm that was evaluated."""
        return self.summary.arm

    @property
    def seed(self) -> int | None:
        """Training seed; None for the checkpoint before training."""
        return self.summary.seed

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


def read_evaluation(directory: Path) -> Evaluation:
    """Read one evaluation artifact and check that its files agree with each other.

    Raises:
        ManifestError: the artifact is not finished or was changed.
        ComparisonError: its files disagree.
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
    if summary.schema_version not in _SCHEMA_VERSIONS:
        known = " or ".join(map(str, _SCHEMA_VERSIONS))
        raise ComparisonError(f"{path} has schema version {summary.schema_version}, needed is {known}. Evaluate again.")
    if (summary.arm == START) != (summary.seed is None):
        raise ComparisonError(
            f"{path}: arm {summary.arm!r} with seed {summary.seed}. A trained arm has a seed and {START!r}, "
            f"the checkpoint before training, has none. Evaluate again with the right arm and seed."
        )
    return Evaluation(directory, summary, manifest.digest, manifest.config, **_count(directory, summary))


def _count(directory: Path, summary: EvaluationSummary) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    path = directory / "samples.parquet"
    columns = ["problem_id", "answer", "correct", "num_tokens", "logprob_sum", "entropy_sum", "finish_reason"]
    try:
        table = pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise ComparisonError(f"{path} cannot be read with the columns {', '.join(columns)}: {error}") from None
    # Wrong completions become null, which count_distinct leaves out; a correct one without an answer still counts.
    answers = pc.coalesce(table["answer"].cast(pa.string()), pa.scalar(""))
    answers = pc.if_else(table["correct"], answers, pa.scalar(None, pa.string()))
    table = table.append_column("correct_answer", answers)
    table = table.append_column("truncated", pc.equal(table["finish_reason"], "length"))
    for name in ("logprob_sum", "entropy_sum"):  # float32 sums would lose digits over many completions
        table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(pa.float64()))
    problems = (
        table.group_by("problem_id")
        .aggregate(
            [
                ("correct", "count"),
                ("correct", "sum"),
                ("correct_answer", "count_distinct"),
                ("num_tokens", "sum"),
                ("truncated", "sum"),
                ("entropy_sum", "sum"),
                ("logprob_sum", "sum"),
            ]
        )
        .sort_by("problem_id")
    )
    for problem_id, count in zip(
        problems["problem_id"].to_pylist(), problems["correct_count"].to_pylist(), strict=True
    ):
        if count != summary.num_samples:
            raise ComparisonError(
                f"{path} has {count} completions of problem {problem_id!r}, evaluation.json says "
                f"{summary.num_samples}. Evaluate again."
            )
    if problems.num_rows != summary.num_problems:
        raise ComparisonError(
            f"{path} has {problems.num_rows} problems, evaluation.json says {summary.num_problems}. Evaluate again."
        )

    def column(name: str) -> Any:
        return problems[name].to_numpy()

    return {
        "problem_ids": tuple(problems["problem_id"].to_pylist()),
        "num_correct_P": column("correct_sum").astype(np.int64),
        "distinct_correct_P": column("correct_answer_count_distinct").astype(np.int64),
        "num_tokens_P": column("num_tokens_sum").astype(np.int64),
        "num_truncated_P": column("truncated_sum").astype(np.int64),
        "entropy_sum_P": column("entropy_sum_sum"),
        "nll_sum_P": -column("logprob_sum_sum"),
    }


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


def read_training(directory: Path) -> Training:
    """Read a training run's configuration and metrics.

    Only ``metrics.jsonl`` is checked against the manifest: digesting gigabytes of weights that are not used here
    would take longer than the comparison.

    Raises:
        ManifestError: the run is not finished, or its metrics were changed.
        ComparisonError: the manifest names no arm or seed.
    """
    manifest = read_manifest(directory, "training", verify=False)
    path = directory / "metrics.jsonl"
    entry = manifest.files.get(path.name)
    if entry is None or not path.is_file() or sha256_file(path) != entry.sha256:
        raise ManifestError(f"{path} is missing or differs from its manifest. Copy or make the artifact again.")
    arm, seed = manifest.config.get("arm"), manifest.config.get("seed")
    if not isinstance(arm, dict) or "name" not in arm or not isinstance(seed, int):
        raise ComparisonError(
            f"{directory / MANIFEST_NAME}: config must hold arm.name and seed, got arm {arm!r} and seed {seed!r}."
        )
    return Training(
        directory=directory,
        arm=arm["name"],
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
