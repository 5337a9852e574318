"""Verifiable rewards: is a completion's answer right?

Tasks: ``countdown``, ``exact``, ``math`` (math-verify, in worker processes that are killed when they take too long) and
``code`` (programs, run in sandboxes).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

from progrpo.errors import ConfigError
from progrpo.rewards import code, countdown, exact, mathematics
from progrpo.rewards.verdict import Verdict

__all__ = ["VERIFIER_VERSIONS", "Verdict", "check_verifiers", "verify", "verify_batch"]

logger = logging.getLogger(__name__)

VERIFIER_VERSIONS: dict[str, str] = {
    "code": code.VERSION,
    "countdown": countdown.VERSION,
    "exact": exact.VERSION,
    "math": mathematics.VERSION,
}
"""Task -> version of its verifier. Results verified by different versions are not comparable."""

_PLAIN: dict[str, Callable[[str, str], Verdict]] = {"countdown": countdown.verify, "exact": exact.verify}


def check_verifiers(tasks: Collection[str]) -> None:
    """Refuse a machine that could not verify these tasks, before anything is sampled for them.

    Raises:
        ConfigError: programs can neither be isolated here nor sent to a server.
    """
    if "code" in tasks:
        code.check_ready()


def verify(task: str, answer: str, completion: str) -> Verdict:
    """Verify one completion; see :func:`verify_batch`."""
    return verify_batch([(task, answer, completion)])[0]


def verify_batch(items: Sequence[tuple[str, str, str]], timeout_s: float = 10.0) -> list[Verdict]:
    """Verify completions; those of a problem that are the same text once.

    Args:
        items: (task, right answer, completion).
        timeout_s: seconds of wall time for one ``math`` completion; one that takes longer gets ``scored=False``. Limits
            of a program are its problem's, and one that exceeds them is wrong.

    Returns:
        One verdict an item, in their order.

    Raises:
        ConfigError: an unknown task, a verifier that is not installed or does not start, or no sandbox for programs.
        DataError: an answer its task cannot read.
    """
    verdicts: dict[tuple[str, str, str], Verdict] = {}
    waiting: dict[str, list[tuple[str, str]]] = {"math": [], "code": []}
    for item in dict.fromkeys(items):
        task, answer, completion = item
        if task in waiting:
            waiting[task].append((answer, completion))
        elif task in _PLAIN:
            verdicts[item] = _PLAIN[task](answer, completion)
        else:
            raise ConfigError(f"unknown task {task!r}. Allowed: {', '.join(sorted(VERIFIER_VERSIONS))}.")
    for task, pairs in waiting.items():
        if not pairs:
            continue
        results = mathematics.verify_all(pairs, timeout_s) if task == "math" else code.verify_all(pairs)
        verdicts.update({(task, *pair): verdict for pair, verdict in zip(pairs, results, strict=True)})
    found = [verdicts[item] for item in items]
    for task in waiting:
        of_task = [verdict for item, verdict in zip(items, found, strict=True) if item[0] == task]
        if unscored := sum(not verdict.scored for verdict in of_task):
            logger.warning("%d of %d %s completions could not be verified", unscored, len(of_task), task)
    return found
