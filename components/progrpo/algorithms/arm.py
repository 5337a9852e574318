"""ARM, ProGRPO's Advantage Re-weighting Mechanism. Suffixes: P prompts, G completions of a prompt."""

from __future__ import annotations

from typing import Literal

from torch import Tensor


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
