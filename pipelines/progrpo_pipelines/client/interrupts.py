"""Ctrl-C and SIGTERM, which CI systems send to a job that is cancelled, without losing the answer to a request."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Context in which both signals raise KeyboardInterrupt, except inside :meth:`shield`."""

    def __init__(self) -> None:
        self._shielded = self._pending = False
        self._previous: list[Any] = []

    def __enter__(self) -> Interrupts:
        """Take the signals over; only Python's main thread can."""
        if threading.current_thread() is threading.main_thread():
            self._previous = [signal.signal(number, self._handle) for number in _SIGNALS]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the signals back."""
        for number, handler in zip(_SIGNALS, self._previous, strict=False):
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._shielded:
            self._pending = True
        else:
            raise KeyboardInterrupt

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Hold signals back until :meth:`check`, also if the block fails: what it sent may have arrived."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal was held back."""
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt

    def ignore(self) -> None:
        """From here on neither signal does anything: what is left to do is short and must be done."""
        if self._previous:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)
