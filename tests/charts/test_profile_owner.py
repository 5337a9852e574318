"""The owner of a Kubeflow profile can install charts/progrpo: makes no object and gives no right that they lack."""

from itertools import product
from pathlib import Path

import pytest
import yaml

from charts.helm import load_values, render, values_files

ROLES = yaml.safe_load(Path(__file__).with_name("kubeflow-admin.yaml").read_text())
HELD = {
    right
    for part in ROLES
    for rules in part["roles"].values()
    for rule in rules
    for right in product(rule["apiGroups"], rule["resources"], rule["verbs"])
}
PLURALS = {"NetworkPolicy": "networkpolicies", "LocalQueue": "localqueues"}
# docs/install.md: what only an administrator of the cluster may make, each by a value of its own that is off.
ADMINISTRATORS = {"TrainingRuntime", "ResourceQuota", "LocalQueue"}


def holds(group, resource, verb):
    return (group, resource, verb) in HELD or (group, resource, "*") in HELD


def of_an_owner(values):
    jobs = {**values.get("trainJobs", {}), "mode": "always", "runtime": {"create": False}}
    queue = {"localQueue": {**values.get("kueue", {}).get("localQueue", {}), "enabled": False}}
    return {**values, "trainJobs": jobs, "quota": {"enabled": False}, "kueue": queue}


VALUES = {path.stem: of_an_owner(load_values(path)) for path in values_files("progrpo")}


def lacking(release):
    """Return what the owner may not hand out by a Role, and what they may not make."""
    found = []
    for role in release.of("Role"):
        for rule in role["rules"]:
            for right in product(rule["apiGroups"], rule["resources"], rule["verbs"]):
                if not holds(*right):
                    found.append(right)
    for manifest in release.manifests:
        group, kind = manifest["apiVersion"].rpartition("/")[0], manifest["kind"]
        resource = PLURALS.get(kind, f"{kind.lower()}s")
        found += [(group, resource, verb) for verb in ("create", "get", "delete") if not holds(group, resource, verb)]
    return sorted(set(found))


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_an_owner_can_install_the_chart(values):
    assert lacking(render("progrpo", values)) == []


def test_the_defaults_are_an_owner_s():
    assert lacking(render("progrpo", {"trainJobs": {"mode": "always"}})) == []


def test_what_an_owner_cannot_make_is_off_and_known():
    values = next(load_values(path) for path in values_files("progrpo") if path.stem == "everything")
    release = render("progrpo", values)
    resources = {resource for _, resource, verb in lacking(release) if verb == "create"}
    assert resources == {PLURALS.get(kind, f"{kind.lower()}s") for kind in ADMINISTRATORS}
    assert ADMINISTRATORS.isdisjoint(m["kind"] for m in render("progrpo").manifests)


def test_facts_that_were_seen_on_a_cluster():
    assert not holds("pipelines.kubeflow.org", "pipelines/versions", "get")
    assert not holds("trainer.kubeflow.org", "trainingruntimes", "create")
    assert holds("trainer.kubeflow.org", "trainingruntimes", "get")
    assert holds("argoproj.io", "workflows", "get")


def test_rights_in_kubeflow_pipelines_name_what_its_api_asks_for():
    """RbacResourceType* and RbacResourceVerb* of kubeflow/pipelines 2.17.0, backend/src/apiserver/common/const.go.

    Uploading takes pipelines alone, for versions too: canAccessPipeline of backend/src/apiserver/server/
    pipeline_server.go sets that resource whatever is asked for.
    """
    resources = {"pipelines", "experiments", "runs", "jobs", "viewers", "visualizations"}
    verbs = {
        *("archive", "update", "create", "delete", "disable", "enable", "get", "list", "retry", "terminate"),
        *("unarchive", "reportMetrics", "readArtifact", "report"),
    }
    for values in VALUES.values():
        for role in render("progrpo", values).of("Role"):
            for rule in role["rules"]:
                if rule["apiGroups"] == ["pipelines.kubeflow.org"]:
                    assert set(rule["resources"]) <= resources
                    assert set(rule["verbs"]) <= verbs
