"""The process that delivers a spool while its step runs: ``python -m progrpo_components.tracking.sender SPOOL``.

It ends by itself when the step has closed its end of the pipe, or is gone; so what a killed step said is still
delivered if the machine lives on. What is left then stays in the spool.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import select
import signal
import sys
import time
from pathlib import Path

from progrpo_components.tracking import spool
from progrpo_components.tracking.delivery import Delivery
from progrpo_components.tracking.sync import locked
from progrpo_components.tracking.text import describe_error
from progrpo_components.tracking.tracker import CLOSE_S, DELIVERED, LEFT

logger = logging.getLogger("progrpo.tracking")

FLUSH_S = 2.0
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
"""Between two tries while the server is away; the wait doubles."""
GIVE_UP_S = 15.0
"""After the step has ended, since the server took something last; one that is long away is tried once."""
LAST_S = 0.9 * CLOSE_S


def main(arguments: list[str] | None = None) -> int:
    """Deliver until the step ends, and then what is left.

    Returns:
        0 if all of the spool was delivered, 3 if not.
    """
    parser = argparse.ArgumentParser(prog="python -m progrpo_components.tracking.sender")
    parser.add_argument("spool", type=Path)
    parser.add_argument("--system-metrics", action="store_true")
    options = parser.parse_args(arguments)
    os.nice(5)  # where the cores are busy, the step comes first
    # The step is told to stop by the same signals; what it says last must still be delivered.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    os.environ.setdefault("MLFLOW_ASYNC_TRACE_LOGGING_MAX_SPAN_BATCH_SIZE", "128")  # 5 are many requests
    gc.disable()  # the collector would go through mlflow's million objects again and again, and free none
    # What the end of a step needs is imported at its start, when nobody waits.
    import mlflow.models
    import mlflow.types.llm  # noqa: F401

    from progrpo_components.tracking import lineage  # noqa: F401

    gc.freeze()
    gc.enable()
    with locked(options.spool) as free:
        return _send(options.spool, options.system_metrics) if free else LEFT


def _send(path: Path, system_metrics: bool) -> int:
    from progrpo_components.tracking.system import SystemMetrics

    attempts = _Attempts(Delivery(path))
    system = SystemMetrics() if system_metrics else None
    parent = os.getppid()
    attempts.make()
    while not _closed(FLUSH_S) and os.getppid() == parent:
        if system is not None and (values := system.sample_if_due()):
            now = time.time()
            spool.append(path, {"metrics": values, "step": int(now), "time": int(now * 1000)})
        attempts.make()
    state = spool.read_state(path)
    if state is not None and not state.ended:  # the step was killed without a word
        spool.append(path, {"end": "KILLED", "time": int(time.time() * 1000)})
    return DELIVERED if attempts.finish() else LEFT


class _Attempts:
    """Attempts at delivery, further and further apart while the server is away."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._warned = False
        self._wait_s, self._next, self._last_taken = FIRST_WAIT_S, 0.0, time.monotonic()

    def make(self, *, at_once: bool = False) -> bool:
        """Deliver, if it is time to; return whether everything was delivered."""
        if time.monotonic() < self._next and not at_once:
            return False
        before = self._delivery.num_sent
        try:
            self._delivery.deliver()
        except Exception as error:  # whatever it is, the step goes on and the spool keeps what is left
            if not self._warned:
                self._warned = True
                cause = describe_error(error)
                logger.warning("MLflow does not take what this step logs; it is kept and tried again. Cause: %s", cause)
            now = time.monotonic()
            if self._delivery.num_sent > before:
                self._wait_s, self._last_taken = FIRST_WAIT_S, now
            else:
                self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)
            self._next = now + self._wait_s
            return False
        self._wait_s, self._next, self._last_taken = FIRST_WAIT_S, 0.0, time.monotonic()
        return True

    def finish(self) -> bool:
        """Deliver what is left when the step has ended; return whether that is everything."""
        limit = time.monotonic() + LAST_S
        while not self.make(at_once=True):
            if time.monotonic() > min(limit, self._last_taken + GIVE_UP_S):
                return False
            time.sleep(FIRST_WAIT_S)
        return True


def _closed(timeout_s: float) -> bool:
    """Wait for the step to close its end of the pipe."""
    readable, _, _ = select.select([sys.stdin.fileno()], [], [], timeout_s)
    return bool(readable) and not os.read(sys.stdin.fileno(), 1)


if __name__ == "__main__":
    code = main()
    if code == DELIVERED:
        logging.shutdown()
        os._exit(code)  # mlflow would wait a second for threads that have nothing left to do
    sys.exit(code)
