"""Processes that run programs nobody has read, from the outside; :mod:`progrpo.rewards.code.inside` is the inside."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import sysconfig
import time
from functools import cache
from importlib import util
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from progrpo.errors import ConfigError
from progrpo.rewards.code import inside
from progrpo.rewards.code.cases import ProblemTests

ISOLATION_VARIABLE = "PROGRPO_CODE_ISOLATION"
Isolation = Literal["full", "pod"]

STARTUP_S = 60.0
MAX_OUTPUT = 16 << 20  # bytes a program may print for one case
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class SandboxError(Exception):
    """A sandbox that did not start or was ended from outside: it says nothing about the program."""


def isolation() -> Isolation:
    """Return how programs are isolated on this machine, from the environment.

    ``full`` (default): seccomp and Landlock. ``pod``: seccomp only; programs can read what this process's user can
    read, so the pod must hold nothing that they may not.

    Raises:
        ConfigError: another value.
    """
    match os.environ.get(ISOLATION_VARIABLE, "full"):
        case "full":
            return "full"
        case "pod":
            return "pod"
        case other:
            raise ConfigError(f"{ISOLATION_VARIABLE} is {other!r}. Allowed: full, pod (a pod that holds no secrets).")


class Sandbox:
    """One sandboxed process, a context manager. Not thread-safe.

    Args:
        kind: ``stdin``: runs the program for each case anew; ``call``: loads it once and calls its function; ``check``:
            runs ``tests.check``, with a function that lives elsewhere.
        tests: limits, and the name of the function.
        program: the text of the program; of no use to ``check``.
        how: see :func:`isolation`.

    Raises:
        SandboxError: the process does not start, on entering.
        ConfigError: this machine cannot isolate programs, likewise.
    """

    def __init__(
        self, kind: Literal["stdin", "call", "check"], tests: ProblemTests, program: str = "", how: Isolation = "full"
    ) -> None:
        self.case_wall_s = 2.0 * tests.time_limit_s + 1  # a program that waits is ended too
        cases = 1 if kind == "stdin" else max(1, len(tests.inputs))
        readable, listable = library_paths()
        self._job = {
            "kind": kind,
            "program": program,
            "function": tests.function,
            "check": tests.check,
            "cpu_s": tests.time_limit_s * cases,
            "wall_s": self.case_wall_s,
            "memory_mb": tests.memory_limit_mb,
            "output_bytes": MAX_OUTPUT,
            "restrict_files": how == "full",
            "readable": readable,
            "listable": listable,
        }

    def __enter__(self) -> Sandbox:
        # Neither site-packages nor the working directory, and no environment but what makes sets keep their order.
        command = [sys.executable, "-S", "-s", "-P", "-B", "-X", "utf8", os.fspath(Path(inside.__file__))]
        self._process = subprocess.Popen(
            command,
            env=_ENVIRONMENT,
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._replies = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._requests, False)
        try:
            reply = self.ask(self._job, STARTUP_S)
            if reply is None:
                raise SandboxError(f"a sandbox did not start within {STARTUP_S:g} s")
            if "refused" in reply:
                raise ConfigError(cannot_isolate(reply["refused"]))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill every process of the sandbox: a program can leave neither its session nor its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def ask(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any] | None:
        """Send a message and return the reply; None if the process ended or takes longer than ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        return self.read(deadline) if self.write(message, deadline) else None

    def write(self, message: dict[str, Any], deadline: float) -> bool:
        """Send a message; False if the process does not take it by the deadline, of the monotonic clock."""
        data = memoryview(inside.pack(message))
        while data:
            if not _is_ready(self._requests, select.POLLOUT, deadline):
                return False
            try:
                data = data[os.write(self._requests, data) :]
            except BrokenPipeError:
                return False
        return True

    def read(self, deadline: float) -> dict[str, Any] | None:
        """Return the next reply; None if there is none by the deadline, or none that can be understood."""
        header = self._read(4, deadline)
        if header is None or (size := struct.unpack(">I", header)[0]) > inside.MAX_FRAME:
            return None
        body = self._read(size, deadline)
        try:
            reply = None if body is None else json.loads(body)
        except (ValueError, RecursionError):
            return None
        return reply if isinstance(reply, dict) else None

    def _read(self, size: int, deadline: float) -> bytes | None:
        parts = []
        while size:
            if not _is_ready(self._replies, select.POLLIN, deadline):
                return None
            part = os.read(self._replies, min(size, 1 << 20))
            if not part:
                return None
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def _is_ready(fd: int, event: int, deadline: float) -> bool:
    """Wait for a file; not with select, which takes no file above 1023, and an engine has many open."""
    poll = select.poll()
    poll.register(fd, event)
    return bool(poll.poll(1000 * max(0.0, deadline - time.monotonic())))


def cannot_isolate(reason: str) -> str:
    """Return what to tell a user whose machine does not do."""
    return (
        f"the code task runs programs that a model wrote, and this machine cannot isolate them ({reason}). It needs "
        f"Linux on x86-64 or arm64 with seccomp and, from 5.13, Landlock. Name a server that runs them in "
        f"PROGRPO_SANDBOX_URL (python -m progrpo.rewards.code.server), or, in a pod without secrets, set "
        f"{ISOLATION_VARIABLE}=pod to do without Landlock."
    )


@cache
def library_paths() -> tuple[list[str], list[str]]:
    """Return what programs may read, and what they may only list: Python's libraries, those of the system, numpy."""
    own = [sysconfig.get_path("stdlib"), f"{sys.base_prefix}/lib", f"{sys.base_exec_prefix}/lib"]  # not a venv's
    readable, listable = [*map(Path, own), Path("/usr/lib"), Path("/usr/lib64"), Path("/usr/share/zoneinfo")], []
    numpy = util.find_spec("numpy")
    if numpy is not None and numpy.submodule_search_locations:
        package = Path(numpy.submodule_search_locations[0])
        listable = [package.parent]
        readable += [package, package.parent / "numpy.libs"]
    return list(dict.fromkeys(str(path.resolve()) for path in readable)), [str(path.resolve()) for path in listable]
