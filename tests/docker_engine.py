"""A real Docker Engine for tests, with a Debian base image made by debootstrap and the images of this repository.

Needs root, dockerd and debootstrap. Every test worker shares one engine, which listens on a socket only and has no
network of its own; ``PROGRPO_DOCKER_ROOT`` names a directory that keeps its images from one session to the next.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]
BASE, BUILDER = "localhost/progrpo-test/base:bookworm", "localhost/progrpo-test/builder:bookworm"
START_S = 60
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "progrpo-tests"
# As in Debian's own slim images.
_REMOVED = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "var/lib/apt/lists",
    "var/cache/apt",
)
_PACKAGES = "python3-minimal,libpython3-stdlib,ca-certificates,binutils"


@dataclass(frozen=True)
class Engine:
    """A running dockerd."""

    host: str
    root: Path

    @property
    def environment(self) -> dict[str, str]:
        """The variable that points a client to it, and the builder that it has."""
        return {"DOCKER_HOST": self.host, "DOCKER_BUILDKIT": "0"}

    def client(self) -> Any:
        """Return a client of it."""
        import docker

        return docker.DockerClient(base_url=self.host, timeout=300)

    def docker(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the docker command."""
        environment = {**os.environ, **self.environment}
        return subprocess.run(
            ["docker", *arguments], capture_output=True, text=True, check=check, timeout=600, env=environment
        )


@pytest.fixture(scope="session")
def docker_engine(tmp_path_factory, require_all) -> Iterator[Engine]:
    """Start dockerd, or join the one that another worker has started; the last one out stops it."""
    missing = [program for program in ("dockerd", "docker", "debootstrap") if shutil.which(program) is None]
    if missing or os.getuid() != 0:
        reason = f"needs root and {', '.join(missing or ['nothing else'])}: apt-get install docker.io debootstrap"
        pytest.fail(reason) if require_all else pytest.skip(reason)
    kept = os.environ.get("PROGRPO_DOCKER_ROOT")
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    # A socket's path holds 107 characters: not below pytest's temporary directory.
    root = Path(kept) if kept else Path("/tmp") / f"progrpo-docker-{shared.name}"
    root.mkdir(parents=True, exist_ok=True)
    engine = Engine(f"unix://{root}/docker.sock", root)
    users = root / "users"
    with _locked(root):
        count = int(users.read_text()) if users.is_file() and _is_up(engine) else 0
        if count == 0:
            _start(engine)
        users.write_text(str(count + 1))
    try:
        yield engine
    finally:
        with _locked(root):
            count = int(users.read_text()) - 1
            users.write_text(str(count))
            if count == 0:
                _stop(engine)
                if not kept:
                    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def images(docker_engine) -> dict[str, str]:
    """Build both images from this working tree; the trainer's as for a machine without a GPU."""
    with _locked(docker_engine.root):
        _make_bases(docker_engine)
        return {name: build_image(docker_engine, name) for name in ("progrpo-cpu", "progrpo-gpu")}


def build_image(engine: Engine, name: str, **settings: str) -> str:
    """Build one image with images/build.sh and return its tag."""
    environment = {
        **os.environ,
        **engine.environment,
        "PYTHON": sys.executable,
        "PYTHON_VERSION": "3.11",  # Debian 12's
        "BASE_IMAGE": BASE,
        "BUILDER_IMAGE": BUILDER,
        "REQUIREMENTS": "requirements-cpu.lock",
        **settings,
    }
    environment.pop("PYTHONPATH", None)
    command = [str(REPOSITORY / "images" / "build.sh"), name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    with (root / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_up(engine: Engine) -> bool:
    return engine.docker("version", check=False).returncode == 0


def _start(engine: Engine) -> None:
    root = engine.root
    settings = {
        "data-root": f"{root}/data",
        "exec-root": f"{root}/exec",
        "hosts": [engine.host],
        "pidfile": f"{root}/docker.pid",
        # No bridge and no packet filter: containers share the host's network or have none.
        **{"bridge": "none", "iptables": False, "ip-forward": False, "ip-masq": False},
        # What an engine inside a container may do, too.
        **{"storage-driver": "overlay2", "oom-score-adjust": 0, "exec-opts": ["native.cgroupdriver=cgroupfs"]},
        "default-ulimits": {"nofile": {"Name": "nofile", "Hard": 16384, "Soft": 16384}},
    }
    (root / "daemon.json").write_text(json.dumps(settings))
    (root / "docker.pid").unlink(missing_ok=True)
    with (root / "dockerd.log").open("wb") as log:
        process = subprocess.Popen(
            ["dockerd", "--config-file", str(root / "daemon.json")], stdout=log, stderr=log, start_new_session=True
        )
    deadline = time.monotonic() + START_S
    while not _is_up(engine):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"dockerd did not start:\n{(root / 'dockerd.log').read_text(errors='replace')[-3000:]}")
        time.sleep(0.3)


def _stop(engine: Engine) -> None:
    pidfile = engine.root / "docker.pid"
    pid = int(pidfile.read_text())
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 30
    while pidfile.exists() and time.monotonic() < deadline:  # its last act
        time.sleep(0.1)
    if pidfile.exists():
        os.kill(pid, signal.SIGKILL)


def _make_bases(engine: Engine) -> None:
    """Import Debian 12 with Python: one with strip to build in, one without to build on."""
    tars = {BASE: _CACHE / "base-bookworm-1.tar", BUILDER: _CACHE / "builder-bookworm-1.tar"}
    for image, tar in tars.items():
        if engine.docker("image", "inspect", image, check=False).returncode == 0:
            continue
        if not tar.is_file():
            _debootstrap(engine.root, tars)
        engine.docker("import", str(tar), image)


def _debootstrap(root: Path, tars: dict[str, Path]) -> None:
    _CACHE.mkdir(parents=True, exist_ok=True)
    system = root / "system"
    command = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", str(system)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for path in _REMOVED:
        for entry in (system / path).iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for cache in system.rglob("__pycache__"):
        shutil.rmtree(cache)
    _tar(system, tars[BUILDER])
    query = ["chroot", str(system), "dpkg-query", "-W", "-f", "${source:Package} ${Package}\n"]
    listed = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    names = [name for source, name in map(str.split, listed) if source == "binutils"]
    subprocess.run(["chroot", str(system), "dpkg", "--purge", *names], check=True, capture_output=True)
    _tar(system, tars[BASE])
    shutil.rmtree(system)


def _tar(system: Path, tar: Path) -> None:
    unfinished = tar.with_suffix(f".{os.getpid()}")
    subprocess.run(["tar", "--one-file-system", "-C", str(system), "-cf", str(unfinished), "."], check=True)
    unfinished.rename(tar)
