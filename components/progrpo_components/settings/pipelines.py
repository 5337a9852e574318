"""Settings of the pipelines: what ``progrpo run --set`` and the ``overrides`` of the Kubeflow form speak."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from progrpo.algorithms.grpo import GRPO
from progrpo.algorithms.progrpo import ProGRPO
from progrpo.config.algorithms import Arm
from progrpo.config.data import CheckpointConfig, DatasetConfig
from progrpo.config.evaluation import CompareConfig, EvaluateConfig
from progrpo.config.gate import KeepsAbility
from progrpo.config.training import TrainConfig
from progrpo.settings import MAX_SEED, START, Config
from progrpo_components.settings.placement import PlacementConfig
from progrpo_components.settings.trainjob import TrainJobConfig

_TRAINJOB = "how several nodes train, in packages of preset multi-node; absent: the pod of the step trains"


class PreparePipeline(Config):
    """Settings of the ``prepare`` pipeline: what every pipeline starts from."""

    checkpoint: CheckpointConfig = CheckpointConfig()
    dataset: DatasetConfig = DatasetConfig()


class EvaluatePipeline(PreparePipeline):
    """Settings of the ``evaluate`` pipeline."""

    evaluation: EvaluateConfig = EvaluateConfig()
    experiment: str = Field("progrpo", min_length=1, max_length=200, description="MLflow experiment")
    placement: PlacementConfig = PlacementConfig()


class TrainAndEvaluatePipeline(EvaluatePipeline):
    """Settings of the ``train-and-evaluate`` pipeline: one arm, one seed."""

    arm: Arm = Arm(name="progrpo", algorithm=ProGRPO())
    comparison: CompareConfig = CompareConfig(baseline=START)
    seed: int = Field(0, ge=0, le=MAX_SEED)
    train: TrainConfig = TrainConfig()
    trainjob: TrainJobConfig | None = Field(None, description=_TRAINJOB)

    @model_validator(mode="after")
    def _baseline_exists(self) -> TrainAndEvaluatePipeline:
        _check_comparison(self.comparison, (self.arm.name,), (self.seed,), self.evaluation)
        return self


class ComparePipeline(EvaluatePipeline):
    """Settings of the ``compare`` pipeline: arms x seeds, the main job."""

    arms: tuple[Arm, ...] = Field(
        (Arm(name="grpo", algorithm=GRPO()), Arm(name="progrpo", algorithm=ProGRPO())), min_length=1
    )
    comparison: CompareConfig = CompareConfig()
    seeds: tuple[Annotated[int, Field(ge=0, le=MAX_SEED)], ...] = Field((0, 1), min_length=1)
    train: TrainConfig = TrainConfig()
    trainjob: TrainJobConfig | None = Field(None, description=_TRAINJOB)

    @model_validator(mode="after")
    def _unique(self) -> ComparePipeline:
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names):
            raise ValueError(f"arm names must differ, got {names}")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must differ, got {list(self.seeds)}")
        _check_comparison(self.comparison, tuple(names), self.seeds, self.evaluation)
        return self


def _check_comparison(
    comparison: CompareConfig, arms: tuple[str, ...], seeds: tuple[int, ...], evaluation: EvaluateConfig
) -> None:
    """Refuse before training what the comparison after it would refuse."""
    allowed = ", ".join((*arms, START))
    if comparison.baseline not in (*arms, START):
        raise ValueError(f"comparison.baseline is {comparison.baseline!r}, allowed are {allowed}")
    gate = comparison.gate
    if gate is None:
        return
    if unknown := [arm for arm in gate.arms() if arm not in (*arms, START)]:
        raise ValueError(f"comparison.gate names {', '.join(map(repr, unknown))}, allowed are {allowed}")
    if gate.seed is not None and gate.seed not in seeds:
        raise ValueError(f"comparison.gate.seed is {gate.seed}, trained are {', '.join(map(str, seeds))}")
    for rule in gate.rules:
        if isinstance(rule, KeepsAbility) and evaluation.ability is None:
            raise ValueError(
                f"comparison.gate has a rule about {rule.task}, but evaluation.ability is not set. Set it, for example "
                f"evaluation.ability.tasks: [{rule.task}]"
            )
        if (k := rule.k) is not None and k > evaluation.num_samples:
            raise ValueError(
                f"comparison.gate asks for {rule.metric}, but evaluation.num_samples is {evaluation.num_samples}: "
                f"Pass@k needs n >= k completions a problem"
            )


PIPELINES: dict[str, type[PreparePipeline]] = {
    "compare": ComparePipeline,
    "evaluate": EvaluatePipeline,
    "prepare": PreparePipeline,
    "train-and-evaluate": TrainAndEvaluatePipeline,
}
