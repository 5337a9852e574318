"""The promotion gate: what an arm must show, with intervals, before it is shipped."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from progrpo.metrics import EVAL_METRICS
from progrpo.settings import ARM_NAME, MAX_SEED, START, Config

Outcome = Literal["promote", "reject", "not_resolved"]

LOWER_IS_BETTER = frozenset({"eval/completion_tokens", "eval/self_bleu", "eval/truncated_frac", "eval/unscored_frac"})
"""Metrics of which less is better; of all others more is."""


class _Rule(Config):
    metric: str = Field(description="key of an evaluation metric, such as eval/pass_at_32")
    against: str = Field(pattern=ARM_NAME, description="arm to hold the candidate against, or 'start'")

    @field_validator("metric")
    @classmethod
    def _is_measured(cls, metric: str) -> str:
        name, separator, k = metric.rpartition("_")
        numbered = f"{name}{separator}{{k}}"
        if metric in EVAL_METRICS or (numbered in EVAL_METRICS and k.isdecimal() and int(k) >= 1):
            return metric
        raise ValueError(f"{metric!r} is no evaluation metric; there are {', '.join(EVAL_METRICS)} with any k")

    @property
    def k(self) -> int | None:
        """The k of a metric such as eval/pass_at_8; None: it has none."""
        return None if self.metric in EVAL_METRICS else int(self.metric.rpartition("_")[2])


class Better(_Rule):
    """The candidate is better than ``against`` by more than ``margin``."""

    relation: Literal["better"] = "better"
    margin: float = Field(0.0, ge=0, description="in the metric's unit: 0.01 is one point of Pass@k")


class NotWorse(_Rule):
    """The candidate is worse than ``against`` by at most ``margin`` (non-inferiority)."""

    relation: Literal["not_worse"] = "not_worse"
    margin: float = Field(gt=0, description="in the metric's unit: 0.01 is one point of Pass@k")


class Keeps(_Rule):
    """The candidate has at least ``fraction`` of what ``against`` has; at most, where less is better."""

    relation: Literal["keeps"] = "keeps"
    fraction: float = Field(gt=0, description="of the value of against: 0.8")


class KeepsAbility(Config):
    """The candidate is worse than the start checkpoint in a task of lm-eval by at most ``margin``.

    Needs ``evaluation.ability``.
    """

    relation: Literal["keeps_ability"] = "keeps_ability"
    task: str = Field(min_length=1, max_length=200, description="of lm-eval, one of those measured")
    metric: str = Field(
        "acc", min_length=1, max_length=100, description="of that task: acc, acc_norm, exact_match, ..."
    )
    margin: float = Field(gt=0, description="in the metric's unit: 0.01 is one point of accuracy")

    @property
    def against(self) -> str:
        """The arm it is held against."""
        return START

    @property
    def k(self) -> None:
        """No metric of lm-eval has a k of ours."""
        return None


GateRule = Annotated[Better | NotWorse | Keeps | KeepsAbility, Field(discriminator="relation")]


class GateConfig(Config):
    """When the candidate is promoted: every rule holds over its whole interval."""

    candidate: str = Field(pattern=ARM_NAME, description="arm that may be promoted")
    rules: tuple[GateRule, ...] = Field(min_length=1, description="all must hold; there is no 'or'")
    min_seeds: int = Field(
        2, ge=1, description="training seeds each trained arm of a rule needs; one cannot show that it repeats; ours"
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=MAX_SEED,
        description="training seed whose checkpoint is registered; absent: the smallest, since picking the best on the "
        "held-out problems would flatter it",
    )
    model: str = Field("progrpo", pattern=r"^[A-Za-z0-9][A-Za-z0-9_. -]{0,99}$", description="registered model, MLflow")
    fail_on: tuple[Literal["reject", "not_resolved"], ...] = Field(
        ("reject", "not_resolved"), description="outcomes on which the promote step fails, after all is written"
    )

    @field_validator("candidate")
    @classmethod
    def _is_trained(cls, candidate: str) -> str:
        if candidate == START:
            raise ValueError(f"{START!r} is the checkpoint before training, which cannot be promoted; name an arm")
        return candidate

    @model_validator(mode="after")
    def _against_another(self) -> GateConfig:
        if any(rule.against == self.candidate for rule in self.rules):
            raise ValueError(f"a rule holds {self.candidate!r} against itself; name another arm, or {START!r}")
        return self

    def arms(self) -> tuple[str, ...]:
        """Every arm that the gate names, the candidate first."""
        return tuple(dict.fromkeys([self.candidate, *(rule.against for rule in self.rules)]))
