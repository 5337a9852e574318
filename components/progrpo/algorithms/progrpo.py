"""ProGRPO (arXiv:2602.05281): GRPO with ARM, the Advantage Re-weighting Mechanism.

    A_i  = (R_i - mean(R)) / (std(R) + delta)                            GRPO's advantage, unchanged
    c(o) = exp( mean over T_low of log pi(o_t | q, o_<t) )               answer confidence, T_low the least likely 20 %
    c(q) = exp( mean over the prompt of log pi(q_t | q_<t) ) = 1 / PPL   prompt confidence
    A'_i = A_i + alpha ( c(q) - c(o_i | q) )                             if a completion of the group is correct

Over-confident paths are reinforced less and under-explored ones more. The log-probabilities are those of the policy
that sampled, which the training step knows anyway: no forward pass is added. docs/paper.md says what of this is the
paper's, what is inferred and what is ours. Suffixes: P prompts, G completions of a prompt, B rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from progrpo.algorithms.base import Algorithm, Method, Sampled

if TYPE_CHECKING:
    from torch import Tensor


class ProGRPO(Algorithm):
    """GRPO with the Advantage Re-weighting Mechanism: ``A' = A + alpha (c(q) - c(o|q))`` (arXiv:2602.05281)."""

    type: Literal["progrpo"] = "progrpo"
    alpha: float = Field(0.3, ge=0, le=10, description="weight of the confidence term; ours, the paper's is not known")
    tail_frac: float = Field(0.2, gt=0, le=1, description="fraction of least likely tokens in c(o|q); paper")
    prompt_confidence: Literal["inverse_perplexity", "low_prob", "group_mean", "none"] = Field(
        "inverse_perplexity", description="reading of c(q); inverse_perplexity and low_prob inferred, group_mean ours"
    )
    apply_to: Literal["all", "correct"] = Field("all", description="completions that are re-weighted; all: paper")

    metrics: ClassVar[Mapping[str, str]] = {
        "train/arm/prompt_confidence": "mean c(q) over the step's rollouts",
        "train/arm/answer_confidence": "mean c(o|q) over the step's rollouts",
        "train/arm/advantage_shift": "mean of A' - A over the step's rollouts: what ARM un-centres",
        "train/arm/gated_frac": "fraction of rollouts whose group has a correct completion, so that ARM applies",
    }

    def errors(self, method: Method, *, group_size: int, micro_batch_size: int | None) -> Iterator[str]:
        """The mean of a group needs the whole group."""
        if self.prompt_confidence == "group_mean" and (micro_batch_size or group_size) % group_size:
            yield (
                f"prompt_confidence 'group_mean' needs a whole group in one forward pass, but train.micro_batch_size "
                f"{micro_batch_size} splits the groups of {group_size} completions. Leave micro_batch_size out, make "
                f"it a multiple of group_size, or use another prompt_confidence."
            )

    def gate(self, is_correct_PG: Tensor, is_scored_PG: Tensor) -> Tensor:
        """ARM applies where a completion of the group is correct."""
        return arm_gate(is_correct_PG, is_scored_PG, self.apply_to)

    @property
    def scores_prompt(self) -> bool:
        """Two readings of c(q) are of the prompt."""
        return self.prompt_confidence in ("inverse_perplexity", "low_prob")

    def reweight(self, sampled: Sampled) -> Tensor:
        """``A' = A + alpha gate (c(q) - c(o|q))``."""
        from progrpo.algorithms.confidence import answer_confidence

        answer_B = answer_confidence(sampled.logprobs, sampled.mask, self.tail_frac)
        prompt_B = self._prompt_confidence(sampled, answer_B)
        advantages_B = reweight_advantages(sampled.advantages, prompt_B, answer_B, sampled.gate, self.alpha)
        sampled.record("train/arm/prompt_confidence", prompt_B, column="prompt_confidence")
        sampled.record("train/arm/answer_confidence", answer_B, column="answer_confidence")
        sampled.record("train/arm/advantage_shift", advantages_B - sampled.advantages, column="advantage_shift")
        sampled.record("train/arm/gated_frac", sampled.gate.float())
        return advantages_B

    def _prompt_confidence(self, sampled: Sampled, answer_B: Tensor) -> Tensor:
        from progrpo.algorithms.confidence import group_mean_confidence, prompt_confidence

        if self.prompt_confidence == "group_mean":
            return group_mean_confidence(answer_B, sampled.group)
        if self.prompt_confidence == "none":
            return answer_B.new_zeros(answer_B.shape)
        return prompt_confidence(sampled.prompt_logprobs, sampled.prompt_mask, self.prompt_confidence, self.tail_frac)


def arm_gate(
    is_correct_PG: Tensor, is_scored_PG: Tensor | None = None, apply_to: Literal["all", "correct"] = "all"
) -> Tensor:
    """Decide which completions ARM may touch.

    ``A'_i = A_i`` if no completion of the group is correct (arXiv:2602.05281). The condition is read off correctness,
    not off the reward sum, which means something else once rewards are negative or format counts. A group that is
    all correct stays in: its A is 0 and ARM is its only signal.

    Args:
        is_correct_PG: [P, G] bool.
        is_scored_PG: [P, G] bool; a completion the verifier could not score keeps its advantage of 0. Absent: all.
        apply_to: ``all`` completions of the group (the equation as written) or only the ``correct`` ones (the
            abstract's words).

    Returns:
        [P, G] bool.
    """
    gate_PG = is_correct_PG.any(dim=1, keepdim=True).expand_as(is_correct_PG)
    if apply_to == "correct":
        gate_PG = gate_PG & is_correct_PG
    if is_scored_PG is not None:
        gate_PG = gate_PG & is_scored_PG
    return gate_PG


def reweight_advantages(
    advantages: Tensor, prompt_confidence: Tensor, answer_confidence: Tensor, gate: Tensor, alpha: float
) -> Tensor:
    """Add the confidence term to the advantages.

    ``A'_i = A_i + alpha ( c(q) - c(o_i|q) )`` where the gate is open (arXiv:2602.05281). Applied after normalisation
    and never normalised again: as a reward term the group mean would cancel c(q) and the standard deviation rescale
    c(o|q). Both confidences lie in (0, 1], so the shift is smaller than alpha.

    Args:
        advantages: any shape, A.
        prompt_confidence: same shape, c(q); 0 where the prompt term is off.
        answer_confidence: same shape, c(o|q).
        gate: same shape, bool, from :func:`arm_gate`.
        alpha: weight of the term, dimensionless, >= 0; 0 gives back ``advantages`` bit for bit.

    Returns:
        A', same shape as ``advantages``.
    """
    return advantages + alpha * gate * (prompt_confidence - answer_confidence)
