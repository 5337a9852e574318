"""The process behind :mod:`progrpo.rewards.mathematics`: reads questions from stdin, answers on stdout.

A line in: ``[right answer, completion]``. A line out: the fields of a verdict. Ends when stdin does.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
from typing import Any

MAX_MEMORY = 4 << 30
"""Bytes of address space. An expression that wants more ends in MemoryError, which leaves the machine alone."""

MAX_ANSWER = 200


def judge(answer: str, completion: str) -> dict[str, bool | str | None]:
    """Return the fields of the verdict. A right answer that math-verify cannot read makes it unscored."""
    from math_verify import verify

    gold = parse_gold(answer)
    if not gold:
        return {"correct": False, "answer": None, "scored": False}
    given = _parse(completion)
    if not given:
        return {"correct": False, "answer": None, "scored": True}
    correct = verify(gold, given, timeout_seconds=None)
    # All that is right is one answer, which sympy writes as 5, 5.00000000000000 or Eq(x, 5).
    shown = gold if correct else given
    return {"correct": correct, "answer": str(shown[0])[:MAX_ANSWER], "scored": True}


def parse_gold(answer: str) -> list[Any]:
    """Parse a right answer, which may be bare LaTeX: math-verify finds LaTeX only between delimiters."""
    return _parse(f"${answer}$") or _parse(answer) if "$" not in answer and "\\boxed" not in answer else _parse(answer)


def _parse(text: str) -> list[Any]:
    from math_verify import parse

    parsed: list[Any] = parse(text, parsing_timeout=None)
    return parsed


def main() -> None:
    """Answer questions until stdin ends."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a stray print of a library must not look like a reply
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    logging.disable(logging.CRITICAL)
    for line in sys.stdin:
        try:
            reply = judge(*json.loads(line))
        except (Exception, MemoryError):
            reply = {"correct": False, "answer": None, "scored": False}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
