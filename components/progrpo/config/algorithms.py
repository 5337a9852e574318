"""The algorithms an arm can be trained by, as one closed union; docs/algorithms.md has the equations.

What an algorithm leaves open (the policy loss, dynamic sampling, the length penalty) is shared by all arms through
:class:`progrpo.config.training.TrainConfig`; an algorithm that defines it brings it along. :func:`method_of` tells
what is in force.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator

from progrpo.config.base import ARM_NAME, START, Config

if TYPE_CHECKING:
    from progrpo.config.training import TrainConfig


class LossConfig(Config):
    """The clipped policy loss ``-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)`` and how it is averaged."""

    aggregation: Literal["token_mean", "sequence_mean", "constant_length"] = Field(
        "token_mean",
        description="token_mean: over all tokens of the step, paper; sequence_mean: over a completion, then over "
        "completions (GRPO); constant_length: divided by max_completion_tokens (Dr.GRPO)",
    )
    ratio: Literal["token", "sequence"] = Field(
        "token", description="rho of a token, or of the whole completion as its geometric mean (GSPO)"
    )
    clip_low: float = Field(0.2, gt=0, lt=1, description="paper")
    clip_high: float = Field(0.28, gt=0, description="paper")
    kl_beta: float = Field(0.0, ge=0, description="weight of the KL to the start checkpoint; paper: none")
    normalize_std: bool = Field(True, description="divide the centred reward by the group's std; paper")


class DynamicSampling(Config):
    """Replace groups without a signal by groups of the next prompts (DAPO, arXiv:2503.14476)."""

    max_rounds: int = Field(3, ge=1, le=100, description="times a step samples again, at most; ours")


class OverlongPenalty(Config):
    """Soft overlong punishment: lower the reward of a completion that nears the length limit (DAPO, eq. 13)."""

    buffer_frac: float = Field(
        0.2, gt=0, le=1, description="last part of max_completion_tokens, over which the penalty grows to 1; DAPO"
    )
    weight: float = Field(
        0.5, gt=0, description="the largest penalty; DAPO's 1 with rewards of -1 and 1, on our rewards of 0 and 1"
    )


class AlgorithmConfig(Config):
    """What every algorithm may override of the settings that arms share."""

    loss: LossConfig | None = Field(None, description="replaces train.loss as a whole")
    dynamic_sampling: DynamicSampling | None = Field(None, description="replaces train.dynamic_sampling")
    overlong_penalty: OverlongPenalty | None = Field(None, description="replaces train.overlong_penalty")


class GRPO(AlgorithmConfig):
    """The group-relative advantage alone (DeepSeekMath, arXiv:2402.03300)."""

    type: Literal["grpo"] = "grpo"


class ProGRPO(AlgorithmConfig):
    """GRPO with the Advantage Re-weighting Mechanism: ``A' = A + alpha (c(q) - c(o|q))`` (arXiv:2602.05281)."""

    type: Literal["progrpo"] = "progrpo"
    alpha: float = Field(0.3, ge=0, le=10, description="weight of the confidence term; ours, the paper's is not known")
    tail_frac: float = Field(0.2, gt=0, le=1, description="fraction of least likely tokens in c(o|q); paper")
    prompt_confidence: Literal["inverse_perplexity", "low_prob", "group_mean", "none"] = Field(
        "inverse_perplexity", description="reading of c(q); inverse_perplexity and low_prob inferred, group_mean ours"
    )
    apply_to: Literal["all", "correct"] = Field("all", description="completions that are re-weighted; all: paper")


class DrGRPO(AlgorithmConfig):
    """GRPO without its two biases: no division by the group's std, a constant length divisor (arXiv:2503.20783)."""

    type: Literal["dr_grpo"] = "dr_grpo"
    loss: LossConfig = LossConfig(aggregation="constant_length", clip_high=0.2, normalize_std=False)

    @model_validator(mode="after")
    def _is_dr_grpo(self) -> DrGRPO:
        if self.loss.aggregation != "constant_length" or self.loss.normalize_std:
            raise ValueError(
                "dr_grpo means loss.aggregation constant_length and loss.normalize_std false; for others use grpo"
            )
        return self


class DAPO(AlgorithmConfig):
    """Clip-higher, token mean, dynamic sampling and the soft overlong punishment (arXiv:2503.14476)."""

    type: Literal["dapo"] = "dapo"
    loss: LossConfig = LossConfig()
    dynamic_sampling: DynamicSampling = DynamicSampling()
    overlong_penalty: OverlongPenalty = OverlongPenalty()

    @model_validator(mode="after")
    def _is_dapo(self) -> DAPO:
        if self.loss.aggregation != "token_mean":
            raise ValueError("dapo means loss.aggregation token_mean; for others use grpo with dynamic_sampling")
        return self


