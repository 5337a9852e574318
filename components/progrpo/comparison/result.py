"""The contents of ``comparison.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from progrpo import __version__
from progrpo.config import Outcome
from progrpo.errors import ComparisonError
from progrpo.evaluation.power import PowerNote
from progrpo.evaluation.resampling import Interval
from progrpo.manifest import read_manifest

COMPARISON_NAME, GATE_NAME = "comparison.json", "gate.json"
SCHEMA_VERSION = 2


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


@dataclass(frozen=True)
class CurvePoint(Interval):
    """Pass@k at one k, of an arm or of the difference of two; the band holds at every k at once."""

    k: int
    band_low: float
    band_high: float


@dataclass(frozen=True)
class Difference(Interval):
    """An arm minus the baseline; ``resolved``: the interval excludes 0."""

    resolved: bool


class SeedResult(_Frozen):
    """One training seed of an arm, and the evaluation of what it made."""

    seed: int | None = Field(description="None: the checkpoint before training")
    metrics: dict[str, float]
    train_wall_time_s: float | None
    train_gpu_hours: float | None = Field(description="GPUs held x wall time; None: not known, or trained on a CPU")
    eval_wall_time_s: float
    train_hardware: str | None = Field(description="None: the training run was not given")
    eval_hardware: str
    versions: dict[str, str]
    evaluation_digest: str
    checkpoint_digest: str
    training_digest: str | None = Field(description="None: the training run was not given")


class WallTime(_Frozen):
    """Seconds; means over seeds, and the total spent on the arm."""

    train_s: float | None = Field(description="None: the arm was not trained, or a seed's time is not known")
    eval_s: float
    total_s: float


class ArmResult(_Frozen):
    """One arm, over all its seeds."""

    name: str
    algorithm: dict[str, Any] | None = Field(description="None: the checkpoint before training")
    metrics: dict[str, Interval] = Field(description="over all seeds; keys of progrpo.metrics.EVAL_METRICS")
    curve: tuple[CurvePoint, ...] = Field(description="Pass@k at every k up to 64, then at growing steps")
    per_seed: tuple[SeedResult, ...]
    wall_time: WallTime
    train: dict[str, Any] | None = Field(description="resolved training configuration; None: not given")

    @property
    def seeds(self) -> tuple[int, ...]:
        """The training seeds, empty for the checkpoint before training."""
        return tuple(result.seed for result in self.per_seed if result.seed is not None)


class ArmDifference(_Frozen):
    """One arm minus the baseline, metric by metric."""

    arm: str
    metrics: dict[str, Difference]
    curve: tuple[CurvePoint, ...] = Field(description="of Pass@k, at the k of the arm's own curve")
    power: dict[str, PowerNote] = Field(description="of the smallest and the largest k and of entropy")
    superiority: Interval = Field(
        description="probability that the arm solves a problem more often than the baseline, ties counting half"
    )


class AbilityResult(_Frozen):
    """What became of one of lm-eval's metrics between the start checkpoint and a trained arm, over its seeds."""

    arm: str
    task: str
    metric: str
    before: float
    after: float
    difference: Difference = Field(description="after - before, paired by document")
    higher_is_better: bool
    outcome: Literal["worse", "better", "not resolved"]


class RuleResult(_Frozen):
    """One rule of the promotion gate, judged on an interval."""

    metric: str
    against: str
    relation: Literal["better", "not_worse", "keeps", "keeps_ability"]
    fraction: float = Field(description="of against's value that is subtracted; 1 unless the relation is keeps")
    threshold: float = Field(description="what the contrast is held against, in the metric's unit")
    candidate_value: float
    against_value: float
    contrast: Interval = Field(description="candidate - fraction x against, paired by problem")
    outcome: Literal["holds", "fails", "not_resolved"]
    reason: str


class GateResult(_Frozen):
    """What the promotion gate decided, and why."""

    candidate: str
    outcome: Outcome
    reason: str
    level: float = Field(description="of the rules' intervals")
    rules: tuple[RuleResult, ...]
    obstacles: tuple[str, ...] = Field(description="why nothing may be promoted whatever the rules say")
    model: str = Field(description="registered model")
    fail_on: tuple[str, ...] = Field(description="outcomes on which the promote step fails")
    seed: int = Field(description="training seed whose checkpoint is registered")
    checkpoint_digest: str


class Comparison(_Frozen):
    """Every number of a comparison, and where it comes from."""

    schema_version: int = SCHEMA_VERSION
    created_by: str = f"progrpo {__version__}"
    baseline: str
    level: float
    num_resamples: int
    bootstrap_seed: int
    num_problems: int
    num_samples: int
    ks: tuple[int, ...]
    protocol: dict[str, Any] = Field(description="how every evaluation was sampled and verified; dotted keys")
    protocol_differences: tuple[str, ...] = Field(description="ways in which evaluations measured differently")
    arms: tuple[ArmResult, ...] = Field(description="start first, then the baseline, then the others by name")
    differences: tuple[ArmDifference, ...]
    gains: tuple[ArmDifference, ...] = Field((), description="trained arms minus start, where it was given")
    ability: tuple[AbilityResult, ...] = Field((), description="general ability; empty: not measured")
    warnings: tuple[str, ...]
    gate: GateResult | None = Field(None, description="None: no rules were given")

    @property
    def arm_names(self) -> tuple[str, ...]:
        """Names of the arms, in their order."""
        return tuple(arm.name for arm in self.arms)

    def arm(self, name: str) -> ArmResult:
        """Return the arm called ``name``."""
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def headline_ks(self) -> tuple[int, ...]:
        """Up to three k for a table that fits a terminal: the smallest, 8 or the middle one, and the largest."""
        if len(self.ks) <= 3:
            return self.ks
        middle = 8 if 8 in self.ks[1:-1] else self.ks[len(self.ks) // 2]
        return (self.ks[0], middle, self.ks[-1])

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Every metric, Pass@k first, in the order in which tables show them."""
        return tuple(self.arms[0].metrics)


def read_comparison(directory: Path) -> Comparison:
    """Read a comparison artifact.

    Raises:
        ManifestError: no finished comparison lies there, or its files were changed.
        ComparisonError: comparison.json was written by another schema version.
    """
    read_manifest(directory, "comparison")
    path = directory / COMPARISON_NAME
    try:
        content = json.loads(path.read_bytes())
        # First, since another version's fields would be reported as mistakes, one by one.
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version != SCHEMA_VERSION:
            raise ComparisonError(
                f"{path} has schema version {version}, this progrpo {__version__} reads {SCHEMA_VERSION}. Compare "
                f"again with this version."
            )
        return Comparison.model_validate(content)
    except ValueError as error:
        if isinstance(error, ComparisonError):
            raise
        raise ComparisonError(f"{path} is not a comparison this {__version__} can read: {error}") from None
