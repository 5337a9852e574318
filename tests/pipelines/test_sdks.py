"""The packages for each backend, read by the KFP SDK of its version and by its protocol buffers.

Each SDK has an environment of its own below the user's cache directory, installed once from the package index:
``make test-kfp-sdks``.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from progrpo_pipelines.packaging.target import BACKENDS
from shared import made_once

SDKS = {"2.15": "2.15.2", "2.16": "2.16.1", "2.17": "2.17.0"}
LOADER = Path(__file__).parents[1] / "kfp_sdks" / "load.py"
SWITCH = "PROGRPO_KFP_SDKS"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", autouse=True)
def _wanted(require_all):
    if not require_all and os.environ.get(SWITCH) != "1":
        pytest.skip(f"installs three KFP SDKs: make test-kfp-sdks, or {SWITCH}=1")


@pytest.fixture(scope="module")
def packages():
    """Paths of every package for each backend.

    By processes of their own: kfp asks for the call stack at every setting of a task, which takes minutes in a process
    that has imported as much as one of pytest.
    """

    def compile_all(folder):
        for backend in BACKENDS:
            command = [sys.executable, "-m", "progrpo_pipelines.cli", "compile", "--all", "--backend", backend]
            subprocess.run([*command, "--output", str(folder / backend)], check=True, capture_output=True, timeout=300)
        return {backend: sorted(map(str, (folder / backend).iterdir())) for backend in BACKENDS}

    return made_once("kfp-packages", compile_all)


@pytest.fixture(scope="module")
def sdks():
    """The Python of each backend's SDK."""
    return made_once("kfp-sdks", lambda folder: {backend: str(python_of(SDKS[backend])) for backend in BACKENDS})


def python_of(version):
    """Return the Python of an environment with this SDK and, which pip would not choose, its protocol buffers."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = cache / "progrpo" / "kfp-sdks" / f"{version}-py{sys.version_info.major}{sys.version_info.minor}"
    python, stamp = directory / "bin" / "python", directory / ".installed"
    if not stamp.exists():
        uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        environment = {**os.environ, "UV_FIND_LINKS": os.environ.get("PIP_FIND_LINKS", "")}
        pins = [f"{name}=={version}" for name in ("kfp", "kfp-kubernetes", "kfp-pipeline-spec")]
        for command in (
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(directory)],
            [uv, "pip", "install", "--quiet", "--python", str(python), *pins],
        ):
            subprocess.run(command, check=True, env=environment, timeout=400)
        stamp.touch()
    return python


def problems(python, paths):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [python, str(LOADER), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return {Path(path).name: problem for path, problem in json.loads(done.stdout.splitlines()[-1]).items()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_package_for_a_backend_is_taken_by_its_sdk(packages, sdks, backend):
    found = problems(sdks[backend], packages[backend])
    assert len(found) == len(packages[backend])
    assert found == dict.fromkeys(found, "")


@pytest.mark.parametrize(("backend", "field"), [("2.15", "literals"), ("2.16", "activeDeadlineSeconds")])
def test_a_package_for_a_newer_backend_is_refused(packages, sdks, backend, field):
    """Else the test above could not fail."""
    newer = BACKENDS[BACKENDS.index(backend) + 1]
    for problem in problems(sdks[backend], packages[newer][:1]).values():
        assert "ParseError" in problem
        assert field in problem
