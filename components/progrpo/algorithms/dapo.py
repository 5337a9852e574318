"""DAPO: clip-higher, token mean, dynamic sampling and the soft overlong punishment."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from progrpo.algorithms.base import Algorithm, DynamicSampling, LossConfig, OverlongPenalty


class DAPO(Algorithm):
    """Clip-higher, token mean, dynamic sampling and the soft overlong punishment (arXiv:2503.14476)."""

    type: Literal["dapo"] = "dapo"
    loss: LossConfig = LossConfig()
    dynamic_sampling: DynamicSampling = DynamicSampling()
    overlong_penalty: OverlongPenalty = OverlongPenalty()

    @model_validator(mode="after")
    def _is_dapo(self) -> DAPO:
        if self.loss.aggregation != "token_mean":
            raise ValueError("dapo means loss.aggregation token_mean; for others use grpo with dynamic_sampling")
        return self
