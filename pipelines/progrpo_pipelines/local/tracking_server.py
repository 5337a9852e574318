"""An MLflow server on the database of local runs, for tasks in containers, which cannot open the file themselves."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from progrpo.errors import StorageError
from progrpo_components.tracking import SWITCH

LOG_NAME = "mlflow.log"
_START_S = 180.0  # 8 s, 26 s where it makes the tables first; more on a busy machine


def is_tracked(environment: Mapping[str, str]) -> bool:
    """Whether tracking is on."""
    return environment.get(SWITCH, "").lower() != "off"


def needs_server(environment: Mapping[str, str]) -> bool:
    """Whether tracking is on and goes to a file, which only this machine's processes can open."""
    return is_tracked(environment) and environment.get("MLFLOW_TRACKING_URI", "").startswith("sqlite:///")


def artifacts_of(database_uri: str) -> Path:
    """Return where the artifacts of a sqlite database of runs lie: beside it."""
    return Path(database_uri.removeprefix("sqlite:///")).absolute().with_name("mlartifacts")


@contextmanager
def tracking_server(environment: Mapping[str, str], directory: Path) -> Iterator[dict[str, str]]:
    """Start the server if one is needed, and stop it again; it is in the process group of whoever calls.

    Artifacts do not go through it: their files are on this machine, where a run without containers puts them too.

    Args:
        environment: of the run.
        directory: of the run, where the log goes.

    Yields:
        What tasks have to be told; empty without a server.

    Raises:
        StorageError: it did not start.
    """
    if not needs_server(environment):
        yield {}
        return
    uri = environment["MLFLOW_TRACKING_URI"]
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", uri, "--default-artifact-root", artifacts_of(uri).as_uri()]
    command += ["--no-serve-artifacts"]
    with (directory / LOG_NAME).open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        )
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, directory / LOG_NAME)
        yield {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    finally:
        process.terminate()
        process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310 # our own server
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise StorageError(
                    f"the MLflow server for the containers did not start; see {log}. Set MLFLOW_TRACKING_URI to a "
                    f"server that runs, or {SWITCH}=off."
                ) from None
            time.sleep(0.2)
