"""Helm itself installs, upgrades, rolls back and uninstalls charts/progrpo, on a stand-in for the Kubernetes API."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import helm_python
import pytest

from charts import kube_api
from charts.helm import CHARTS, key, load_values, render, values_files
from charts.upgrade import lost, refused

VALUES = {path.stem: load_values(path) for path in values_files("progrpo")}
PREVIOUS = sorted(Path(__file__).with_name("previous").glob("progrpo-[0-9]*.tgz"))
# The stand-in runs no Jobs, so the hook that uploads would be waited for in vain.
QUIET = {"pipelines": {"upload": {"enabled": False}}}
KINDS = deepcopy(kube_api._RESOURCES)
OTHER_KINDS = {
    "rbac.authorization.k8s.io/v1": {"Role": "roles", "RoleBinding": "rolebindings"},
    "batch/v1": {"Job": "jobs", "CronJob": "cronjobs"},
}
TRAINER = {"trainer.kubeflow.org/v1alpha1": {"TrainingRuntime": "trainingruntimes", "TrainJob": "trainjobs"}}
KUEUE = {
    "kueue.x-k8s.io/v1beta1": {"LocalQueue": "localqueues"},
    "kueue.x-k8s.io/v1beta2": {"LocalQueue": "localqueues"},
}


@pytest.fixture
def cluster(monkeypatch):
    """Return a function that starts a cluster with more kinds, and Helm on it."""

    @contextmanager
    def start(*more) -> Iterator[tuple[kube_api.KubeAPI, helm_python.Config]]:
        kinds = deepcopy(KINDS)
        kinds["v1"]["ResourceQuota"] = "resourcequotas"
        for each in (OTHER_KINDS, *more):
            kinds |= each
        monkeypatch.setattr(kube_api, "_RESOURCES", kinds)
        with (
            kube_api.running_kube_api() as api,
            helm_python.Config(
                namespace="team-a",
                kubeconfig_content=api.kubeconfig,
                storage_driver="memory",
                burst_limit=1000,
                qps=1000.0,
            ) as config,
        ):
            yield api, config

    return start


def stored(api):
    return deepcopy(sorted(api.objects.values(), key=key))


@pytest.mark.parametrize("previous", PREVIOUS, ids=lambda path: path.stem)
def test_a_release_from_its_first_to_its_last_day(cluster, previous, tmp_path):
    values = {**VALUES["everything"], **QUIET}
    following = helm_python.package(
        str(CHARTS / "progrpo"), destination=str(tmp_path), version="9.9.9", app_version="9.9.9"
    )
    with cluster(TRAINER, KUEUE) as (api, helm):
        helm.install(str(previous), "progrpo", values, namespace="team-a")
        first = stored(api)
        expected = {
            key(m)
            for m in render(previous, values).manifests
            if "annotations" not in m["metadata"]
            or not any(name.startswith("helm.sh/hook") for name in m["metadata"]["annotations"])
        }
        assert {key(m) for m in first} == expected
        helm.upgrade(str(following), "progrpo", values, namespace="team-a")
        second = stored(api)
        assert "9.9.9" in str(second)
        assert refused(first, second) == []
        assert lost(first, second) == []
        smaller = {**values, "cache": {"enabled": False}, "quota": {"enabled": False}, "sandbox": {"enabled": False}}
        helm.upgrade(str(following), "progrpo", smaller, namespace="team-a")
        assert not {"PersistentVolumeClaim", "ResourceQuota", "Deployment", "Service"} & {
            m["kind"] for m in stored(api)
        }
        helm.rollback("progrpo", version=1)
        assert [(key(m), m.get("spec"), m.get("data")) for m in stored(api)] == [
            (key(m), m.get("spec"), m.get("data")) for m in first
        ]
        helm.uninstall("progrpo")
        assert stored(api) == []


def test_auto_asks_the_cluster_for_kubeflow_trainer(cluster):
    for more, expected in (((), set()), ((TRAINER,), {"TrainingRuntime", "CronJob"})):
        with cluster(*more) as (api, helm):
            notes = helm.install(str(CHARTS / "progrpo"), "progrpo", QUIET, namespace="team-a").get("notes", "")
            assert {m["kind"] for m in stored(api)} & {"TrainingRuntime", "CronJob"} == expected
            assert ("no Kubeflow Trainer" in notes) is (not expected)


def test_the_queue_has_the_newest_version_that_the_cluster_knows(cluster):
    values = {**VALUES["kueue"], **QUIET}
    old = {"kueue.x-k8s.io/v1beta1": {"LocalQueue": "localqueues"}}
    for kinds, version in ((KUEUE, "v1beta2"), (old, "v1beta1")):
        with cluster(kinds) as (api, helm):
            helm.install(str(CHARTS / "progrpo"), "progrpo", values, namespace="team-a")
            assert api.of("LocalQueue")["progrpo"]["apiVersion"] == f"kueue.x-k8s.io/{version}"


def test_a_second_release_in_the_namespace_is_refused(cluster):
    """ConfigMap ``progrpo-defaults`` belongs to the first; compiled pipelines know no other name."""
    with cluster() as (_, helm):
        helm.install(str(CHARTS / "progrpo"), "progrpo", QUIET, namespace="team-a")
        with pytest.raises(helm_python.HelmError, match=r"progrpo-defaults.*exists and cannot be imported"):
            helm.install(str(CHARTS / "progrpo"), "second", QUIET, namespace="team-a")
