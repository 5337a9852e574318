"""GRPO's group-relative advantage. Suffixes: P prompts, G completions of a prompt."""

from __future__ import annotations

import torch
from torch import Tensor

STD_EPSILON = 1e-4
"""TRL's divisor term. The paper's delta is not known; verl uses 1e-6."""

SIGNAL_EPSILON = 5e-3
"""Advantages up to this are no signal. Equal rewards that float32 cannot sum exactly (a group of -0.3) leave up to
2e-3 after the division by :data:`STD_EPSILON`; the largest advantage of a group whose rewards differ is near 1."""


def group_relative_advantage(rewards_PG: Tensor, *, normalize_std: bool = True) -> Tensor:
    """Compare each completion's reward with those of its group.

    ``A_i = (R_i - mean(R)) / (std(R) + delta)`` (arXiv:2402.03300, outcome supervision; ProGRPO keeps it as it is).
    The standard deviation is the unbiased one and delta is :data:`STD_EPSILON`, both as in TRL.

    Args:
        rewards_PG: [P, G] rewards, float32. NaN marks a completion the verifier could not score: it is left out of
            mean and standard deviation and its advantage is 0.
        normalize_std: divide by the group's standard deviation; off is Dr.GRPO's advantage (arXiv:2503.20783).

    Returns:
        [P, G] advantages. A group whose rewards are all equal gets 0, and so does one with fewer than two scores.

    Raises:
        ValueError: if there is no second completion to compare with.
    """
    if rewards_PG.ndim != 2 or rewards_PG.shape[1] < 2:
        raise ValueError(f"rewards must be [P, G] with G >= 2, got {list(rewards_PG.shape)}")
    scored_PG = ~rewards_PG.isnan()
    centred_PG = rewards_PG - rewards_PG.nanmean(dim=1, keepdim=True)
    if normalize_std:
        num_scored_P1 = scored_PG.sum(dim=1, keepdim=True)
        # TRL's order of operations (nanstd), so that grpo is stock TRL bit for bit.
        variance_P1 = centred_PG.square().nanmean(dim=1, keepdim=True)
        std_P1 = (variance_P1 * (num_scored_P1 / (num_scored_P1 - 1).clamp(min=1))).sqrt()
        centred_PG = centred_PG / (std_P1 + STD_EPSILON)
    return torch.where(scored_PG, centred_PG, torch.zeros_like(centred_PG))


def has_signal(advantages_PG: Tensor, gate_PG: Tensor | None = None) -> Tensor:
    """Tell which groups teach anything: those with an advantage, or that the algorithm may give one later.

    DAPO's dynamic sampling keeps groups with ``0 < number correct < G`` (arXiv:2503.14476). Read off the
    advantages instead, the condition also holds for rewards that a length penalty or unlikeliness tells apart and for
    ProGRPO's groups that are all correct.

    Args:
        advantages_PG: [P, G], before any re-weighting.
        gate_PG: [P, G] bool from :meth:`~progrpo.algorithms.Algorithm.gate`; absent: none is open.

    Returns:
        [P] bool: an advantage beyond :data:`SIGNAL_EPSILON`, or an open gate.
    """
    has_signal_PG = advantages_PG.abs() > SIGNAL_EPSILON
    if gate_PG is not None:
        has_signal_PG = has_signal_PG | gate_PG
    return has_signal_PG.any(dim=1)
