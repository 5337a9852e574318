"""The advantage of Pass@k training. Suffixes: P prompts, G completions of a prompt, K draws."""

from __future__ import annotations

import torch
from torch import Tensor


def pass_at_k_advantage(rewards_PG: Tensor, k: int) -> Tensor:
    """Compare the subsets of k completions a completion can be drawn with to all subsets of k.

    The reward of a subset is its best completion's, so its mean over all ``C(N, k)`` subsets is Pass@k,
    ``rho = 1 - C(N_neg, k) / C(N, k)``, and its standard deviation ``s = sqrt(rho (1 - rho))``. A completion's
    advantage is the mean over the subsets it is in, centred and divided by s (arXiv:2508.10751, analytical
    derivation)::

        A_pos = (1 - rho) / s
        A_neg = (1 - rho - C(N_neg - 1, k - 1) / C(N - 1, k - 1)) / s

    With ``q = 1 - rho`` the second binomial is ``q N / N_neg``, hence ``A_pos = sqrt(q / (1 - q))`` and
    ``A_neg = -A_pos N_pos / N_neg``: centred, no cancellation, no binomial. q is a product of k factors in float64.

    Args:
        rewards_PG: [P, G] verdicts, 0 or 1. NaN marks a completion the verifier could not score: it is left out of N
            and its advantage is 0.
        k: of Pass@k, >= 1. 1 is GRPO's advantage with the population's standard deviation.

    Returns:
        [P, G] float32 advantages; 0 for a group whose subsets all have the same reward (all wrong, all right, fewer
        than k wrong) or that has fewer than k scores.

    Raises:
        ValueError: if k < 1, or a reward is neither 0, 1 nor NaN: a subset's best completion needs verdicts, so
            shaped rewards (a length penalty) do not belong here.
    """
    if rewards_PG.ndim != 2 or k < 1:
        raise ValueError(f"rewards must be [P, G] and k >= 1, got {list(rewards_PG.shape)} and k = {k}")
    is_right_PG, is_wrong_PG, scored_PG = rewards_PG == 1, rewards_PG == 0, ~rewards_PG.isnan()
    if not torch.equal(is_right_PG | is_wrong_PG, scored_PG):
        raise ValueError("Pass@k training takes verdicts of 0 and 1; give it the rewards before any shaping")
    num_right_P1 = is_right_PG.sum(dim=1, keepdim=True)
    num_wrong_P1 = is_wrong_PG.sum(dim=1, keepdim=True)
    num_scored_P1 = num_right_P1 + num_wrong_P1

    # q = C(N_neg, k) / C(N, k): the chance that k draws without replacement are all wrong.
    drawn_K = torch.arange(k, dtype=torch.float64, device=rewards_PG.device)
    all_wrong_P1 = ((num_wrong_P1 - drawn_K).clamp(min=0) / (num_scored_P1 - drawn_K).clamp(min=1)).prod(
        dim=1, keepdim=True
    )
    has_signal_P1 = (num_right_P1 > 0) & (num_wrong_P1 > 0) & (num_scored_P1 >= k)
    all_wrong_P1 = torch.where(has_signal_P1, all_wrong_P1, 0.0)
    right_P1 = (all_wrong_P1 / (1 - all_wrong_P1)).sqrt()
    wrong_P1 = -right_P1 * num_right_P1 / num_wrong_P1.clamp(min=1)
    return torch.where(is_right_PG, right_P1, torch.where(is_wrong_PG, wrong_P1, 0.0)).float()
