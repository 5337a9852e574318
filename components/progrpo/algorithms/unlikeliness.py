"""The unlikeliness reward: an unlikely right answer is worth more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from progrpo.algorithms.base import Algorithm

if TYPE_CHECKING:
    from torch import Tensor


class Unlikeliness(Algorithm):
    """Reward unlikely right answers more: ``R (1 - beta rank / G)``, rank 0 the least likely (arXiv:2506.02355)."""

    type: Literal["unlikeliness"] = "unlikeliness"
    beta: float = Field(0.25, ge=0, lt=1, description="paper")

    def rewards(self, verdicts_PG: Tensor, mean_logprobs_PG: Tensor) -> Tensor:
        """Rank the completions of a group; one whose log-probability is not known counts as likely."""
        from progrpo.algorithms.shaping import unlikeliness_rewards

        return unlikeliness_rewards(verdicts_PG, mean_logprobs_PG.nan_to_num(nan=0.0), self.beta)
