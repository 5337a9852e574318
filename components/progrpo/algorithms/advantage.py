"""GRPO's group-relative advantage. Suffixes: P prompts, G completions of a prompt."""

from __future__ import annotations

import torch
from torch import Tensor

STD_EPSILON = 1e-4
"""TRL's divisor term. The paper's delta is not known; verl uses 1e-6."""


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
