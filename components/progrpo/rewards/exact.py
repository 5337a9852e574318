"""Verifier of the ``exact`` task: the same text, but for case and whitespace."""

from __future__ import annotations

from typing import ClassVar, Literal

from progrpo.errors import DataError
from progrpo.rewards.task import Task
from progrpo.rewards.verdict import Verdict, final_answer


def normalize(text: str) -> str:
    """Return ``text`` in one case, with single spaces and none at the ends."""
    return " ".join(text.casefold().split())


class Exact(Task):
    """The same text, but for case and whitespace."""

    type: Literal["exact"] = "exact"
    version: ClassVar[str] = "1"
    answers: ClassVar[str] = "a text of one line"

    def verify(self, answer: str, completion: str) -> Verdict:
        """Compare the completion's final answer with the right one after :func:`normalize`."""
        given = normalize(final_answer(completion))
        return Verdict(correct=given == normalize(answer) and given != "", answer=given or None)

    def check_answer(self, answer: str) -> None:
        """It must be an answer to itself."""
        if not self.verify(answer, answer).correct:
            raise DataError("no completion can match it: it has several lines or holds 'answer:'")
