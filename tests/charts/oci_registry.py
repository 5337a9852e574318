"""A real OCI registry for tests: Debian's docker-registry on a free port of 127.0.0.1, without TLS."""

from __future__ import annotations

import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from s3 import free_ports

START_S = 30


def find_registry() -> str | None:
    """Return the program, None if it is not installed."""
    return shutil.which("docker-registry")


@contextmanager
def running_registry(program: str, directory: Path) -> Iterator[str]:
    """Serve a registry that keeps its data in ``directory``; yields its ``host:port``."""
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    config = directory / "registry.yml"
    config.write_text(
        yaml.safe_dump(
            {
                "version": 0.1,
                "log": {"level": "warn", "accesslog": {"disabled": True}},
                "storage": {"filesystem": {"rootdirectory": str(directory / "data")}},
                "http": {"addr": address},
            }
        )
    )
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", str(config)], stdout=log, stderr=log)
    try:
        _wait(address, process, directory / "log")
        yield address
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(f"http://{address}/v2/", timeout=1):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"docker-registry did not start:\n{log.read_text()[-3000:]}") from None
            time.sleep(0.1)
