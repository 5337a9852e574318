"""charts/progrpo with every file of values/progrpo: Helm's lint and dry run, Kubernetes' schemas, our policy."""

import helm_python
import pytest

from charts.helm import CHARTS, KUBERNETES, lint, load_values, render, schema_problems, values_files
from charts.policy import Exceptions, violations

FILES = values_files("progrpo")
# Only these talk to the API server of Kubernetes; the upload job has a token for Kubeflow Pipelines alone.
TOKENS = ("reaper", "doctor")


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def values(request):
    return load_values(request.param)


def exceptions(release):
    jobs = (f"{m['kind']}/{m['metadata']['name']}" for m in release.of("CronJob", "Job"))
    return Exceptions(tokens=[name for name in jobs if name.rpartition("-")[2] in TOKENS])


def test_there_are_enough_of_them():
    assert len(FILES) >= 25


def test_lint_is_silent(values):
    assert lint("progrpo", values, kube_version="v1.31.0") == []
    assert lint("progrpo", values, kube_version="v1.37.0") == []


def test_manifests_fit_every_supported_kubernetes(values):
    release = render("progrpo", values)
    assert release.manifests
    assert schema_problems(release.manifests, KUBERNETES) == []


def test_manifests_keep_to_the_policy(values):
    release = render("progrpo", values)
    assert violations(release.manifests, exceptions(release)) == []


def test_install_dry_run(values):
    """Helm's own path from chart to manifest; ``client``: no API server is asked."""
    with helm_python.Config(namespace="team-a", storage_driver="memory") as config:
        result = config.install(str(CHARTS / "progrpo"), "progrpo", values, namespace="team-a", dry_run="client")
    assert "name: progrpo-defaults" in result["manifest"]


def test_every_object_is_in_the_release_namespace(values):
    release = render("progrpo", values, namespace="other")
    assert {manifest["metadata"]["namespace"] for manifest in release.manifests} == {"other"}


def test_no_image_comes_from_elsewhere_in_an_air_gap():
    release = render("progrpo", load_values(next(path for path in FILES if path.stem == "air-gap")))
    text = str(release.manifests)
    prefix = "registry.site.example:5000/mirror/progrpo/progrpo-"
    assert text.count("'image': '") == text.count(f"'image': '{prefix}") > 0
    assert "localhost/" not in text
    assert f"{prefix}cpu@sha256:{'1' * 64}" in text
    assert f"{prefix}gpu@sha256:{'2' * 64}" in text
