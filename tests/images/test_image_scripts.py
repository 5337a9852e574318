"""What guards the images, without Docker: the check of the trainer's, and the lock files against the project's."""

import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LOCKS = ("progrpo-cpu/requirements.lock", "progrpo-gpu/requirements.lock", "progrpo-gpu/requirements-cpu.lock")


def distribution(folder: Path, name: str, version: str) -> None:
    """Make a package that is metadata alone."""
    directory = folder / f"{name}-{version}.dist-info"
    directory.mkdir(parents=True)
    (directory / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def check(*paths: Path) -> subprocess.CompletedProcess[str]:
    own = os.environ.get("PYTHONPATH", "")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, paths), own])}
    command = [sys.executable, str(REPOSITORY / "images" / "check.py")]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_a_second_torch_fails_the_build(tmp_path):
    distribution(tmp_path, "torch", "9.9.0")
    done = check(tmp_path)
    assert done.returncode == 1
    assert "2 copies of torch; the base's must be the only one" in done.stderr


def test_another_vllm_than_the_tested_one_fails_the_build(tmp_path):
    distribution(tmp_path, "vllm", "0.1.0")
    done = check(tmp_path)
    assert done.returncode == 1
    assert re.search(r"vllm 0\.1\.0, but progrpo was tested with 0\.\d+\.\d+", done.stderr)


BACKEND = """
import zipfile

def build_wheel(folder, *_):
    name, info = "progrpo-0.0.1-py3-none-any.whl", "progrpo-0.0.1.dist-info"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as archive:
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: progrpo\\nVersion: 0.0.1\\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        archive.writestr(f"{info}/RECORD", "")
    return name
"""


def index(folder: Path, *wheels: tuple[str, str, str]) -> str:
    """Make a package index of wheels (name, version, what it requires), and return its URL."""
    for name, version, required in wheels:
        file = folder / name / f"{name}-{version}-py3-none-any.whl"
        file.parent.mkdir(parents=True)
        with zipfile.ZipFile(file, "w") as archive:
            requires = f"Requires-Dist: {required}\n" if required else ""
            metadata_ = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}"
            archive.writestr(f"{name}-{version}.dist-info/METADATA", metadata_)
            archive.writestr(f"{name}-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        (file.parent / "index.html").write_text(f'<a href="{file.name}">{file.name}</a>')
    return folder.as_uri()


@pytest.fixture
def build(tmp_path):
    """A copy of images/ with a lock file of two packages; return a function that builds, as far as Docker."""
    shutil.copytree(REPOSITORY / "images", tmp_path / "images")
    (tmp_path / "images/progrpo-gpu/requirements-cpu.lock").write_text("numpy==2.0.0\ntorch==2.13.0\n")
    (tmp_path / "backend.py").write_text(BACKEND)
    project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    (tmp_path / "pyproject.toml").write_text(f'{project}[project]\nname = "progrpo"\nversion = "0.0.1"\n')
    cuda = ("torch", "2.13.0", 'nvidia-cublas (==13.1) ; platform_system == "Linux"')
    own = index(tmp_path / "index", cuda, ("numpy", "2.0.0", ""), ("pip", "26.3", ""))

    def run(**settings: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        environment = {**kept, "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": own, "DOCKER": "echo"}
        environment |= {"PYTHON": sys.executable, "REQUIREMENTS": "requirements-cpu.lock", **settings}
        command = ["bash", str(tmp_path / "images" / "build.sh"), "progrpo-gpu"]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)

    return run


def test_torch_for_cuda_is_refused_where_no_cuda_comes_with_it(build):
    done = build()
    assert done.returncode == 1
    assert "torch-2.13.0-py3-none-any.whl is torch's build for CUDA" in done.stderr
    assert "Set TORCH_INDEX_URL to an index that has its build for CPUs" in done.stderr
    assert "build" not in done.stdout, "Docker was not asked"
    assert build().returncode == 1, "nothing is kept that would make a second try succeed"


def test_torch_for_cpus_comes_from_the_index_that_is_named(build, tmp_path):
    done = build(TORCH_INDEX_URL=index(tmp_path / "cpu", ("torch", "2.13.0+cpu", "")))
    assert done.returncode == 0, done.stderr
    wheels = {path.name.partition("-py3")[0] for path in tmp_path.glob("build/images/progrpo-gpu/wheels/*.whl")}
    assert wheels == {"torch-2.13.0+cpu", "numpy-2.0.0"}


def pins(path: Path) -> dict[tuple[str, str], str]:
    """Return (name, marker) -> version."""
    found = re.findall(r"^([a-z0-9-]+)==([^ \\\n]+)(?: ; ([^\\\n]*))?", path.read_text(), re.MULTILINE)
    return {(name, marker.strip()): version for name, version, marker in found}


@pytest.mark.parametrize("name", LOCKS)
def test_the_images_are_locked_as_the_project_is(name):
    project, image = pins(REPOSITORY / "requirements.lock"), pins(REPOSITORY / "images" / name)
    assert image
    assert {key: version for key, version in image.items() if project.get(key) != version} == {}


def test_on_vllm_nothing_is_added_that_it_brings():
    added = {name for name, _ in pins(REPOSITORY / "images" / LOCKS[1])}
    assert added.isdisjoint({"torch", "transformers", "numpy", "tokenizers", "safetensors", "protobuf", "pydantic"})
    assert {
        "trl",
        "accelerate",
        "peft",
        "datasets",
        "math-verify",
        "kfp",
        "kfp-pipeline-spec",
        "mlflow-skinny",
    } <= added


def test_the_light_image_asks_for_what_the_package_does():
    wanted = (REPOSITORY / "images" / "progrpo-cpu" / "requirements.in").read_text().splitlines()
    names = {line for line in wanted if line and not line.startswith("#")}
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = (project["optional-dependencies"][name] for name in ("submit", "compile", "cluster", "mlflow", "steps"))
    core = {re.match(r"[a-z0-9-]+", text)[0] for text in (*project["dependencies"], *itertools.chain(*extras))}
    # Instead of mlflow, its client; transformers reads configurations and tokenizers. The last two come with kfp.
    left_out = {"mlflow", "scipy", "progrpo", "kfp-pipeline-spec", "googleapis-common-protos"}
    assert names == core - left_out | {"mlflow-skinny", "transformers"}


@pytest.mark.parametrize(("version", "marker"), [("3.11", "<"), ("3.12", ">=")])
def test_the_wheels_are_chosen_for_the_python_of_the_base(version, marker):
    lock = (REPOSITORY / "images" / "progrpo-cpu" / "requirements.lock").read_text()
    numpy = re.search(rf"^(numpy==\S+) ; python_full_version {marker} '3.12'", lock, re.MULTILINE)[1]
    command = [sys.executable, str(REPOSITORY / "images" / "pins_for.py"), version]
    found = subprocess.run(command, input=lock, capture_output=True, text=True, check=True).stdout
    lines = [line.rstrip(" \\") for line in found.splitlines() if "==" in line]
    assert [line for line in lines if line.startswith("numpy==")] == [numpy]
    assert ";" not in found
    assert found.count("--hash=sha256:") > len(lines)
