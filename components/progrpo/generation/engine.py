"""What evaluation asks of an inference engine; plain Python types, so that any engine fits behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class SamplingSettings:
    """How completions are drawn: softmax of logits / temperature, cut to the nucleus of mass ``top_p``, nothing else.

    ``max_tokens`` bounds a completion, its EOS included.
    """

    temperature: float
    top_p: float
    max_tokens: int


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

    def sample(
        self, prompts: Sequence[Sequence[int]], num_samples: int, settings: SamplingSettings, seed: int
    ) -> list[list[Completion]]:
        """Draw ``num_samples`` independent completions of each prompt.

        Args:
            prompts: token ids of each prompt, none empty.
            num_samples: completions a prompt.
            settings: how they are drawn.
            seed: equal arguments on the same machine give equal completions, whatever was drawn before.

        Returns:
            for each prompt, in the order given, its completions.
        """
