"""charts/progrpo as users get it: packaged, pushed to and pulled from a registry, upgraded and rolled back.

``previous/`` holds the released versions. 0.1.0 is the first: it was frozen before its release, so that the next one is
tested against what people will have. There is no cluster here, so no upgrade was run; manifests are compared.
"""

import tarfile
from pathlib import Path

import helm_python
import pytest
import yaml

from charts.helm import CHARTS, key, load_values, render, values_files
from charts.oci_registry import find_registry, running_registry
from charts.upgrade import lost, refused

CHART = CHARTS / "progrpo"
PREVIOUS = sorted(Path(__file__).with_name("previous").glob("progrpo-[0-9]*.tgz"))
FILES = values_files("progrpo")
NEXT = "9.9.9"


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    destination = tmp_path_factory.mktemp("package")
    return Path(helm_python.package(str(CHART), destination=str(destination)))


@pytest.fixture(scope="module")
def next_version(tmp_path_factory):
    """The chart as it is, under the number and the images of a version to come."""
    destination = tmp_path_factory.mktemp("next")
    return Path(helm_python.package(str(CHART), destination=str(destination), version=NEXT, app_version=NEXT))


def test_the_package_holds_what_it_should(package):
    with tarfile.open(package) as archive:
        names = {name.removeprefix("progrpo/") for name in archive.getnames()}
        assert sum(member.size for member in archive.getmembers()) < 200_000
    assert {"Chart.yaml", "README.md", "values.yaml", "values.schema.json", "templates/NOTES.txt"} <= names
    templates = {str(path.relative_to(CHART)) for path in (CHART / "templates").rglob("*") if path.is_file()}
    assert {name for name in names if name.startswith("templates/")} == templates


def test_versions_agree():
    from progrpo import __version__

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__


def test_push_to_and_pull_from_a_registry(package, tmp_path, require_all):
    program = find_registry()
    if program is None:
        reason = "docker-registry is not installed (Debian: docker-registry)"
        if require_all:
            pytest.fail(reason)
        pytest.skip(reason)
    with running_registry(program, tmp_path) as address, helm_python.RegistryClient(plain_http=True) as client:
        client.push(str(package), f"oci://{address}/charts", plain_http=True)
        assert client.tags(f"{address}/charts/progrpo") == ["0.1.0"]
        pulled = tmp_path / "pulled"
        pulled.mkdir()
        client.pull(f"oci://{address}/charts/progrpo", version="0.1.0", destination=str(pulled), plain_http=True)
    (archive,) = pulled.iterdir()
    assert archive.read_bytes() == package.read_bytes()
    assert render(archive).manifests == render("progrpo").manifests


def test_there_is_a_previous_version():
    assert PREVIOUS


def accepts(chart, values):
    """Whether a version knows these values; a newer one may know more."""
    with helm_python.Chart.load(str(chart)) as loaded:
        try:
            loaded.validate_schema(values)
        except helm_python.HelmValuesError:
            return False
    return True


def as_known_to(chart, values):
    """Return the values without what came after 0.1.0: who makes the training runtime."""
    if accepts(chart, values):
        return values
    jobs = {name: value for name, value in values.get("trainJobs", {}).items() if name != "runtime"}
    return {**values, "trainJobs": jobs}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("previous", PREVIOUS, ids=lambda path: path.stem)
def test_upgrade_and_rollback(previous, path, next_version):
    values = load_values(path)
    known = as_known_to(previous, values)
    if not accepts(previous, known):
        values = known = {}  # the defaults of both
    old, new = render(previous, known), render(next_version, values, upgrade=True)
    assert refused(old.manifests, new.manifests) == []
    assert refused(new.manifests, old.manifests) == []
    assert lost(old.manifests, new.manifests) == []
    assert lost(new.manifests, old.manifests) == []


@pytest.mark.parametrize("previous", PREVIOUS, ids=lambda path: path.stem)
def test_values_of_the_previous_version_still_work(previous):
    """``helm upgrade --reuse-values`` brings the old defaults along."""
    with helm_python.Chart.load(str(previous)) as loaded:
        reused = loaded.merge_values({})
    assert accepts(CHART, reused)
    assert {key(m) for m in render("progrpo", reused).manifests} == {key(m) for m in render("progrpo").manifests}


def test_a_new_version_changes_versions_only(package, next_version):
    """What differs between two numbers of the same chart: labels and images, never a selector or a name."""
    values = load_values(next(path for path in FILES if path.stem == "train-jobs-always"))
    old, new = render(package, values), render(next_version, values)
    assert old.manifests != new.manifests

    def normal(release):
        text = yaml.safe_dump(list(release.manifests))
        runtime = release.one("TrainingRuntime")["metadata"]["name"]  # named after its content, versions included
        return text.replace(NEXT, "0.1.0").replace(runtime, "progrpo-torch")

    assert normal(old) == normal(new)
    assert all(
        NEXT in container["image"] for container in new.one("Deployment")["spec"]["template"]["spec"]["containers"]
    )


@pytest.mark.parametrize(
    ("before", "after", "name"),
    [
        ("cache", {"cache": {"enabled": True, "storageClassName": "ssd"}}, "PersistentVolumeClaim/progrpo-cache"),
        ("kueue", {"kueue": {"localQueue": {"enabled": True, "clusterQueue": "b"}}}, "LocalQueue/progrpo"),
    ],
)
def test_the_values_that_cannot_be_changed_later_are_known(before, after, name):
    """docs/install.md names them."""
    old = render("progrpo", load_values(next(path for path in FILES if path.stem == before)))
    found = refused(old.manifests, render("progrpo", after).manifests)
    assert [problem.partition(":")[0] for problem in found] == [name]
