"""Verifiable rewards: is a completion's answer right?

Tasks: ``countdown``, ``exact`` and ``math`` (math-verify, in worker processes that are killed when they take too long).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from progrpo.errors import ConfigError
from progrpo.rewards import countdown, exact, mathematics
from progrpo.rewards.verdict import Verdict

__all__ = ["VERIFIER_VERSIONS", "Verdict", "verify", "verify_batch"]

logger = logging.getLogger(__name__)

VERIFIER_VERSIONS: dict[str, str] = {
    "countdown": countdown.VERSION,
    "exact": exact.VERSION,
    "math": mathematics.VERSION,
}
"""Task -> version of its verifier. Results verified by different versions are not comparable."""

_PLAIN: dict[str, Callable[[str, str], Verdict]] = {"countdown": countdown.verify, "exact": exact.verify}


def verify(task: str, answer: str, completion: str) -> Verdict:
    """Verify one completion; see :func:`verify_batch`."""
    return verify_batch([(task, answer, completion)])[0]


def verify_batch(items: Sequence[tuple[str, str, str]], timeout_s: float = 10.0) -> list[Verdict]:
    """Verify completions.

    Args:
        items: (task, right answer, completion).
        timeout_s: seconds of wall time for one completion of a task verified in worker processes (``math``). One that
            takes longer gets ``scored=False``, and the number of those is logged.

    Returns:
        One verdict an item, in their order.

    Raises:
        ConfigError: an unknown task, or a verifier that is not installed or does not start.
        DataError: an answer its task cannot read.
    """
    verdicts: dict[int, Verdict] = {}
    waiting: list[int] = []
    for index, (task, answer, completion) in enumerate(items):
        if task == "math":
            waiting.append(index)
        elif task in _PLAIN:
            verdicts[index] = _PLAIN[task](answer, completion)
        else:
            raise ConfigError(f"unknown task {task!r}. Allowed: {', '.join(sorted(VERIFIER_VERSIONS))}.")
    if waiting:
        results = mathematics.verify_all([items[index][1:] for index in waiting], timeout_s)
        verdicts.update(zip(waiting, results, strict=True))
        unscored = sum(not verdict.scored for verdict in results)
        if unscored:
            logger.warning("%d of %d math completions could not be verified", unscored, len(results))
    return [verdicts[index] for index in range(len(items))]
