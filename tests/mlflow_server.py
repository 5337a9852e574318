"""A real ``mlflow server`` for tests, on a free port of 127.0.0.1."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from s3 import free_ports
from shared import start_service

START_S = 180  # with the tables of a new database, on a busy machine


@dataclass
class MLflowServer:
    """``mlflow server`` with one worker, in a working directory of its own; may be stopped and started again.

    Attributes:
        backend: ``--backend-store-uri``.
        artifacts: ``--artifacts-destination``, a directory or ``s3://``.
        environment: further variables, such as the store's credentials.
        options: further options, such as ``--app-name basic-auth``.
    """

    backend: str
    artifacts: str
    environment: Mapping[str, str] = field(default_factory=dict)
    options: Sequence[str] = ()
    port: int = 0
    root: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="progrpo-mlflow-")))
    _process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.port = self.port or free_ports(1)[0]

    @property
    def uri(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What it has printed."""
        return (self.root / "server.log").read_text(errors="replace")

    def start(self, health: str = "/health") -> None:
        """Start it and wait until it answers."""
        command, environment = self._command()
        with (self.root / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.root, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self._wait(health)

    def start_for_session(self, health: str = "/health") -> None:
        """Start it for all workers of a test session, until the session ends."""
        command, environment = self._command()
        self._process = start_service(command, self.root / "server.log", cwd=self.root, env=environment)
        self._wait(health)

    def _command(self) -> tuple[list[str], dict[str, str]]:
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--workers", "1", "--backend-store-uri", self.backend, "--artifacts-destination", self.artifacts),
            *self.options,
        ]
        own = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        return command, {**os.environ, **own, **self.environment}

    def _wait(self, health: str) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(OSError):
                if self.get(health):
                    return
            time.sleep(0.2)
        self.stop()
        raise AssertionError(f"mlflow server did not start:\n{self.log[-3000:]}")

    def get(self, path: str) -> bytes:
        """Return the body of a page."""
        with urllib.request.urlopen(f"{self.uri}{path}", timeout=30) as response:  # noqa: S310
            return bytes(response.read())

    def stop(self) -> None:
        """Kill it; its stores stay as they are."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def running_mlflow(
    backend: str, artifacts: str, *, environment: Mapping[str, str] | None = None, options: Sequence[str] = ()
) -> Iterator[MLflowServer]:
    """Start a server, and stop it at the end."""
    server = MLflowServer(backend, artifacts, environment or {}, options)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(server.root, ignore_errors=True)
