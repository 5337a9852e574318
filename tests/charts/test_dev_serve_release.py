"""progrpo-dev and progrpo-serve as users get them: packaged, pushed and pulled, installed, upgraded, rolled back.

``previous/`` holds the released versions. 0.1.0 is the first: it was frozen before its release, so that the next one is
tested against what people will have. Helm installs into a stand-in for the Kubernetes API; there is no cluster here.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from charts.helm import CHARTS, Manifest, load_values, render, values_files
from charts.kube_api import KubeAPI, running_kube_api
from charts.oci_registry import find_registry, running_registry
from charts.upgrade import lost, refused

NAMES = ("progrpo-dev", "progrpo-serve")
NEXT = "9.9.9"
CASES = [
    pytest.param(previous, path, id=f"{previous.stem}-{path.stem}")
    for name in NAMES
    for previous in sorted(Path(__file__).with_name("previous").glob(f"{name}-[0-9]*.tgz"))
    for path in values_files(name)
]


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Both charts as they are, and under the number of a version to come."""
    made = {}
    for chart in NAMES:
        for version in ("", NEXT):
            options = {"version": NEXT, "app_version": NEXT} if version else {}
            directory = str(tmp_path_factory.mktemp("package"))
            made[chart, version] = Path(helm_python.package(str(CHARTS / chart), destination=directory, **options))
    return made


def test_there_is_a_previous_version_of_both():
    assert {case.values[0].name.rpartition("-")[0] for case in CASES} == set(NAMES)


def test_the_package_holds_what_it_should(name, packages):
    with tarfile.open(packages[name, ""]) as archive:
        names = {path.removeprefix(f"{name}/") for path in archive.getnames()}
    templates = {str(p.relative_to(CHARTS / name)) for p in (CHARTS / name).rglob("*") if p.is_file()}
    assert names == templates
    assert {"README.md", "values.schema.json", "files/smoke.py"} <= names


