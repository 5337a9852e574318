"""GSPO: one importance ratio a completion."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from progrpo.algorithms.base import Algorithm, LossConfig


class GSPO(Algorithm):
    """One importance ratio a completion, clipped tightly (arXiv:2507.18071)."""

    type: Literal["gspo"] = "gspo"
    loss: LossConfig = LossConfig(ratio="sequence", aggregation="sequence_mean", clip_low=3e-4, clip_high=4e-4)

    @model_validator(mode="after")
    def _is_gspo(self) -> GSPO:
        if self.loss.ratio != "sequence":
            raise ValueError("gspo means loss.ratio sequence; for token ratios use grpo")
        return self
