"""Clip-Cov: tokens that drive the entropy down lose their gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from progrpo.algorithms.base import Algorithm, Update

if TYPE_CHECKING:
    from torch import Tensor


class ClipCov(Algorithm):
    """No gradient for a few tokens whose log-probability and advantage covary strongly (arXiv:2505.22617)."""

    type: Literal["clip_cov"] = "clip_cov"
    clip_frac: float = Field(0.0002, gt=0, le=1, description="of all tokens; paper")
    cov_low: float = Field(1.0, description="tokens with a covariance between cov_low and cov_high qualify; paper")
    cov_high: float = Field(5.0, description="paper")

    metrics: ClassVar[Mapping[str, str]] = {
        "train/cov_chosen_frac": "fraction of completion tokens that Clip-Cov or KL-Cov chose; only with these"
    }

    @model_validator(mode="after")
    def _is_a_range(self) -> ClipCov:
        if self.cov_low >= self.cov_high:
            raise ValueError(f"cov_low {self.cov_low} must be below cov_high {self.cov_high}")
        return self

    def restrain(self, logprobs_BT: Tensor, update: Update) -> Tensor:
        """Take the gradient from the tokens that are drawn."""
        from progrpo.algorithms.covariance import clip_cov_mask, clipped_tokens, token_covariance

        values_BT, loss = logprobs_BT.detach(), update.loss
        clipped_BT = None
        if update.old_logprobs is not None:
            log_ratio_BT = values_BT - update.old_logprobs
            clipped_BT = clipped_tokens(log_ratio_BT, update.advantages, loss.clip_low, loss.clip_high)
        drawn_BT = clip_cov_mask(
            token_covariance(values_BT, update.advantages, update.mask),
            update.mask,
            clip_frac=self.clip_frac,
            cov_low=self.cov_low,
            cov_high=self.cov_high,
            generator=update.generator(),
            clipped_BT=clipped_BT,
        )
        update.log("train/cov_chosen_frac", drawn_BT.sum() / update.mask.sum().clamp(min=1))
        return values_BT.where(drawn_BT, logprobs_BT)
