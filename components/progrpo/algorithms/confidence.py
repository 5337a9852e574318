"""The two confidences ProGRPO reads off the policy's own log-probabilities.

Both are computed in float32 without gradient: at a log-probability of -20 a bfloat16 step is 0.125, an error of up to
6 % in the confidence. Suffixes: B rows, T token positions.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal, overload

import torch
from torch import Tensor

TAIL_FRAC = 0.2
"""Fraction of least likely tokens that make up T_low. The paper's 20 %; rounding up is ours."""


@overload
def tail_size(num_tokens: int, tail_frac: float = TAIL_FRAC) -> int: ...
@overload
def tail_size(num_tokens: Tensor, tail_frac: float = TAIL_FRAC) -> Tensor: ...
def tail_size(num_tokens: int | Tensor, tail_frac: float = TAIL_FRAC) -> int | Tensor:
    """Return ``ceil(tail_frac * n)``, at least 1, in integers.

    In float32 the product can round up past an integer: 0.3 * 50 gives 16 instead of 15.

    Args:
        num_tokens: n, an int or an int64 tensor of any shape.
        tail_frac: in (0, 1]; taken as the decimal it is written as, to six digits: more would overflow int64.
    """
    ratio = Fraction(str(tail_frac)).limit_denominator(1_000_000)
    size = -(-num_tokens * ratio.numerator // ratio.denominator)
    return size.clamp(min=1) if isinstance(size, Tensor) else max(size, 1)


def predicted_tokens(mask_BT: Tensor) -> Tensor:
    """Mark the tokens that have a real predecessor, so that the model gave them a probability.

    The first real token of a row has none; with left padding its column holds the probability given a pad, which
    means nothing.

    Args:
        mask_BT: [B, T], non-zero on real tokens, padding left or right.

    Returns:
        [B, T - 1] bool, aligned with log-probabilities of tokens 1 .. T-1.
    """
    real_BT = mask_BT.bool()
    return real_BT[:, 1:] & real_BT[:, :-1]


@torch.no_grad()
def answer_confidence(logprobs_BT: Tensor, completion_mask_BT: Tensor, tail_frac: float = TAIL_FRAC) -> Tensor:
    """Confidence of an answer over its least likely tokens.

    ``c(o|q) = exp( 1/|T_low| sum_{t in T_low} log pi(o_t | q, o_<t) )`` with T_low the ``ceil(tail_frac n)`` positions
    of lowest probability among the answer's n tokens (arXiv:2602.05281).

    Args:
        logprobs_BT: [B, T] log-probabilities of the sampled tokens.
        completion_mask_BT: [B, T], non-zero on tokens that count: EOS and truncated completions included.
        tail_frac: size of T_low relative to n.

    Returns:
        [B] float32 in (0, 1]; 1 for a row without tokens, which has no loss either.
    """
    mask_BT = completion_mask_BT.bool()
    num_tokens_B = mask_BT.sum(dim=1)
    ascending_BT = logprobs_BT.float().masked_fill(~mask_BT, torch.inf).sort(dim=1).values
    size_B = tail_size(num_tokens_B, tail_frac)
    rank_T = torch.arange(logprobs_BT.shape[1], device=logprobs_BT.device)
    in_tail_BT = (rank_T < size_B[:, None]) & (rank_T < num_tokens_B[:, None])
    return torch.where(in_tail_BT, ascending_BT, 0.0).sum(dim=1).div(size_B).exp()


@torch.no_grad()
def prompt_confidence(
    logprobs_BT: Tensor,
    mask_BT: Tensor,
    reading: Literal["inverse_perplexity", "low_prob"] = "inverse_perplexity",
    tail_frac: float = TAIL_FRAC,
) -> Tensor:
    """Confidence of the model in the prompt itself, c(q).

    ``inverse_perplexity``: ``exp( mean_t log pi(q_t | q_<t) ) = 1 / PPL(q)``, our reading of the abstract's "prompt
    perplexity" (inferred). ``low_prob``: the operator of :func:`answer_confidence` on the prompt (inferred). Template
    tokens count; whether they do in the paper is not known.

    Args:
        logprobs_BT: [B, T] log-probabilities of the prompt's tokens.
        mask_BT: [B, T], non-zero where a log-probability is meant to count, see :func:`predicted_tokens`.
        reading: which of the two.
        tail_frac: of ``low_prob``.

    Returns:
        [B] float32 in (0, 1]; 1 for a prompt of one token, which has no conditional probability.
    """
    if reading == "low_prob":
        return answer_confidence(logprobs_BT, mask_BT, tail_frac)
    mask_BT = mask_BT.bool()
    total_B = torch.where(mask_BT, logprobs_BT.float(), 0.0).sum(dim=1)
    return total_B.div(mask_BT.sum(dim=1).clamp(min=1)).exp()


@torch.no_grad()
def group_mean_confidence(answer_confidence_B: Tensor, group_B: Tensor) -> Tensor:
    """Stand in for c(q) with the mean answer confidence of the group, so that ARM re-centres itself (ours).

    Args:
        answer_confidence_B: [B] c(o|q).
        group_B: [B] int64, which group each row belongs to; rows may come in any order.

    Returns:
        [B] float32, the same value for all rows of a group.
    """
    _, index_B = torch.unique(group_B, return_inverse=True)
    num_groups = int(index_B.max()) + 1 if index_B.numel() else 0
    totals = torch.zeros(num_groups, dtype=torch.float32, device=group_B.device)
    totals = totals.index_add(0, index_B, answer_confidence_B.float())
    counts = torch.bincount(index_B, minlength=num_groups).clamp(min=1)
    return (totals / counts)[index_B]