def test_versions_agree(name):
    from progrpo import __version__

    chart = yaml.safe_load((CHARTS / name / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__


def test_push_to_and_pull_from_a_registry(packages, tmp_path, require_all):
    program = find_registry()
    if program is None:
        reason = "docker-registry is not installed (Debian: docker-registry)"
        (pytest.fail if require_all else pytest.skip)(reason)
    with running_registry(program, tmp_path) as address, helm_python.RegistryClient(plain_http=True) as client:
        for chart in NAMES:
            client.push(str(packages[chart, ""]), f"oci://{address}/charts", plain_http=True)
            pulled = tmp_path / chart
            pulled.mkdir()
            client.pull(f"oci://{address}/charts/{chart}", version="0.1.0", destination=str(pulled), plain_http=True)
            (archive,) = pulled.iterdir()
            assert archive.read_bytes() == packages[chart, ""].read_bytes()


def _without_random(manifests: tuple[Manifest, ...]) -> list[Manifest]:
    """Secrets by the names of their entries: what stays of their text, the tests of Helm below show."""
    changed = deepcopy(list(manifests))
    for manifest in changed:
        if manifest["kind"] == "Secret":
            manifest["data"] = sorted(manifest["data"])
    return changed


@pytest.mark.parametrize(("previous", "path"), CASES)
def test_upgrade_and_rollback_change_nothing_fixed_and_lose_nothing(previous, path, packages):
    values = load_values(path)
    new_chart = packages[previous.name.rpartition("-")[0], NEXT]
    old, new = (_without_random(render(chart, values).manifests) for chart in (previous, new_chart))
    assert refused(old, new) == refused(new, old) == []
    assert lost(old, new) == lost(new, old) == []


def test_a_new_number_restarts_no_database_and_loads_no_weights_again(name, packages):
    """With a fixed image, pods depend on values alone, not on the chart's version."""
    pinned = {"fetchImage": {"tag": "1"}} if name == "progrpo-serve" else {}

    def templates(version: str) -> list[Any]:
        return [m["spec"]["template"] for m in render(packages[name, version], pinned).of("Deployment", "StatefulSet")]

    assert templates("") == templates(NEXT)


def test_some_values_cannot_be_changed_later():
    """docs/dev-chart.md and values.yaml say so; a size can be."""
    chart = "progrpo-dev"
    fast = render(chart, {"s3": {"persistence": {"storageClass": "fast"}}})
    assert any("storageClassName" in line for line in refused(render(chart).manifests, fast.manifests))
    big = render(chart, {"s3": {"persistence": {"size": "9Ti"}}})
    changed = refused(_without_random(render(chart).manifests), _without_random(big.manifests))
    assert changed == []


# --- Helm itself, against a stand-in for the Kubernetes API -----------------------------------------------------------


def helm(api: KubeAPI) -> helm_python.Config:
    """Helm on the stand-in, without the pauses it makes for the sake of a real one."""
    options = {"storage_driver": "memory", "burst_limit": 1000, "qps": 1000.0}
    return helm_python.Config(namespace="team-a", kubeconfig_content=api.kubeconfig, **options)


@pytest.fixture
def cluster() -> Iterator[tuple[KubeAPI, helm_python.Config]]:
    with (
        running_kube_api() as api,
        helm(api) as config,
    ):
        yield api, config


def _secrets(api: KubeAPI) -> dict[str, Any]:
    return {name: secret["data"] for name, secret in api.of("Secret").items()}


def test_credentials_are_made_once_and_stay(cluster, packages):
    """Install, upgrade to a new version with other values, roll back, uninstall, install again: the same passwords."""
    api, config = cluster
    chart = str(packages["progrpo-dev", ""])
    config.install(chart, "dev", {}, namespace="team-a")
    first = _secrets(api)
    assert first.keys() == {
        *("progrpo-s3", "progrpo-mlflow", "dev-progrpo-dev-postgresql", "dev-progrpo-dev-mlflow-session")
    }
    values = {"s3": {"persistence": {"size": "90Gi"}}, "mlflow": {"auth": {"adminUser": "someone-else"}}}
    config.upgrade(str(packages["progrpo-dev", NEXT]), "dev", values, namespace="team-a")
    assert api.of("PersistentVolumeClaim")["dev-progrpo-dev-s3"]["spec"]["resources"]["requests"]["storage"] == "90Gi"
    assert _secrets(api) == first
    config.rollback("dev", version=1)
    assert _secrets(api) == first
    config.uninstall("dev")
    assert _secrets(api) == first
    config.install(chart, "dev", {}, namespace="team-a")
    assert _secrets(api) == first


def test_two_installs_have_different_credentials(packages):
    found = []
    for _ in range(2):
        with running_kube_api() as api:
            with helm(api) as config:
                config.install(str(packages["progrpo-dev", ""]), "dev", {}, namespace="team-a")
            found.append({value for data in _secrets(api).values() for value in data.values()})
    assert found[0] & found[1] == {"cHJvZ3Jwbw=="}  # the administrator's name


def test_a_render_that_cannot_see_the_cluster_cannot_change_a_password(cluster, packages):
    """What Argo CD does: apply the manifests of ``helm template``."""
    api, config = cluster
    chart = str(packages["progrpo-dev", ""])
    config.install(chart, "dev", {}, namespace="team-a")
    first = _secrets(api)
    blind = next(s for s in render(chart, name="dev").of("Secret") if s["metadata"]["name"] == "progrpo-s3")
    assert refused([*api.of("Secret").values()], [blind])
    assert _secrets(api) == first


def test_uninstalling_leaves_data_and_credentials_only(cluster, packages):
    api, config = cluster
    for chart in NAMES:
        config.install(str(packages[chart, ""]), "team", {}, namespace="team-a")
        config.uninstall("team")
    assert {o["kind"] for o in api.objects.values()} == {"PersistentVolumeClaim", "Secret"}
    assert set(api.of("PersistentVolumeClaim")) == {"team-progrpo-dev-postgresql", "team-progrpo-dev-s3"}
