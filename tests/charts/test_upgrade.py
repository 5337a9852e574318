"""Each rule about upgrades finds the change that it is there to find, and no other."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.upgrade import lost, refused
from webhooks import IMMUTABLE


def _object(kind: str, api_version: str = "v1", **body: Any) -> dict[str, Any]:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": "x"}, **body}


STATEFUL = {
    "selector": {"matchLabels": {"a": "b"}},
    "serviceName": "x",
    "replicas": 1,
    "volumeClaimTemplates": [{"a": 1}],
}
CLAIM = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
RUNTIME = {"spec": {"template": {"spec": {"failurePolicy": {"maxRestarts": 1}, "network": {}, "replicatedJobs": []}}}}
FORBIDDEN = [
    ("Deployment", {"spec": {"selector": {"a": 1}}}, ("spec", "selector"), {"a": 2}),
    ("DaemonSet", {"spec": {"selector": {"a": 1}}}, ("spec", "selector"), {"a": 2}),
    ("StatefulSet", {"spec": STATEFUL}, ("spec", "volumeClaimTemplates"), [{"a": 2}]),
    ("StatefulSet", {"spec": STATEFUL}, ("spec", "serviceName"), "y"),
    ("StatefulSet", {"spec": STATEFUL}, ("spec", "podManagementPolicy"), "Parallel"),
    ("Job", {"spec": {"template": {"a": 1}}}, ("spec", "template"), {"a": 2}),
    ("PersistentVolumeClaim", {"spec": CLAIM}, ("spec", "accessModes"), ["ReadWriteMany"]),
    ("PersistentVolumeClaim", {"spec": CLAIM}, ("spec", "storageClassName"), "fast"),
    ("Service", {"spec": {"clusterIP": "None"}}, ("spec", "clusterIP"), None),
    ("RoleBinding", {"roleRef": {"name": "a"}}, ("roleRef",), {"name": "b"}),
    ("TrainingRuntime", RUNTIME, ("spec", "template", "spec", "failurePolicy"), {"maxRestarts": 2}),
    ("TrainingRuntime", RUNTIME, ("spec", "template", "spec", "network"), {"subdomain": "x"}),
    ("LocalQueue", {"spec": {"clusterQueue": "a"}}, ("spec", "clusterQueue"), "b"),
    ("Secret", {"type": "Opaque"}, ("type",), "kubernetes.io/tls"),
    ("ConfigMap", {"immutable": True, "data": {"a": "b"}}, ("data",), {"a": "c"}),
    ("Deployment", {"spec": {}}, ("apiVersion",), "other/v1"),
]
ALLOWED = [
    ("TrainingRuntime", RUNTIME, ("spec", "template", "spec", "successPolicy"), {"operator": "All"}),
    ("TrainingRuntime", RUNTIME, ("spec", "template", "spec", "replicatedJobs"), [{"name": "node"}]),
    ("Deployment", {"spec": {"replicas": 1, "template": {"a": 1}}}, ("spec", "template"), {"a": 2}),
    ("StatefulSet", {"spec": STATEFUL}, ("spec", "replicas"), 3),
    ("PersistentVolumeClaim", {"spec": CLAIM}, ("spec", "resources"), {"requests": {"storage": "2Gi"}}),
    ("ConfigMap", {"data": {"a": "b"}}, ("data",), {"a": "c"}),
]


def _changed(manifest: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    changed = deepcopy(manifest)
    *parents, last = path
    target = changed
    for part in parents:
        target = target[part]
    target[last] = value
    return changed


@pytest.mark.parametrize(("kind", "body", "path", "value"), FORBIDDEN)
def test_a_fixed_field_that_changes_is_found(kind, body, path, value):
    manifest = _object(kind, **body)
    found = refused([manifest], [_changed(manifest, path, value)])
    assert len(found) == 1
    assert found[0].startswith(f"{kind}/x: {path[-1]} ")
    assert refused([manifest], [deepcopy(manifest)]) == []


@pytest.mark.parametrize(("kind", "body", "path", "value"), ALLOWED)
def test_other_changes_are_allowed(kind, body, path, value):
    manifest = _object(kind, **body)
    assert refused([manifest], [_changed(manifest, path, value)]) == []


def test_hooks_may_change_and_data_may_not_go():
    hook = _object("Job", spec={"template": 1})
    hook["metadata"]["annotations"] = {"helm.sh/hook": "post-install"}
    assert refused([hook], [_changed(hook, ("spec", "template"), 2)]) == []
    claim, kept = _object("PersistentVolumeClaim", spec=CLAIM), _object("Secret")
    kept["metadata"]["annotations"] = {"helm.sh/resource-policy": "keep"}
    assert lost([claim, kept, _object("ConfigMap")], []) == ["PersistentVolumeClaim/x"]
    assert lost([claim], [claim]) == []


def test_the_immutable_fields_of_a_runtime_are_those_of_its_crd():
    crd = yaml.safe_load((Path(__file__).parent / "crds" / "trainingruntime.yaml").read_text())["schema"]
    spec = crd["properties"]["spec"]["properties"]["template"]["properties"]["spec"]["properties"]
    fixed = {name for name, field in spec.items() if "x-kubernetes-validations" in field}
    assert fixed == set(IMMUTABLE)
    jobs = spec["replicatedJobs"]["items"]["properties"]
    assert {name for name, field in jobs.items() if "x-kubernetes-validations" in field} == {"dependsOn"}
