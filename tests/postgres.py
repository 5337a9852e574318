"""PostgreSQL for tests: a real server of its own, on a free port of 127.0.0.1, as a user who is not root."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from s3 import free_ports
from shared import made_once, start_service

START_S = 60
_FAST_SHUTDOWN = signal.SIGINT
_LIBRARIES = Path("/usr/lib/postgresql")


@dataclass(frozen=True)
class Postgres:
    """A running server with one user and one database."""

    port: int
    user: str = "progrpo"
    password: str = "progrpo-test-password"
    database: str = "mlflow"

    @property
    def uri(self) -> str:
        """SQLAlchemy's URI, with the driver that is installed."""
        return f"postgresql+psycopg://{self.user}:{self.password}@127.0.0.1:{self.port}/{self.database}"

    def query(self, sql: str) -> list[tuple[object, ...]]:
        """Run one statement and return its rows."""
        import psycopg

        parts = {"host": "127.0.0.1", "port": self.port, "user": self.user, "password": self.password}
        with psycopg.connect(dbname=self.database, **parts) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []


def find_postgres() -> Path | None:
    """Return the folder of the server's programs, the newest version's; None if it is not installed."""
    if (initdb := shutil.which("initdb")) is not None:
        return Path(initdb).parent
    found = sorted(_LIBRARIES.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


@contextmanager
def running_postgres(binaries: Path) -> Iterator[Postgres]:
    """Start a server outside a test session, and stop it and delete its data at the end."""
    directory = Path(tempfile.mkdtemp(prefix="progrpo-postgres-"))
    server, command, options = _prepare(directory, binaries)
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, **options)
    try:
        _create_database(server, process, directory / "log")
        yield server
    finally:
        process.send_signal(_FAST_SHUTDOWN)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(directory, ignore_errors=True)


def _start_shared(directory: Path, binaries: Path) -> int:
    server, command, options = _prepare(directory, binaries)
    process = start_service(command, directory / "log", stop=_FAST_SHUTDOWN, **options)
    _create_database(server, process, directory / "log")
    return server.port


def _prepare(directory: Path, binaries: Path) -> tuple[Postgres, Sequence[str], dict[str, Any]]:
    """Make the data of a server; return it, its command, and options of ``subprocess.Popen``."""
    # PostgreSQL refuses to run as root; Debian's package makes this user.
    owner = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
    if owner is not None:
        os.chown(directory, owner.pw_uid, owner.pw_gid)
    as_owner = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if owner else {}
    (port,) = free_ports(1)
    server = Postgres(port)
    data, password = directory / "data", directory / "password"
    password.write_text(server.password)
    password.chmod(0o644)
    command = [
        *(str(binaries / "initdb"), "-D", str(data), "-U", server.user, f"--pwfile={password}"),
        *("--auth=scram-sha-256", "--no-sync", "--locale=C.UTF-8", "--encoding=UTF8"),
    ]
    subprocess.run(command, check=True, capture_output=True, cwd="/", **as_owner)
    command = [
        *(str(binaries / "postgres"), "-D", str(data), "-p", str(port), "-h", "127.0.0.1"),
        *("-k", str(directory), "-c", "fsync=off"),
    ]
    return server, command, {"cwd": "/", **as_owner}


def _create_database(server: Postgres, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server answers, and make the database."""
    import psycopg

    deadline = time.monotonic() + START_S
    parts = {"host": "127.0.0.1", "port": server.port, "user": server.user, "password": server.password}
    while True:
        try:
            with psycopg.connect(dbname="postgres", autocommit=True, **parts) as connection:
                connection.execute(f'CREATE DATABASE "{server.database}"')
            return
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()[-3000:]}") from None
            time.sleep(0.1)


@pytest.fixture(scope="session")
def postgres(require_all: bool) -> Postgres:
    """The server of this session."""
    binaries = find_postgres()
    if binaries is None:
        reason = "PostgreSQL is not installed (Debian: postgresql)"
        pytest.fail(reason) if require_all else pytest.skip(reason)
    return Postgres(made_once("postgres", partial(_start_shared, binaries=binaries)))
