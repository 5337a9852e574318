"""What an algorithm is: its settings, and the hooks by which it takes part in a training step.

What it leaves open (the policy loss, dynamic sampling, the length penalty) is shared by all arms through
:class:`progrpo.config.TrainConfig`; an algorithm that defines it brings it along. :func:`method_of` tells what is in
force. Nothing here imports torch before a tensor is at hand. Suffixes: P prompts, G completions of a prompt, B rows,
T positions of the completion, L of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from progrpo.settings import Config

if TYPE_CHECKING:
    import torch
    from torch import Tensor


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


@dataclass(frozen=True)
class Sampled:
    """Rollouts, scored by the policy that sampled them; no gradient.

    Attributes:
        advantages: [B].
        gate: [B] bool, from :meth:`Algorithm.gate`.
        group: [B] int64, which group a row belongs to; rows of a group may be in several forward passes.
        prompt_logprobs: [B, L - 1], of the prompt's tokens but the first; [B, 0] unless ``scores_prompt``.
        prompt_mask: [B, L - 1] bool, where the model has predicted a real token from a real one.
        logprobs: [B, T], of the completion's tokens.
        mask: [B, T], non-zero on tokens that count, EOS included.
        record: takes a metric's name and its values [B], whose mean over the step is logged; with ``column`` they are
            also kept in the table of rollouts.
    """

    advantages: Tensor
    gate: Tensor
    group: Tensor
    prompt_logprobs: Tensor
    prompt_mask: Tensor
    logprobs: Tensor
    mask: Tensor
    record: Callable[..., None]


@dataclass(frozen=True)
class Update:
    """The tokens of a forward pass that the loss is about to be made of.

    Attributes:
        advantages: [B], final.
        mask: [B, T], non-zero on tokens of the loss.
        old_logprobs: [B, T] of the policy that sampled; None where that is the policy at hand: every ratio is 1.
        loss: the policy loss.
        penalize: takes values [B, T] and a coefficient, and adds their mean to the loss, averaged as the loss is.
        generator: makes random numbers that depend on the run's seed and this pass alone.
        log: takes a metric's name and its value.
    """

    advantages: Tensor
    mask: Tensor
    old_logprobs: Tensor | None
    loss: LossConfig
    penalize: Callable[[Tensor, float], None]
    generator: Callable[[], torch.Generator]
    log: Callable[[str, float | Tensor], None]


class Algorithm(Config):
    """Base of all algorithms: as it stands, GRPO. The hooks are in the order in which a step asks them.

    A subclass gives ``type`` its name as a ``Literal`` with a default, adds settings of its own, and overrides the
    hooks at which it departs. Its docstring starts with what it is and names the source.
    """

    loss: LossConfig | None = Field(None, description="replaces train.loss as a whole")
    dynamic_sampling: DynamicSampling | None = Field(None, description="replaces train.dynamic_sampling")
    overlong_penalty: OverlongPenalty | None = Field(None, description="replaces train.overlong_penalty")
    type: str

    metrics: ClassVar[Mapping[str, str]] = {}
    """Metrics the hooks log, with what each is."""
    idle_on_policy: ClassVar[str | None] = None
    """Why, where every ratio is 1, it trains as grpo does; None: it does not."""

    # --- before training ---------------------------------------------------------------------------------------------

    def errors(self, method: Method, *, group_size: int, micro_batch_size: int | None) -> Iterator[str]:
        """Say what cannot work with the other settings of training, each with what to do."""
        yield from ()

    def engine_settings(self) -> dict[str, Any]:
        """Return what TRL has of the algorithm beyond the loss: fields of its ``GRPOConfig``."""
        return {}

    # --- rollouts ----------------------------------------------------------------------------------------------------

    def rewards(self, verdicts_PG: Tensor, mean_logprobs_PG: Tensor) -> Tensor:
        """Make rewards of verdicts, before the length penalty.

        Args:
            verdicts_PG: [P, G] 1 right, 0 wrong, NaN where the verifier could not tell.
            mean_logprobs_PG: [P, G] mean log-probability of each completion's tokens, as sampled.
        """
        return verdicts_PG

    def advantages(self, rewards_PG: Tensor, loss: LossConfig) -> Tensor:
        """Make [P, G] advantages of rewards, 0 where the reward is NaN."""
        from progrpo.algorithms.advantage import group_relative_advantage

        return group_relative_advantage(rewards_PG, normalize_std=loss.normalize_std)

    def gate(self, is_correct_PG: Tensor, is_scored_PG: Tensor) -> Tensor:
        """Tell which completions :meth:`reweight` may touch, [P, G] bool: to dynamic sampling they are a signal."""
        return is_correct_PG.new_zeros(is_correct_PG.shape)

    # --- update ------------------------------------------------------------------------------------------------------

    @property
    def scores_prompt(self) -> bool:
        """Whether :meth:`reweight` needs the prompt's log-probabilities; they cost rows of the LM head, no pass."""
        return False

    def reweight(self, sampled: Sampled) -> Tensor:
        """Return the final advantages, [B], for which the policy's own log-probabilities may be read."""
        return sampled.advantages

    def restrain(self, logprobs_BT: Tensor, update: Update) -> Tensor:
        """Return the log-probabilities that the policy loss gets, which carry the gradient."""
        return logprobs_BT


@dataclass(frozen=True)
class Method:
    """An algorithm with all that it takes from the shared settings filled in."""

    algorithm: Algorithm
    loss: LossConfig
    dynamic_sampling: DynamicSampling | None
    overlong_penalty: OverlongPenalty | None


def in_force(algorithm: Mapping[str, Any], train: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shared settings of an arm: what its algorithm sets, else what ``train`` says for all arms."""
    shared = ("loss", "dynamic_sampling", "overlong_penalty")
    return {name: algorithm.get(name) or train.get(name) for name in shared}


def method_of(algorithm: Algorithm, train: Config) -> Method:
    """Return what is in force for an arm that trains with ``train``, a :class:`progrpo.config.TrainConfig`."""
    return Method(algorithm, **in_force(dict(algorithm), dict(train)))
