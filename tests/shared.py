"""What a test session makes once for all its workers: services that run, images, and runs that take a minute.

pytest-xdist's workers are processes, and a session's fixture is made in each. What is dear is made by the first worker
that asks for it, under a lock in a folder that all of them know, and described to the others by a JSON file there
(https://pytest-xdist.readthedocs.io/en/stable/how-to.html#making-session-scoped-fixtures-execute-only-once). The
process that runs the session makes the folder, and stops what was started, when the tests have ended; so nothing is
left by a worker that died either.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

_FOLDER = "PROGRPO_TESTS_SHARED"  # workers inherit it
_GRACE_S = 30


def begin() -> None:
    """Make the folder of this session."""
    folder = Path(tempfile.mkdtemp(prefix="progrpo-tests-"))
    folder.chmod(0o711)  # PostgreSQL runs as another user
    os.environ[_FOLDER] = str(folder)


def end() -> None:
    """Stop every service that was started, the last one first, and delete the folder."""
    folder = Path(os.environ.pop(_FOLDER))
    for record in sorted(folder.glob("*.service"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        _stop(int(record.stem), int(record.read_text()))
    shutil.rmtree(folder, ignore_errors=True)


def made_once(name: str, make: Callable[[Path], Any]) -> Any:
    """Return what ``make`` returns for the first who asks, in whichever worker.

    Args:
        name: of the thing; unique in the session.
        make: gets an empty folder of its own, which stays until the session ends; returns what JSON can hold.

    Raises:
        pytest.fail.Exception: ``make`` failed, now or for an earlier test: it is not tried again.
    """
    folder = Path(os.environ[_FOLDER])
    made, failed = folder / f"{name}.json", folder / f"{name}.failed"
    with FileLock(folder / f"{name}.lock"):
        if failed.exists():
            pytest.fail(f"{name} could not be made for an earlier test: {failed.read_text()}")
        if not made.exists():
            own = folder / name
            own.mkdir()
            try:
                made.write_text(json.dumps(make(own)))
            except (Exception, pytest.fail.Exception) as error:
                failed.write_text(str(error))
                raise
        return json.loads(made.read_text())


def start_service(
    command: Sequence[str], log: Path, *, stop: signal.Signals = signal.SIGKILL, **options: Any
) -> subprocess.Popen[bytes]:
    """Start a process that runs until the session ends, in a process group of its own.

    Args:
        command: program and arguments.
        log: where its output goes.
        stop: the signal that ends it; whatever is left of the group after that is killed.
        options: of ``subprocess.Popen``.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, **options)
    (Path(os.environ[_FOLDER]) / f"{process.pid}.service").write_text(str(int(stop)))
    return process


def _stop(pid: int, signum: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signum)
    deadline = time.monotonic() + _GRACE_S
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _runs(pid: int) -> bool:
    with suppress(ChildProcessError):  # a worker's, which has ended
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
