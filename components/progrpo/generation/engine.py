"""What evaluation asks of an inference engine; plain Python types, so that any engine fits behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class SamplingSettings:
    """How completions are drawn: softmax of logits / temperature, cut to the likeliest tokens, nothing else.

    ``top_k`` keeps that many tokens (0: all), then ``top_p`` the nucleus of that mass among them. ``max_tokens``
    bounds a completion, its EOS included.
    """

    temperature: float
    top_p: float
    max_tokens: int
    top_k: int = 0


@dataclass(frozen=True)
class Completion:
    """One sampled completion: its tokens, up to and with the first EOS, and why it ended.

    ``logprobs``: of each token under the distribution it was drawn from before any nucleus cut, at the sampling
    temperature, nats; None where the engine does not report them.
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[float, ...] | None = None


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
