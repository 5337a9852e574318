"""The air-gap bundle for real: small images of a Docker Engine through a bundle into a registry, and back out of it."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from charts.helm import ROOT, load_values, pods, render
from charts.oci_registry import find_registry, running_registry
from docker_engine import Engine, docker_engine  # noqa: F401 - a fixture

_SPEC = importlib.util.spec_from_file_location("airgap_bundle", ROOT / "scripts" / "airgap_bundle.py")
assert _SPEC is not None
assert _SPEC.loader is not None
airgap = sys.modules["airgap_bundle"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(airgap)

CHART = "progrpo-dev"
PARTS = ("mlflow", "postgresql", "s3")
SOURCE = "localhost/airgap-test"


def test_every_image_of_the_charts_is_found():
    """What a default render needs, the pipelines' images too."""
    found = airgap.find_images({chart: {} for chart in airgap.CHARTS})
    references = {image.reference for image in found}
    for chart in airgap.CHARTS:
        used = {container["image"] for pod in pods(render(chart).manifests) for container in pod.containers}
        assert used <= references, chart
    compiled = "".join(path.read_text() for path in (ROOT / "pipelines" / "compiled").glob("*.yaml"))
    assert set(re.findall(r"image: (\S+)", compiled)) <= references
    shared = next(image for image in found if "progrpo-cpu" in image.reference)
    assert {chart for chart, _ in shared.places} == {"progrpo", "progrpo-serve"}


def test_a_part_that_is_off_needs_no_image():
    found = airgap.find_images({CHART: {"s3": {"enabled": False}, "postgresql": {"enabled": False}}})
    assert [image.places for image in found] == [((CHART, "mlflow.image"),)]


