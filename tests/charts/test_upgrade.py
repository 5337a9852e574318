"""Each rule about upgrades finds the change that it is there to find, and no other."""

from copy import deepcopy
from typing import Any

import pytest

from charts.upgrade import lost, refused


def _object(kind: str, api_version: str = "v1", **body: Any) -> dict[str, Any]:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": "x"}, **body}


STATEFUL = {
    "selector": {"matchLabels": {"a": "b"}},
    "serviceName": "x",
    "replicas": 1,
    "volumeClaimTemplates": [{"a": 1}],
}
CLAIM = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
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
    ("LocalQueue", {"spec": {"clusterQueue": "a"}}, ("spec", "clusterQueue"), "b"),
    ("Secret", {"type": "Opaque"}, ("type",), "kubernetes.io/tls"),
    ("ConfigMap", {"immutable": True, "data": {"a": "b"}}, ("data",), {"a": "c"}),
    ("Deployment", {"spec": {}}, ("apiVersion",), "other/v1"),
]
ALLOWED = [
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
