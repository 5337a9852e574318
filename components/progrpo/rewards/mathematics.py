"""Verifier of the ``math`` task: math-verify in worker processes.

math-verify calls sympy, which can run for minutes or take all memory on one expression, and its own timeout needs the
main thread. So it runs in processes of its own, one JSON line a question, and one that takes too long is killed.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import queue
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata, util
from typing import Any, ClassVar, Literal

from pydantic import Field

from progrpo.errors import ConfigError
from progrpo.rewards.task import Task
from progrpo.rewards.verdict import UNSCORED, Verdict

NUM_WORKERS = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
STARTUP_S = 120.0
"""Wall time for a worker to import math-verify and sympy: 2 s where the disk is warm."""

try:
    VERSION = f"math-verify {metadata.version('math-verify')}"
except metadata.PackageNotFoundError:
    VERSION = "math-verify, not installed"


class Worker:
    """One process that verifies; started on first use, replaced after a timeout or a crash. Not thread-safe."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def verify(self, answer: str, completion: str, timeout_s: float) -> Verdict:
        """Verify one completion; unscored if the process takes longer than ``timeout_s`` or ends.

        Raises:
            ConfigError: the process does not even start. Unscored, every completion would silently count for nothing.
        """
        if self._process is None:
            self._start()
        reply = self._ask([answer, completion], timeout_s)
        if reply is None:
            self.close()
            return UNSCORED
        return Verdict(correct=reply["correct"], answer=reply["answer"], scored=reply["scored"])

    def close(self) -> None:
        """Kill the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> None:
        self._buffer = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "progrpo.rewards.math_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # A signal to stop goes to the whole group. The training step in progress still needs its verdicts, or it
            # would end, and be kept, with completions unscored. Without us the process ends as its input does.
            start_new_session=True,
        )
        if self._ask(["1", "1"], STARTUP_S) is None:
            self.close()
            raise ConfigError(
                f"the math verifier does not start within {STARTUP_S:g} s. Run `{sys.executable} -m "
                f"progrpo.rewards.math_worker` to see why; it needs math-verify and memory for sympy."
            )

    def _ask(self, question: list[str], timeout_s: float) -> dict[str, Any] | None:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return None
        deadline = time.monotonic() + timeout_s
        readable = select.poll()  # select.select takes no descriptor above 1023
        readable.register(self._process.stdout, select.POLLIN)
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not readable.poll(math.ceil(1000 * left)):
                return None
            block = os.read(self._process.stdout.fileno(), 65536)
            if not block:
                return None
            self._buffer += block
        line, _, self._buffer = self._buffer.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply


_lock = threading.Lock()
_workers: queue.LifoQueue[Worker] = queue.LifoQueue()
"""Idle workers, the last used on top: a small batch starts no more processes than it needs."""


class Math(Task):
    """Equal in value, as math-verify sees it."""

    type: Literal["math"] = "math"
    timeout_s: float = Field(10.0, gt=0, description="wall time for one completion; a slower one is not scored; ours")
    version: ClassVar[str] = VERSION
    answers: ClassVar[str] = "a number, an expression or LaTeX"

    def verify_all(self, items: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Verify on all workers."""
        return verify_all(items, self.timeout_s)

    def unreadable(self, answers: Collection[str]) -> dict[str, str]:
        """Ask math-verify for what is no plain number."""
        asked = sorted(answer for answer in answers if not _NUMBER.fullmatch(answer))
        verdicts = self.verify_all([(answer, "") for answer in asked]) if asked else []
        refused = [answer for answer, verdict in zip(asked, verdicts, strict=True) if not verdict.scored]
        return dict.fromkeys(refused, "math-verify cannot read it")


def verify_all(items: Sequence[tuple[str, ...]], timeout_s: float) -> list[Verdict]:
    """Verify (right answer, completion) pairs on up to :data:`NUM_WORKERS` processes, which stay for the next call.

    Raises:
        ConfigError: math-verify is not installed or does not start.
    """
    if util.find_spec("math_verify") is None:
        raise ConfigError("the math task needs math-verify. Install progrpo[train].")
    with _lock:
        if _workers.empty():
            for _ in range(NUM_WORKERS):
                _workers.put(Worker())

        def verify_one(item: tuple[str, ...]) -> Verdict:
            worker = _workers.get()
            try:
                return worker.verify(item[0], item[1], timeout_s)
            finally:
                _workers.put(worker)

        with ThreadPoolExecutor(min(NUM_WORKERS, -(-len(items) // 16))) as threads:
            return list(threads.map(verify_one, items))


@atexit.register
def shutdown() -> None:
    """End the worker processes; a later call starts new ones."""
    while not _workers.empty():
        _workers.get_nowait().close()
