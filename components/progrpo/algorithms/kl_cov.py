"""KL-Cov: tokens that drive the entropy down are held near the old policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from progrpo.algorithms.base import Algorithm, Update

if TYPE_CHECKING:
    from torch import Tensor


class KLCov(Algorithm):
    """A KL penalty on the tokens whose log-probability and advantage covary most (arXiv:2505.22617)."""

    type: Literal["kl_cov"] = "kl_cov"
    kl_frac: float = Field(0.002, gt=0, le=1, description="of all tokens; paper")
    kl_coef: float = Field(1.0, gt=0, description="paper")

    metrics: ClassVar[Mapping[str, str]] = {
        "train/cov_chosen_frac": "fraction of completion tokens that Clip-Cov or KL-Cov chose; only with these"
    }
    idle_on_policy: ClassVar[str | None] = "its penalty has no gradient"

    def restrain(self, logprobs_BT: Tensor, update: Update) -> Tensor:
        """Charge the tokens of highest covariance for their distance from the old policy."""
        from progrpo.algorithms.covariance import kl_cov_mask, token_covariance

        covariance_BT = token_covariance(logprobs_BT.detach(), update.advantages, update.mask)
        chosen_BT = kl_cov_mask(covariance_BT, update.mask, self.kl_frac)
        old_BT = logprobs_BT.detach() if update.old_logprobs is None else update.old_logprobs
        update.penalize((logprobs_BT - old_BT).abs() * chosen_BT, self.kl_coef)
        update.log("train/cov_chosen_frac", chosen_BT.sum() / update.mask.sum().clamp(min=1))
        return logprobs_BT
