"""What evaluation asks of an inference engine; plain Python types, so that any engine fits behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from progrpo.errors import DataError

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class SamplingSettings:
    """How completions are drawn: softmax of logits / temperature, cut to the likeliest tokens, nothing else.

    ``top_k`` keeps that many tokens (0: all), then ``top_p`` the nucleus of that mass among them. ``max_tokens``
    bounds a completion, its EOS included. ``score_temperature`` asks for each token's log-probability and the entropy
    of its softmax at that temperature, without any cut; an engine that cannot tell leaves them out.
    """

    temperature: float
    top_p: float
    max_tokens: int
    top_k: int = 0
    score_temperature: float | None = None


@dataclass(frozen=True)
class Scores:
    """Of one completion, for each of its tokens, at the temperature asked for: arrays [T], float32, in nats.

    ``logprobs``: ``log p(o_t | q, o_<t)``. ``entropies``: ``-sum_v p(v) log p(v)`` of the full softmax the token was
    drawn from, not an estimate from the token itself.
    """

    logprobs: npt.NDArray[np.float32]
    entropies: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Completion:
    """One sampled completion: its tokens, up to and with the first EOS, and why it ended.

    ``logprobs``: of each token under the distribution it was drawn from before any nucleus cut, at the sampling
    temperature, nats; None where the engine does not report them. ``scores``: at the score temperature, likewise.
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[float, ...] | None = None
    scores: Scores | None = field(default=None, compare=False)

    @classmethod
    def cut(
        cls, token_ids: Sequence[int], eos_token_ids: Sequence[int], logprobs: Sequence[float] | None = None
    ) -> Completion:
        """Cut behind the first EOS; what follows is padding, also where the pad token is an EOS itself."""
        end = next((i for i, token in enumerate(token_ids) if token in eos_token_ids), None)
        length = len(token_ids) if end is None else end + 1
        kept = None if logprobs is None else tuple(logprobs[:length])
        return cls(tuple(token_ids[:length]), "length" if end is None else "stop", kept)

    @property
    def mean_logprob(self) -> float:
        """Mean of ``logprobs``, without those that are NaN as vLLM could not tell them; NaN if none is left."""
        known = [value for value in self.logprobs or () if not math.isnan(value)]
        return sum(known) / len(known) if known else math.nan


def refuse_empty(rows: Sequence[Sequence[int]], name: str = "prompt") -> None:
    """Refuse a row without tokens.

    Raises:
        DataError: there is one.
    """
    if empty := [i for i, row in enumerate(rows) if not row]:
        raise DataError(f"{name} {empty[0]} has no tokens: nothing to work on.")


class Engine(Protocol):
    """An inference engine that holds one model."""

    def complete(
        self, prompts: Sequence[Sequence[int]], keys: Sequence[Sequence[int]], settings: SamplingSettings, seed: int
    ) -> list[Completion]:
        """Draw one completion of each prompt.

        Args:
            prompts: token ids, none empty; equal ones lie together, so that an engine may run them once.
            keys: what names each completion; with the seed it decides what is drawn, up to the rounding of the
                model's arithmetic: not the batch, the order, or what was drawn before.
            settings: how they are drawn.
            seed: of the run.
        """