@pytest.fixture(scope="module")
def docker(docker_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:  # noqa: F811
    """An engine with an image for each part; the command finds it by DOCKER_HOST."""
    directory = tmp_path_factory.mktemp("tars")
    for part in PARTS:
        with tarfile.open(directory / part, "w") as tar:
            member = tarfile.TarInfo("file")
            content = part.encode() * 50_000
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        docker_engine.docker("import", str(directory / part), f"{SOURCE}/{part}:1.0")
    saved = os.environ.get("DOCKER_HOST")
    os.environ["DOCKER_HOST"] = docker_engine.host
    yield docker_engine
    docker_engine.docker("image", "rm", "--force", *(f"{SOURCE}/{part}:1.0" for part in PARTS), check=False)
    os.environ.pop("DOCKER_HOST")
    if saved is not None:
        os.environ["DOCKER_HOST"] = saved


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Values that name the small images."""
    path = tmp_path_factory.mktemp("values") / "values.yaml"
    images = {
        part: {"image": {"registry": "localhost", "repository": f"airgap-test/{part}", "tag": "1.0", "digest": ""}}
        for part in PARTS
    }
    path.write_text(yaml.safe_dump(images))
    return path


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, require_all: bool) -> Iterator[str]:
    program = find_registry()
    if program is None:
        reason = "docker-registry is not installed (Debian: docker-registry)"
        (pytest.fail if require_all else pytest.skip)(reason)
    with running_registry(str(program), tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture(scope="module")
def bundle(docker: Engine, values: Path, registry: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("bundle") / "bundle"
    arguments = ["--registry", f"{registry}/mirror", "--chart", CHART, "--values", f"{CHART}={values}"]
    assert airgap.main([*arguments, "--output", str(output)]) == 0
    return output


def test_a_dry_run_lists_everything_with_its_size_and_writes_nothing(docker, values, tmp_path, capsys):
    arguments = ["--registry", "r.example/mirror", "--chart", CHART, "--values", f"{CHART}={values}", "--dry-run"]
    assert airgap.main([*arguments, "--output", str(tmp_path / "bundle")]) == 0
    shown = capsys.readouterr().out
    for part, size in zip(PARTS, ("300.0 kB", "500.0 kB", "100.0 kB"), strict=True):
        assert f"{SOURCE}/{part}:1.0" in shown
        assert f"-> r.example/mirror/airgap-test/{part}:1.0   {size}" in shown
    assert re.search(r"progrpo-dev-0\.1\.0\.tgz   \d+\.\d kB", shown)
    assert re.search(r"compare\.yaml   \d+\.\d kB", shown)
    assert "total     900.0 kB" in shown
    assert not list(tmp_path.iterdir())


def test_the_bundle_is_whole(bundle):
    listed = dict(reversed(line.split("  ")) for line in (bundle / "SHA256SUMS").read_text().splitlines())
    files = {str(p.relative_to(bundle)) for p in bundle.rglob("*") if p.is_file()} - {"SHA256SUMS"}
    assert listed.keys() == files
    assert {"load.sh", "images.tsv", "charts/progrpo-dev-0.1.0.tgz", "values/progrpo-dev.yaml"} <= files
    for name, digest in listed.items():
        assert hashlib.sha256((bundle / name).read_bytes()).hexdigest() == digest
    compiled = "".join(path.read_text() for path in (bundle / "pipelines").glob("*.yaml"))
    assert "/mirror/progrpo-cpu:" in compiled
    assert "localhost/" not in compiled


def test_an_existing_folder_is_left_alone(bundle, docker, values, capsys):
    before = {path: path.stat().st_mtime_ns for path in bundle.rglob("*")}
    arguments = ["--registry", "r.example", "--chart", CHART, "--values", f"{CHART}={values}"]
    assert airgap.main([*arguments, "--output", str(bundle)]) == 2
    assert "exists. Give another folder" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in bundle.rglob("*")} == before


def test_the_site_gets_what_was_packed(bundle, docker, registry):
    """Nothing but the bundle: the engine has forgotten the images, and every file comes back out of the registry."""
    docker.docker("image", "rm", "--force", *(f"{SOURCE}/{part}:1.0" for part in PARTS))
    done = subprocess.run([str(bundle / "load.sh")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    loaded = load_values(bundle / "loaded" / f"{CHART}.yaml")
    (chart,) = (bundle / "charts").glob("*.tgz")
    images = {container["image"] for pod in pods(render(chart, loaded).manifests) for container in pod.containers}
    assert len(images) == 3
    for image in images:
        name, _, digest = image.partition("@")
        part = name.rpartition("/")[2].partition(":")[0]
        assert name == f"{registry}/mirror/airgap-test/{part}:1.0"
        manifest = _get(registry, f"mirror/airgap-test/{part}/manifests/{digest}")
        assert f"sha256:{hashlib.sha256(manifest).hexdigest()}" == digest
        (layer,) = yaml.safe_load(manifest)["layers"]
        blob = _get(registry, f"mirror/airgap-test/{part}/blobs/{layer['digest']}")
        with tarfile.open(fileobj=io.BytesIO(blob)) as tar:
            assert tar.extractfile("file").read() == part.encode() * 50_000  # type: ignore[union-attr]
    again = subprocess.run([str(bundle / "load.sh")], capture_output=True, text=True, timeout=300)
    assert again.returncode == 0
    assert load_values(bundle / "loaded" / f"{CHART}.yaml") == loaded


def test_a_damaged_bundle_is_refused(bundle, docker, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    with (copy / "images.tsv").open("a") as file:
        file.write("images/other.tar\tother:1\tother\n")
    done = subprocess.run([str(copy / "load.sh")], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "images.tsv: FAILED" in done.stdout + done.stderr


def _get(registry: str, path: str) -> bytes:
    accept = "application/vnd.docker.distribution.manifest.v2+json"
    request = urllib.request.Request(f"http://{registry}/v2/{path}", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
        return bytes(response.read())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--values", "progrpo-dev=missing.yaml"], "write CHART=FILE with one of progrpo-dev and a file"),
        (["--docker", "no-such-docker"], "there is no command 'no-such-docker'"),
    ],
)
def test_wrong_arguments_say_what_to_do(arguments, message, capsys, tmp_path):
    output = ["--registry", "r.example", "--chart", CHART, "--output", str(tmp_path / "bundle")]
    assert airgap.main([*output, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_missing_images_are_named_with_the_command_that_gets_them(docker, capsys, tmp_path):
    assert airgap.main(["--registry", "r.example", "--chart", CHART, "--output", str(tmp_path / "bundle")]) == 2
    shown = capsys.readouterr().err
    assert "3 of 3 images are not on this machine" in shown
    assert "docker pull ghcr.io/mlflow/mlflow:v3.17.2-full" in shown
    assert not list(tmp_path.iterdir())
