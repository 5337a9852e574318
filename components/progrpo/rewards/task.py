"""What a task is: its settings, and how its answers are verified."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar

from progrpo.errors import DataError
from progrpo.rewards.verdict import Verdict
from progrpo.settings import Config


class Task(Config):
    """Base of all tasks.

    A subclass gives ``type`` its name as a ``Literal`` with a default, adds settings of its own, and overrides
    :meth:`verify`, or :meth:`verify_all` where verifying many at once is cheaper.
    """

    type: str

    version: ClassVar[str]
    """Of the verifier. Results verified by different versions are not comparable."""
    answers: ClassVar[str]
    """What the answer column holds."""
    json_answers: ClassVar[bool] = False
    """Whether an answer is JSON, which JSON Lines may hold as it is."""

    def verify(self, answer: str, completion: str) -> Verdict:
        """Verify one completion.

        Raises:
            DataError: an answer that cannot be read.
        """
        raise NotImplementedError

    def verify_all(self, items: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Verify (answer column, completion) pairs, in their order."""
        return [self.verify(*item) for item in items]

    def check_answer(self, answer: str) -> None:
        """Refuse an answer that no completion could be verified against.

        Raises:
            DataError: the reason.
        """

    def unreadable(self, answers: Collection[str]) -> dict[str, str]:
        """Return the answers that :meth:`check_answer` refuses, with its reasons."""
        reasons = {}
        for answer in answers:
            try:
                self.check_answer(answer)
            except DataError as error:
                reasons[answer] = str(error)
        return reasons

    def check_ready(self) -> None:
        """Refuse a machine that could not verify, before anything is sampled for it.

        Raises:
            ConfigError: what it lacks.
        """
