"""How long to wait before something that failed is tried again, and when to give up."""

from __future__ import annotations

import math
import time


class Backoff:
    """Pauses that double, until nothing has got through for too long.

    The caller's loop says what is tried, what may be tried again, and waits::

        while True:
            try:
                return ask()
            except Unavailable:
                if (pause_s := backoff.pause_s()) is None:
                    raise
                time.sleep(pause_s)
    """

    def __init__(self, *, first_s: float = 1.0, longest_s: float = 60.0, patience_s: float = math.inf) -> None:
        """Take the first and the longest pause and, for :meth:`pause_s`, how long failures are borne."""
        self._first_s, self._longest_s, self._patience_s = first_s, longest_s, patience_s
        self.reset()

    def reset(self) -> None:
        """Begin anew: something got through."""
        self._next_s, self._deadline = self._first_s, time.monotonic() + self._patience_s

    def pause_s(self, asked_s: float = 0.0) -> float | None:
        """Return how long to wait before the next attempt, seconds; None: not again, patience would be over.

        Args:
            asked_s: the least that the other side asked for, as by ``Retry-After``.
        """
        pause_s = max(self._next_s, asked_s)
        self._next_s = min(2 * self._next_s, self._longest_s)
        return pause_s if time.monotonic() + pause_s <= self._deadline else None
