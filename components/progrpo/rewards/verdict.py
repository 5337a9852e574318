"""What a verifier says, and where in a completion it looks for the answer."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ANSWER = re.compile(r"answer\s*:", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of verifying one completion.

    Attributes:
        correct: the answer is right.
        answer: the normalised answer found in the completion, so that equal answers are equal texts; None if the
            completion holds none.
        scored: False if the verifier could not tell (timeout, crash, unreadable gold answer). Such a completion is
            not wrong: leave it out of rewards and count it.
    """

    correct: bool
    answer: str | None
    scored: bool = True


UNSCORED = Verdict(correct=False, answer=None, scored=False)


def final_answer(completion: str) -> str:
    """Return the text after the last ``answer:`` up to the end of its line, else the last line that is not blank."""
    marks = list(_ANSWER.finditer(completion))
    if marks:
        lines = completion[marks[-1].end() :].strip().splitlines()
        return lines[0].strip() if lines else ""
    return next((line.strip() for line in reversed(completion.splitlines()) if line.strip()), "")
