"""The images as they are built: what they hold, and that they run as a cluster runs them."""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from docker_engine import REPOSITORY, docker_engine, images  # noqa: F401 - fixtures
from progrpo import __version__

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

NAMES = ("progrpo-cpu", "progrpo-gpu")
MAX_CPU_BYTES = 450_000_000
# OpenShift's arbitrary user and the restricted Pod Security Standard.
RESTRICTED = ["--user", "12345:0", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
RESTRICTED += ["--network", "none", "--tmpfs", "/tmp", "--tmpfs", "/cache:mode=1777"]


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture
def inside(docker_engine, images):  # noqa: F811
    """Run a command in a container of an image and return what it printed."""

    def run(name: str, *command: str, options=RESTRICTED) -> str:
        done = docker_engine.docker("run", "--rm", *options, images[name], *command, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture
def described(docker_engine, images):  # noqa: F811
    """Return what Docker knows of an image."""

    def inspect(name: str) -> dict:
        (content,) = json.loads(docker_engine.docker("image", "inspect", images[name]).stdout)
        return content

    return inspect


def test_the_light_image_is_light(described, inside):
    size = described("progrpo-cpu")["Size"]
    assert size <= MAX_CPU_BYTES, f"{size / 1e6:.0f} MB"
    probe = "import importlib.util as u; print([n for n in ('torch', 'scipy', 'pandas', 'trl') if u.find_spec(n)])"
    assert inside("progrpo-cpu", "python3", "-c", probe) == "[]\n"


def test_configuration_and_labels(name, described):
    config = described(name)["Config"]
    assert not config["Entrypoint"]
    assert config["User"] == "65532:0"
    labels = config["Labels"]
    assert labels["org.opencontainers.image.version"] == __version__
    revision = labels["org.opencontainers.image.revision"]
    assert subprocess.run(["git", "merge-base", "--is-ancestor", revision, "HEAD"], cwd=REPOSITORY).returncode == 0
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.base.name"]


def test_any_user_and_a_read_only_root(name, inside):
    script = "id -u; touch /cache/x /tmp/x && ! touch /opt/progrpo/x 2>/dev/null && progrpo --version"
    assert inside(name, "sh", "-c", script) == f"12345\nprogrpo {__version__}\n"


def test_home_is_writable_where_the_root_is(name, inside):
    options = ["--user", "12345:0", "--network", "none"]
    assert inside(name, "sh", "-c", "touch ~/x /cache/x && echo $HOME", options=options) == "/home/progrpo\n"


def test_every_cache_goes_to_the_volume(name, described):
    environment = dict(entry.split("=", 1) for entry in described(name)["Config"]["Env"])
    caches = {"HF_HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME"}
    if name == "progrpo-gpu":
        caches |= {"VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"}
    assert {key for key, value in environment.items() if value.startswith("/cache")} == caches


def test_a_user_without_an_entry_has_a_name(name, inside):
    assert inside(name, "python3", "-c", "import getpass; print(getpass.getuser())") == "progrpo\n"


def test_kfp_runs_without_its_dependencies(name, inside):
    command = "_KFP_RUNTIME=true python3 -m kfp.dsl.executor_main --help"
    assert "--executor_input" in inside(name, "sh", "-c", command)


def test_nothing_of_the_build_is_left(name, inside):
    script = "import shutil, importlib.util as u; print([n for n in ('pip', 'gcc', 'cc', 'make', 'strip', 'uv')"
    script += " if shutil.which(n)], u.find_spec('pip'))"
    assert inside(name, "python3", "-c", script) == "[] None\n"
    assert inside(name, "sh", "-c", "ls -d /build /root/.cache /tmp/* 2>/dev/null || true") == ""


def test_everything_is_of_one_time(name, inside):
    script = "find /opt/progrpo/lib -newermt 2000-01-02 -o ! -newermt 1999-12-30 | head -3; ls /opt/progrpo/lib"
    assert re.fullmatch(r"python3\.\d+\n", inside(name, "sh", "-c", script))


def test_the_bill_of_materials_is_complete(name, inside):
    content = json.loads(inside(name, "cat", "/opt/progrpo/sbom.cdx.json"))
    assert content["bomFormat"] == "CycloneDX"
    purls = {component["purl"] for component in content["components"]}
    listed = inside(name, "python3", "-c", "from importlib import metadata as m\n"
                    "for d in m.distributions(): print(d.metadata['Name'], d.version)")  # fmt: skip
    for line in listed.splitlines():
        package, version = line.split()
        assert f"pkg:pypi/{re.sub(r'[-_.]+', '-', package).lower()}@{version}".replace("+", "%2B") in purls
    assert f"pkg:pypi/progrpo@{__version__}" in purls
    assert any(purl.startswith("pkg:deb/debian/libc6@") for purl in purls)


def test_the_image_holds_what_the_lock_says(name, inside):
    locked = {}
    for line in (REPOSITORY / "requirements.lock").read_text().splitlines():
        if match := re.match(r"([a-z0-9-]+)==([^ ]+)(?: ; (.*))?", line):
            locked.setdefault(match[1], set()).add(match[2])
    listed = inside(name, "python3", "-c", "from importlib import metadata as m\n"
                    "for d in m.distributions(): print(d.metadata['Name'].lower(), d.version)")  # fmt: skip
    for line in listed.splitlines():
        package, version = line.split()
        if package != "progrpo":
            assert version.partition("+")[0] in locked[re.sub(r"[-_.]+", "-", package)], line


def test_the_command_works_in_the_light_image(inside):
    assert "smoke " in inside("progrpo-cpu", "progrpo", "presets")
    compiled = inside("progrpo-cpu", "sh", "-c", "progrpo compile --all --output /tmp/compiled && ls /tmp/compiled")
    assert "compare-smoke.yaml" in compiled


def test_every_module_of_components_and_commands_imports_in_the_light_image(inside):
    script = """
import importlib, pkgutil, progrpo_components, progrpo_pipelines
for package in (progrpo_components, progrpo_pipelines):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
"""
    inside("progrpo-cpu", "python3", "-c", script)


def test_a_checkpoint_is_imported_and_cast_without_torch(inside):
    config = '{"uri": "embedded://countdown-sft", "dtype": "bfloat16"}'
    script = f"echo '{config}' > /tmp/c.json && progrpo step import-checkpoint --config /tmp/c.json --output /tmp/c"
    assert inside("progrpo-cpu", "sh", "-c", script).startswith("/tmp/c: checkpoint ")


def test_the_trainer_image_has_one_torch(inside):
    probe = "import torch; print(torch.__version__)"
    assert inside("progrpo-gpu", "python3", "-c", probe).startswith(metadata.version("torch").partition("+")[0])


def test_hadolint_finds_nothing():
    for name in NAMES:
        command = [str(Path(sys.executable).with_name("hadolint")), str(REPOSITORY / "images" / name / "Dockerfile")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
