"""Rewards changed before they are compared. Suffixes: P prompts, G completions of a prompt, B rows, T positions."""

from __future__ import annotations

import torch
from torch import Tensor

from progrpo.algorithms.integers import floor_frac


@torch.no_grad()
def unlikeliness_rewards(rewards_PG: Tensor, mean_logprobs_PG: Tensor, beta: float) -> Tensor:
    """Lower the reward of a right answer the more, the likelier it was: the unlikeliness reward.

    ``R'_i = R_i (1 - beta rank_i / G)`` with rank 0 the least and G - 1 the most likely completion of the group, by
    mean old log-probability, right and wrong ones ranked together (arXiv:2506.02355; the authors' code). The paper
    writes ``R_i (1 - beta (G - rank_i) / G)`` with ranks from the most likely down; counted from 1 that is the same
    number. A wrong answer's 0 stays 0. The group-relative advantage comes after.

    Completions of equal log-probability share the mean of their ranks, so that equal completions get equal rewards
    in whatever order they come; the authors' sort breaks the tie arbitrarily.

    Args:
        rewards_PG: [P, G] verdicts, 0 or 1, before any other shaping. NaN marks a completion the verifier could not
            score: it takes no part in the ranking, G counts the others, and it stays NaN.
        mean_logprobs_PG: [P, G] mean log-probability of each completion's tokens under the policy that sampled.
        beta: in [0, 1); 0 gives back ``rewards_PG`` bit for bit.

    Returns:
        [P, G] rewards. All right answers of a group without wrong ones now differ: it has a signal.

    Raises:
        ValueError: if the shapes differ or are not [P, G].
    """
    if rewards_PG.ndim != 2 or rewards_PG.shape != mean_logprobs_PG.shape:
        raise ValueError(
            f"rewards and mean log-probabilities must be [P, G], got {list(rewards_PG.shape)} and "
            f"{list(mean_logprobs_PG.shape)}"
        )
    scored_PG = ~rewards_PG.isnan()
    own_PG1, other_P1G = mean_logprobs_PG[:, :, None], mean_logprobs_PG[:, None, :]
    num_less_likely_PG = ((other_P1G < own_PG1) & scored_PG[:, None, :]).sum(dim=2)
    num_equal_PG = ((other_P1G == own_PG1) & scored_PG[:, None, :]).sum(dim=2)  # itself included
    rank_PG = num_less_likely_PG + (num_equal_PG - 1) / 2
    num_scored_P1 = scored_PG.sum(dim=1, keepdim=True).clamp(min=1)
    return rewards_PG * (1 - beta * rank_PG / num_scored_P1)


def overlong_penalty(num_tokens: Tensor, max_tokens: int, buffer_frac: float, weight: float) -> Tensor:
    """Soft overlong punishment: what is added to the reward of a completion that nears the length limit.

    0 up to ``L_max - L_cache`` tokens, then linear to ``-weight`` at ``L_max`` and beyond (DAPO, arXiv:2503.14476,
    eq. 13), with ``L_cache = floor(buffer_frac L_max)``, at least one token.

    Args:
        num_tokens: lengths of completions, integers of any shape.
        max_tokens: L_max, the limit of the sampler.
        buffer_frac: L_cache relative to L_max; DAPO's 4096 of 20480 is 0.2.
        weight: the largest penalty. DAPO's 1 goes with rewards of -1 and 1; with 0 and 1 half of it weighs the same.

    Returns:
        float32, the shape of ``num_tokens``, in [-weight, 0].
    """
    buffer = floor_frac(max_tokens, buffer_frac)
    num_over = (num_tokens - (max_tokens - buffer)).clamp(min=0, max=buffer)
    return 0.0 - weight * (num_over.float() / buffer)
