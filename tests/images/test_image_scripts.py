"""What guards the images, without Docker: the check of the trainer's, and the lock files against the project's."""

import os
import re
import subprocess
import sys
from importlib import metadata
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
    core = {re.match(r"[a-z0-9-]+", text)[0] for text in metadata.requires("progrpo") if "extra ==" not in text}
    # Instead of mlflow, its client; transformers reads configurations and tokenizers.
    assert names == core - {"mlflow", "scipy"} | {"mlflow-skinny", "transformers"}


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
