"""Sampling whose randomness belongs to the completion, not to the batch it is drawn in.

Token t of a completion is drawn by inverse CDF from one uniform number, which depends on the seed, the completion's
key and t alone. So a completion is the same, up to the rounding of the model's logits, whatever rows stand beside it,
on whichever rank, and whatever was drawn before: nothing of a sampler has to be saved to go on where a run stopped,
one rank and two draw the same, and two arms with one seed share their luck.

R rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor


def keyed_uniforms(seed: int, keys: Sequence[Sequence[int]], num_tokens: int) -> Tensor:
    """Return the uniforms of each completion, [R, T] float64 in [0, 1).

    Args:
        seed: of the run.
        keys: for each completion what names it, such as (place of its prompt in the run, its number in the group).
        num_tokens: T; a longer T leaves the first ones as they are.
    """
    rows = np.empty((len(keys), num_tokens))
    for row, key in zip(rows, keys, strict=True):
        np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *key]))).random(out=row)
    return torch.from_numpy(rows)


def draw(
    logits_RV: Tensor, uniforms_R: Tensor, temperature: float, top_p: float = 1.0, top_k: int = 0
) -> tuple[Tensor, Tensor]:
    """Draw one token a row from ``softmax(logits / temperature)``, cut to ``top_k`` and the nucleus of ``top_p``.

    The cumulated probabilities are float64: in float32 their rounding would be felt at 100,000 tokens.

    Args:
        logits_RV: [R, V].
        uniforms_R: [R] float64 in [0, 1).
        temperature: > 0.
        top_p: the smallest set of most likely tokens with at least this share of the mass stays; 1: all.
        top_k: tokens that stay at first; 0: all. Of equally likely ones at the edge all stay.

    Returns:
        tokens [R] int64, and their log-probabilities [R] float32 before the cut.
    """
    logprobs_RV = (logits_RV.float() / temperature).log_softmax(dim=-1)
    mass_RV = logprobs_RV.double().exp()
    if 0 < top_k < mass_RV.shape[-1]:
        least_R1 = mass_RV.topk(top_k, dim=-1).values[:, -1:]
        mass_RV = mass_RV.masked_fill(mass_RV < least_R1, 0.0)
        mass_RV = mass_RV / mass_RV.sum(dim=-1, keepdim=True)
    if top_p < 1.0:
        sorted_RV, order_RV = mass_RV.sort(dim=-1, descending=True)
        outside_RV = sorted_RV.cumsum(dim=-1) - sorted_RV >= top_p  # the token that reaches top_p stays
        mass_RV = mass_RV.masked_fill(outside_RV.scatter(-1, order_RV, outside_RV), 0.0)
    cdf_RV = mass_RV.cumsum(dim=-1)
    # The first token whose cumulated mass exceeds the uniform: one without mass is never it.
    tokens_R1 = torch.searchsorted(cdf_RV, uniforms_R[:, None] * cdf_RV[:, -1:], right=True)
    tokens_R1 = tokens_R1.clamp(max=logits_RV.shape[-1] - 1)
    return tokens_R1.squeeze(-1), logprobs_RV.gather(-1, tokens_R1).squeeze(-1)


class KeyedSampler(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped
    """Make transformers' greedy ``generate`` draw each row's tokens from uniforms of its own.

    It leaves the drawn token as the only one with a finite score, which greedy decoding then takes. Pass it as the
    only logits processor, with ``do_sample=False``.

    Attributes:
        logprobs: for each token so far, [R] float32, the log-probability it was drawn with at ``temperature``; of
            tokens behind an EOS it means nothing.
    """

    def __init__(self, uniforms_RT: Tensor, temperature: float, top_p: float = 1.0, top_k: int = 0) -> None:
        self._uniforms_RT, self._temperature, self._top_p, self._top_k = uniforms_RT, temperature, top_p, top_k
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores [R, V] that are -inf but for the drawn token."""
        uniforms_R = self._uniforms_RT[:, len(self.logprobs)].to(scores.device)
        tokens_R, logprobs_R = draw(scores, uniforms_R, self._temperature, self._top_p, self._top_k)
        self.logprobs.append(logprobs_R)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens_R[:, None], 0.0)
