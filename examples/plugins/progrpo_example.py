"""An algorithm and a task that progrpo takes by entry points: a module of these forty lines, and pyproject.toml."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from progrpo.algorithms import Algorithm, LossConfig
from progrpo.errors import DataError
from progrpo.rewards import Task, Verdict
from progrpo.rewards.countdown import parse_expression
from progrpo.rewards.verdict import final_answer

if TYPE_CHECKING:
    from torch import Tensor


class RLOO(Algorithm):
    """The leave-one-out baseline: ``A_i = R_i - mean of the group's other rewards`` (arXiv:2402.14740)."""

    type: Literal["rloo"] = "rloo"

    def advantages(self, rewards_PG: Tensor, loss: LossConfig) -> Tensor:
        """``G / (G - 1)`` times the centred reward; 0 where there is no reward."""
        num_P1 = (~rewards_PG.isnan()).sum(dim=1, keepdim=True)
        centred_PG = rewards_PG - rewards_PG.nanmean(dim=1, keepdim=True)
        return (centred_PG * num_P1 / (num_P1 - 1).clamp(min=1)).nan_to_num(nan=0.0)


class Within(Task):
    """A sum, difference or product of whole numbers whose value is near the right one."""

    type: Literal["within"] = "within"
    tolerance: float = Field(0.01, ge=0, description="largest difference, relative to the right answer")
    version: ClassVar[str] = "1"
    answers: ClassVar[str] = "a number"

    def verify(self, answer: str, completion: str) -> Verdict:
        """Compare values."""
        given = parse_expression(final_answer(completion))
        near = given is not None and abs(given.value - float(answer)) <= self.tolerance * abs(float(answer))
        return Verdict(correct=near, answer=given.text if given else None)

    def check_answer(self, answer: str) -> None:
        """It must be a number."""
        try:
            float(answer)
        except ValueError:
            raise DataError("it is no number") from None
