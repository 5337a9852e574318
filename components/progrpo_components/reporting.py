"""How a step tells whoever started it how far it is, and why it failed.

``progrpo run`` sets :data:`PROGRESS_DIR`: each step appends JSON lines to a file of its own there. Without it, as in a
pod, progress goes to the log.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from progrpo.errors import ProGRPOError
from progrpo.metrics import Progress

logger = logging.getLogger(__name__)

PROGRESS_DIR = "PROGRPO_PROGRESS_DIR"
_LOG_EVERY_S = 10.0
_TRACEBACK_LINES = 12


class LoggedProgress(Progress):
    """Progress as log lines, at most one every ten seconds and one at the end."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self._label, self._last = label, float("-inf")

    def update(self, done: int, total: int, **numbers: float) -> None:
        """Log how far the step is."""
        now = time.monotonic()
        if done < total and now - self._last < _LOG_EVERY_S:
            return
        self._last = now
        shown = "".join(f" {name} {value:.4g}" for name, value in numbers.items())
        logger.info("%s: %d/%d%s", self._label, done, total, shown)


@contextmanager
def reported(
    step: str, *, arm: str | None = None, seed: int | None = None, output: Path | None = None
) -> Iterator[Progress]:
    """Report the start, the progress and the end of a step, its error included.

    The first line of the file names the process, so that a reader can tell a step that was killed from one that runs;
    the last one is ``{"state": "finished", "output": ...}`` or
    ``{"state": "failed", "error": ..., "user_error": ...}``.

    Args:
        step: name of the step, as on the command line.
        arm: the arm it works on.
        seed: its training seed.
        output: the directory it writes.
    """
    name = "-".join(str(part) for part in (step, arm, seed) if part is not None)
    directory = os.environ.get(PROGRESS_DIR)
    with _sigterm_raises():
        if not directory:
            yield LoggedProgress(name)
            return
        path = Path(directory) / f"{name}.jsonl"
        labels = {"step": step, "arm": arm, "seed": seed}
        path.parent.mkdir(parents=True, exist_ok=True)
        _append(path, {**labels, "state": "running", "pid": os.getpid()})
        try:
            yield Progress(path, **labels)
        except BaseException as error:
            user_error = isinstance(error, ProGRPOError)
            text = str(error) if user_error else "".join(traceback.format_exception(error)[-_TRACEBACK_LINES:]).rstrip()
            _append(path, {"state": "failed", "error": text, "user_error": user_error})
            raise
        _append(path, {"state": "finished", "output": None if output is None else str(output)})


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Turn SIGTERM into an exception: a pod that is deleted, or a run that is stopped, still closes its MLflow run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _append(path: Path, line: dict[str, object]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
