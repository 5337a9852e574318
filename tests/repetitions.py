"""How often ``make test`` repeats what ``make test-full`` repeats more often; both run every test."""

import os

FULL = os.environ.get("PROGRPO_TEST_FULL") == "1"

# what: (in make test, in make test-full)
_NUMBERS = {
    "steps that each algorithm trains": (3, 20),
    "kills of a training run": (3, 20),
    "kills of a writer of resume points": (8, 25),
    "failing containers": (5, 50),
    "faults of a tracking server": (25, 100),
    "versions of Kubernetes": (2, 7),
}


def repetitions(what: str) -> int:
    """Return how often this is done in this session."""
    return _NUMBERS[what][FULL]


def left_out() -> str:
    """Return what this session does less often, as a sentence; empty in a full one."""
    if FULL:
        return ""
    parts = (f"{few} of {many} {what}" for what, (few, many) in _NUMBERS.items())
    return f"Fewer repetitions than make test-full: {', '.join(parts)}."
