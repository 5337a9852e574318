"""Helm itself installs, upgrades, rolls back and uninstalls charts/progrpo, on a stand-in for the Kubernetes API."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import helm_python
import pytest

from charts import kube_api
from charts.helm import CHARTS, key, load_values, render, values_files
from charts.upgrade import lost, refused
from webhooks import IMMUTABLE

VALUES = {path.stem: load_values(path) for path in values_files("progrpo")}
PREVIOUS = sorted(Path(__file__).with_name("previous").glob("progrpo-[0-9]*.tgz"))
# The stand-in runs no Jobs, so the hook that uploads would be waited for in vain.
QUIET = {"pipelines": {"upload": {"enabled": False}}}
ALWAYS = {"trainJobs": {"mode": "always", "runtime": {"create": True}}}
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


def is_kept(manifest):
    return manifest["metadata"].get("annotations", {}).get("helm.sh/resource-policy") == "keep"


def with_immutable(tmp_path, field, value):
    """Return the chart with another value of a field of the runtime that can never change."""
    chart = tmp_path / f"{field}-{abs(hash(str(value)))}"
    shutil.copytree(CHARTS / "progrpo", chart)
    template = chart / "templates" / "trainingruntime.yaml"
    text = template.read_text()
    if field == "failurePolicy":
        return str(chart), {"trainJobs": {"mode": "always", "maxRestarts": value, "runtime": {"create": True}}}
    following = "        template:\n          metadata:\n" if field == "dependsOn" else "    replicatedJobs:\n"
    assert text.count(following) == 1
    indent = following[: len(following) - len(following.lstrip())]
    template.write_text(text.replace(following, f"{indent}{field}: {json.dumps(value)}\n{following}"))
    return str(chart), ALWAYS


IMMUTABLE_VALUES = {
    "failurePolicy": (3, 5),
    "network": ({"publishNotReadyAddresses": True}, {"publishNotReadyAddresses": False}),
    "startupPolicy": ({"startupPolicyOrder": "AnyOrder"}, {"startupPolicyOrder": "InOrder"}),
    "successPolicy": ({"operator": "All"}, {"operator": "Any"}),
    "volumeClaimPolicies": ([{"templates": []}], [{"templates": [{"metadata": {"name": "work"}}]}]),
    "dependsOn": ([{"name": "a", "status": "Ready"}], [{"name": "a", "status": "Complete"}]),
}


@pytest.mark.parametrize("field", [*IMMUTABLE, "dependsOn"])
def test_an_upgrade_and_a_rollback_may_change_every_immutable_field(cluster, field, tmp_path):
    (first, first_values), (second, second_values) = (
        with_immutable(tmp_path, field, value) for value in IMMUTABLE_VALUES[field]
    )
    with cluster(TRAINER) as (api, helm):
        helm.install(first, "progrpo", {**QUIET, **first_values}, namespace="team-a")
        ((old, before),) = api.of("TrainingRuntime").items()
        # What the API server says to the same name with the other value.
        changed = deepcopy(before)
        changed["spec"] = render(Path(second), second_values).one("TrainingRuntime")["spec"]
        assert refused([before], [changed])
        before = deepcopy(before["spec"])
        helm.upgrade(second, "progrpo", {**QUIET, **second_values}, namespace="team-a")
        runtimes, defaults = api.of("TrainingRuntime"), api.of("ConfigMap")["progrpo-defaults"]["data"]
        assert len(runtimes) == 2
        assert runtimes[old]["spec"] == before  # TrainJobs under way go on with it
        assert defaults["PROGRPO_TRAINING_RUNTIME"] in runtimes.keys() - {old}
        helm.rollback("progrpo", version=1)
        assert api.of("ConfigMap")["progrpo-defaults"]["data"]["PROGRPO_TRAINING_RUNTIME"] == old
        assert api.of("TrainingRuntime")[old]["spec"] == before


def test_the_notes_say_who_makes_the_runtime_and_helm_prints_it(cluster):
    chart = str(CHARTS / "progrpo")
    with cluster(TRAINER) as (api, helm):
        release = helm.install(chart, "progrpo", {**QUIET, "trainJobs": {"maxRestarts": 1}}, namespace="team-a")
        name = api.of("ConfigMap")["progrpo-defaults"]["data"]["PROGRPO_TRAINING_RUNTIME"]
        assert not api.of("TrainingRuntime")
        assert f"waits for TrainingRuntime {name}. All else works without. An administrator" in release["notes"]
        assert "--set trainJobs.mode=always,trainJobs.runtime.create=true" in release["notes"]
        made = render(chart, {**QUIET, "trainJobs": {"maxRestarts": 1, "mode": "always", "runtime": {"create": True}}})
        runtime = made.one("TrainingRuntime")
        assert runtime["metadata"]["name"] == name  # what the administrator applies is what the team's settings name
        path = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/team-a/trainingruntimes"
        api.objects[f"{path}/{name}"] = deepcopy(runtime)
        release = helm.upgrade(chart, "progrpo", {**QUIET, "trainJobs": {"maxRestarts": 1}}, namespace="team-a")
        assert "waits for TrainingRuntime" not in release["notes"]
        assert list(api.of("TrainingRuntime")) == [name]


def account(api, name):
    path = f"/api/v1/namespaces/team-a/serviceaccounts/{name}"
    api.objects[path] = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}


def test_a_missing_account_of_runs_is_said_at_install_and_fails_the_test_at_once(cluster):
    chart = str(CHARTS / "progrpo")
    with cluster() as (api, helm):
        account(api, "default")
        account(api, "pipeline-runner")
        release = helm.install(chart, "progrpo", QUIET, namespace="team-a")
        assert "There is no service account default-editor in namespace team-a" in release["notes"]
        assert "Name the account of your runs in runs.serviceAccounts and upgrade." in release["notes"]
        started = time.monotonic()
        with pytest.raises(helm_python.HelmError, match=r'serviceaccount "default-editor" not found'):
            helm.test("progrpo", timeout=60)
        assert time.monotonic() - started < 30
        assert not api.of("Job")  # which would wait for the account in silence
        values = {**QUIET, "runs": {"serviceAccounts": ["pipeline-runner"]}}
        release = helm.upgrade(chart, "progrpo", values, namespace="team-a")
        assert "There is no service account" not in release["notes"]


@pytest.mark.parametrize("previous", PREVIOUS, ids=lambda path: path.stem)
def test_a_release_from_its_first_to_its_last_day(cluster, previous, tmp_path):
    values = {**VALUES["everything"], **QUIET}
    jobs = {name: value for name, value in values["trainJobs"].items() if name != "runtime"}
    known = {**values, "trainJobs": jobs}  # 0.1.0 always makes the runtime
    following = helm_python.package(
        str(CHARTS / "progrpo"), destination=str(tmp_path), version="9.9.9", app_version="9.9.9"
    )
    with cluster(TRAINER, KUEUE) as (api, helm):
        helm.install(str(previous), "progrpo", known, namespace="team-a")
        first = stored(api)
        expected = {
            key(m)
            for m in render(previous, known).manifests
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
        again = [(key(m), m.get("spec"), m.get("data")) for m in stored(api) if not is_kept(m)]
        assert again == [(key(m), m.get("spec"), m.get("data")) for m in first]
        helm.uninstall("progrpo")
        assert {m["kind"] for m in stored(api)} == {"TrainingRuntime"}  # for an administrator to remove


def test_auto_asks_the_cluster_for_kubeflow_trainer(cluster):
    for more, expected in (((), set()), ((TRAINER,), {"TrainingRuntime", "CronJob"})):
        with cluster(*more) as (api, helm):
            values = {**QUIET, "trainJobs": {"runtime": {"create": True}}}
            notes = helm.install(str(CHARTS / "progrpo"), "progrpo", values, namespace="team-a").get("notes", "")
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
