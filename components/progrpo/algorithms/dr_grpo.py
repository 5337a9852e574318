"""Dr.GRPO: GRPO without its two biases."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from progrpo.algorithms.base import Algorithm, LossConfig


class DrGRPO(Algorithm):
    """GRPO without its two biases: no division by the group's std, a constant length divisor (arXiv:2503.20783)."""

    type: Literal["dr_grpo"] = "dr_grpo"
    loss: LossConfig = LossConfig(aggregation="constant_length", clip_high=0.2, normalize_std=False)

    @model_validator(mode="after")
    def _is_dr_grpo(self) -> DrGRPO:
        if self.loss.aggregation != "constant_length" or self.loss.normalize_std:
            raise ValueError(
                "dr_grpo means loss.aggregation constant_length and loss.normalize_std false; for others use grpo"
            )
        return self
