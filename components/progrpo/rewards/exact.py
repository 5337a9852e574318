"""Verifier of the ``exact`` task: the same text, but for case and whitespace."""

from __future__ import annotations

from progrpo.rewards.verdict import Verdict, final_answer

VERSION = "1"


def normalize(text: str) -> str:
    """Return ``text`` in one case, with single spaces and none at the ends."""
    return " ".join(text.casefold().split())


def verify(answer: str, completion: str) -> Verdict:
    """Compare the completion's final answer with the right one after :func:`normalize`."""
    given = normalize(final_answer(completion))
    return Verdict(correct=given == normalize(answer) and given != "", answer=given or None)