class GSPO(AlgorithmConfig):
    """One importance ratio a completion, clipped tightly (arXiv:2507.18071)."""

    type: Literal["gspo"] = "gspo"
    loss: LossConfig = LossConfig(ratio="sequence", aggregation="sequence_mean", clip_low=3e-4, clip_high=4e-4)

    @model_validator(mode="after")
    def _is_gspo(self) -> GSPO:
        if self.loss.ratio != "sequence":
            raise ValueError("gspo means loss.ratio sequence; for token ratios use grpo")
        return self


class AdaptiveEntropy(Config):
    """Move the coefficient by ``delta`` a step, up while the entropy is below ``target`` (arXiv:2505.22312)."""

    target: float = Field(gt=0, description="entropy to keep, nats a token")
    delta: float = Field(0.005, gt=0, description="change of the coefficient a step; TRL")
    min_coef: float = Field(0.0, ge=0)
    max_coef: float = Field(1.0, gt=0)


class EntropyBonus(AlgorithmConfig):
    """``L = L_policy - coef H(pi)``, the coefficient fixed or steered."""

    type: Literal["entropy_bonus"] = "entropy_bonus"
    coef: float = Field(0.01, ge=0, le=10, description="nats to loss; the first value if adaptive; ours")
    adaptive: AdaptiveEntropy | None = Field(None, description="absent: the coefficient is fixed")


class ClipCov(AlgorithmConfig):
    """No gradient for a few tokens whose log-probability and advantage covary strongly (arXiv:2505.22617)."""

    type: Literal["clip_cov"] = "clip_cov"
    clip_frac: float = Field(0.0002, gt=0, le=1, description="of all tokens; paper")
    cov_low: float = Field(1.0, description="tokens with a covariance between cov_low and cov_high qualify; paper")
    cov_high: float = Field(5.0, description="paper")

    @model_validator(mode="after")
    def _is_a_range(self) -> ClipCov:
        if self.cov_low >= self.cov_high:
            raise ValueError(f"cov_low {self.cov_low} must be below cov_high {self.cov_high}")
        return self


class KLCov(AlgorithmConfig):
    """A KL penalty on the tokens whose log-probability and advantage covary most (arXiv:2505.22617)."""

    type: Literal["kl_cov"] = "kl_cov"
    kl_frac: float = Field(0.002, gt=0, le=1, description="of all tokens; paper")
    kl_coef: float = Field(1.0, gt=0, description="paper")


class Unlikeliness(AlgorithmConfig):
    """Reward unlikely right answers more: ``R (1 - beta rank / G)``, rank 0 the least likely (arXiv:2506.02355)."""

    type: Literal["unlikeliness"] = "unlikeliness"
    beta: float = Field(0.25, ge=0, lt=1, description="paper")


class PassK(AlgorithmConfig):
    """The advantage of Pass@k training, in closed form (arXiv:2508.10751)."""

    type: Literal["passk"] = "passk"
    k: int = Field(4, ge=1, description="k of Pass@k, at most group_size; ours")


class ForkingTokens(AlgorithmConfig):
    """Gradient only through the tokens of highest entropy (80/20, arXiv:2506.01939)."""

    type: Literal["forking_tokens"] = "forking_tokens"
    top_entropy_frac: float = Field(0.2, gt=0, le=1, description="paper")


Algorithm = Annotated[
    GRPO | ProGRPO | DrGRPO | DAPO | GSPO | EntropyBonus | ClipCov | KLCov | Unlikeliness | PassK | ForkingTokens,
    Field(discriminator="type"),
]


class Arm(Config):
    """One side of a comparison: an algorithm under a name."""

    name: str = Field(pattern=ARM_NAME, description="shown in tables and MLflow")
    algorithm: Algorithm

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, name: str) -> str:
        if name == START:
            raise ValueError(f"{START!r} names the checkpoint before training; call the arm something else")
        return name


@dataclass(frozen=True)
class Method:
    """An algorithm with all that it takes from the shared settings filled in."""

    algorithm: AlgorithmConfig
    loss: LossConfig
    dynamic_sampling: DynamicSampling | None
    overlong_penalty: OverlongPenalty | None


def method_of(algorithm: AlgorithmConfig, train: TrainConfig) -> Method:
    """Return what is in force for an arm: what its algorithm sets, else what ``train`` says for all arms."""
    return Method(
        algorithm=algorithm,
        loss=algorithm.loss or train.loss,
        dynamic_sampling=algorithm.dynamic_sampling or train.dynamic_sampling,
        overlong_penalty=algorithm.overlong_penalty or train.overlong_penalty,
    )
