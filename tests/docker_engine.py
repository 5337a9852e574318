"""A real Docker Engine for tests, with a Debian base image made by debootstrap and the images of this repository.

Needs root, dockerd and debootstrap. All tests share one engine, which listens on a socket only and has no network of
its own; ``PROGRPO_DOCKER_ROOT`` names a directory that keeps its images from one session to the next.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shared import made_once, start_service

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
def docker_engine(require_all: bool) -> Engine:
    """The engine of this session."""
    missing = [program for program in ("dockerd", "docker", "debootstrap") if shutil.which(program) is None]
    if missing or os.getuid() != 0:
        reason = f"needs root and {', '.join(missing or ['nothing else'])}: apt-get install docker.io debootstrap"
        pytest.fail(reason) if require_all else pytest.skip(reason)
    kept = os.environ.get("PROGRPO_DOCKER_ROOT")
    return Engine(**made_once("docker", lambda own: _start(Path(kept) if kept else own)))


@pytest.fixture(scope="session")
def images(docker_engine: Engine) -> dict[str, str]:
    """Both images, built from this working tree; the trainer's as for a machine without a GPU."""

    def build(folder: Path) -> dict[str, str]:
        _make_bases(docker_engine, folder)
        return {name: build_image(docker_engine, name) for name in ("progrpo-cpu", "progrpo-gpu")}

    return made_once("images", build)


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


def _is_up(engine: Engine) -> bool:
    return engine.docker("version", check=False).returncode == 0


def _start(root: Path) -> dict[str, str]:
    """Start an engine in this folder; return the fields of its :class:`Engine`."""
    root.mkdir(parents=True, exist_ok=True)
    engine = Engine(f"unix://{root}/docker.sock")
    if _is_up(engine):
        raise RuntimeError(f"another session has an engine in {root}; give another PROGRPO_DOCKER_ROOT.")
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
    log = root / "dockerd.log"
    process = start_service(["dockerd", "--config-file", str(root / "daemon.json")], log, stop=signal.SIGTERM)
    deadline = time.monotonic() + START_S
    while not _is_up(engine):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"dockerd did not start:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.3)
    return {"host": engine.host}


def _make_bases(engine: Engine, scratch: Path) -> None:
    """Import Debian 12 with Python: one with strip to build in, one without to build on."""
    tars = {BASE: _CACHE / "base-bookworm-1.tar", BUILDER: _CACHE / "builder-bookworm-1.tar"}
    for image, tar in tars.items():
        if engine.docker("image", "inspect", image, check=False).returncode == 0:
            continue
        if not tar.is_file():
            _debootstrap(scratch, tars)
        engine.docker("import", str(tar), image)


def _debootstrap(scratch: Path, tars: dict[str, Path]) -> None:
    _CACHE.mkdir(parents=True, exist_ok=True)
    system = scratch / "system"
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
