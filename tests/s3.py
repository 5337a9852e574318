"""A real S3 server for tests: SeaweedFS, which checks signatures and rights, on free ports of 127.0.0.1."""

from __future__ import annotations

import json
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from shared import made_once, start_service

START_S = 60


@dataclass(frozen=True)
class S3Server:
    """Where the server listens, and the one user who may read and write."""

    endpoint: str
    access_key: str = "progrpo-test"
    secret_key: str = "progrpo-test-secret"

    @property
    def environment(self) -> dict[str, str]:
        """The AWS settings a program needs to use this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
        }

    @property
    def own_environment(self) -> dict[str, str]:
        """The same under names of ours, as the containers of the pipelines have it."""
        return {name.replace("AWS_", "PROGRPO_S3_"): value for name, value in self.environment.items()}

    def client(self) -> Any:
        """Return a boto3 client of that user."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
        )

    def new_bucket(self, name: str) -> str:
        """Make a bucket that no other test has; return its whole name, which starts with this one.

        Buckets are dear: SeaweedFS sets several volumes aside for each.
        """
        bucket = f"{name}-{uuid.uuid4().hex[:8]}"
        self.client().create_bucket(Bucket=bucket)
        return bucket


@pytest.fixture(scope="session")
def s3_server() -> S3Server:
    """The server of this session; tests make buckets of their own in it."""
    return S3Server(**made_once("s3", _start_shared))


@contextmanager
def running_s3() -> Iterator[S3Server]:
    """Start SeaweedFS outside a test session, and stop it at the end."""
    directory = Path(tempfile.mkdtemp(prefix="progrpo-s3-"))
    server, command, environment = _prepare(directory)
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        _wait(server, process, directory / "log")
        yield server
    finally:
        process.kill()  # a graceful stop takes ten seconds, and nothing here is kept
        process.wait()
        shutil.rmtree(directory, ignore_errors=True)


def _start_shared(directory: Path) -> dict[str, str]:
    server, command, environment = _prepare(directory)
    process = start_service(command, directory / "log", env=environment)
    _wait(server, process, directory / "log")
    return asdict(server)


def _prepare(directory: Path) -> tuple[S3Server, Sequence[str], Mapping[str, str]]:
    """Return a server to be, its command and its environment."""
    weed = Path(sys.executable).with_name("weed")
    if not weed.is_file():
        pytest.fail("SeaweedFS is missing: install progrpo[dev]")
    master, volume, filer, s3, metrics = free_ports(5)
    server = S3Server(f"http://127.0.0.1:{s3}")
    identity = {
        "name": "test",
        "credentials": [{"accessKey": server.access_key, "secretKey": server.secret_key}],
        "actions": ["Admin"],
    }
    (directory / "s3.json").write_text(json.dumps({"identities": [identity]}))
    command = [
        *(str(weed), "server", f"-dir={directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *("-s3", f"-s3.port={s3}", f"-s3.config={directory / 's3.json'}"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0"),  # off; fixed ports, which a second session finds taken
        *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", "-volume.max=1000"),
        *("-volume.preStopSeconds=0", "-master.volumeSizeLimitMB=64", "-master.telemetry=false"),
        f"-metricsPort={metrics}",
    ]
    return server, command, {"TMPDIR": str(directory), "HOME": str(directory)}


def free_ports(count: int) -> list[int]:
    """Return ports that are free, and so is each + 10000, which SeaweedFS takes for gRPC."""
    ports: list[int] = []
    with ExitStack() as held:
        for port in random.sample(range(20000, 50000), 1000):  # other test workers look for ports at the same time
            if len(ports) == count:
                break
            try:
                for number in (port, port + 10000):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", number))
            except OSError:
                continue
            ports.append(port)
    return ports


def _wait(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until an object can be written."""
    deadline = time.monotonic() + START_S
    client = server.client()
    while True:
        try:
            with suppress(client.exceptions.BucketAlreadyOwnedByYou):
                client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="ready", Body=b"")
            return
        except (BotoCoreError, ClientError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text(errors='replace')[-3000:]}") from None
            time.sleep(0.3)
