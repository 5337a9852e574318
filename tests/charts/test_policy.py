"""The policy and the schemas find what they are there to find: a sound manifest, broken in one place at a time."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from charts.helm import schema_problems
from charts.policy import Exceptions, violations

LABELS = {
    f"app.kubernetes.io/{name}": "x" for name in ("name", "instance", "version", "managed-by", "part-of", "component")
}
LABELS["helm.sh/chart"] = "x-0.1.0"
SELECTOR = dict.fromkeys(("app.kubernetes.io/name", "app.kubernetes.io/instance"), "x")


def deployment() -> dict[str, Any]:
    resources = {"cpu": "1", "memory": "1Gi"}
    probe = {"httpGet": {"path": "/healthz", "port": 8080}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "team-a", "labels": dict(LABELS)},
        "spec": {
            "selector": {"matchLabels": dict(SELECTOR)},
            "template": {
                "metadata": {"labels": dict(LABELS)},
                "spec": {
                    "automountServiceAccountToken": False,
                    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
                    "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}],
                    "containers": [
                        {
                            "name": "web",
                            "image": "registry.example/web:1.2.3",
                            "resources": {"requests": dict(resources), "limits": dict(resources)},
                            "readinessProbe": deepcopy(probe),
                            "livenessProbe": deepcopy(probe),
                            "securityContext": {
                                "allowPrivilegeEscalation": False,
                                "readOnlyRootFilesystem": True,
                                "capabilities": {"drop": ["ALL"]},
                            },
                        }
                    ],
                },
            },
        },
    }


def role(**rule: Any) -> dict[str, Any]:
    sound = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}
    return _object("rbac.authorization.k8s.io/v1", "Role", rules=[{**sound, **rule}])


def _object(api_version: str, kind: str, **body: Any) -> dict[str, Any]:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": "x", "labels": dict(LABELS)}, **body}


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"]["template"]["spec"]


def container_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return pod_of(manifest)["containers"][0]


def selector_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"]["selector"]["matchLabels"]


def test_a_sound_manifest_has_no_violation():
    assert (
        violations([deployment(), role(), _object("v1", "ConfigMap", data={"MLFLOW_TRACKING_URI": "http://mlflow"})])
        == []
    )
    assert schema_problems([deployment(), role()]) == []


def _set(where: Callable[[dict[str, Any]], dict[str, Any]], key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: where(manifest).__setitem__(key, value)


def _context(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: container_of(manifest)["securityContext"].__setitem__(key, value)


BROKEN = {
    "hostNetwork": _set(pod_of, "hostNetwork", True),
    "hostPID": _set(pod_of, "hostPID", True),
    "volume host is a hostPath": _set(pod_of, "volumes", [{"name": "host", "hostPath": {"path": "/"}}]),
    "volume tmp has no sizeLimit": _set(pod_of, "volumes", [{"name": "tmp", "emptyDir": {}}]),
    "runAsNonRoot is not true": _set(pod_of, "securityContext", {"seccompProfile": {"type": "RuntimeDefault"}}),
    "no seccomp profile": _set(pod_of, "securityContext", {"runAsNonRoot": True}),
    "sysctl kernel.msgmax": lambda m: pod_of(m)["securityContext"].update(sysctls=[{"name": "kernel.msgmax"}]),
    "runAsUser is 0": _context("runAsUser", 0),
    "AppArmor is unconfined": _context("appArmorProfile", {"type": "Unconfined"}),
    "allowPrivilegeEscalation is not false": _context("allowPrivilegeEscalation", True),
    "privileged": _context("privileged", True),
    "procMount Unmasked": _context("procMount", "Unmasked"),
    "'add': ['SYS_ADMIN']": _context("capabilities", {"drop": ["ALL"], "add": ["SYS_ADMIN"]}),
    "capabilities are kept": _context("capabilities", {}),
    "the root file system is writable": _context("readOnlyRootFilesystem", False),
    "hostPort": _set(container_of, "ports", [{"containerPort": 80, "hostPort": 80}]),
    "readinessProbe asks another host": _set(container_of, "readinessProbe", {"tcpSocket": {"host": "a", "port": 80}}),
    "no limits.memory": _set(container_of, "resources", {"requests": {"cpu": 1, "memory": 1}, "limits": {"cpu": 1}}),
    "no livenessProbe": lambda m: container_of(m).pop("livenessProbe"),
    "web:latest is not pinned": _set(container_of, "image", "registry.example/web:latest"),
    "web is not pinned": _set(container_of, "image", "registry.example:5000/web"),
    "has no SHA-256 digest": _set(container_of, "image", "registry.example/web@sha256:beef"),
    "names no registry": _set(container_of, "image", "library/web:1.0"),
    "AWS_SECRET_ACCESS_KEY in clear": _set(container_of, "env", [{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}]),
    "a password in a URL: --uri=postgresql://***@db": _set(container_of, "args", ["--uri=postgresql://me:it@db"]),
    "is left to the service account": lambda m: pod_of(m).pop("automountServiceAccountToken"),
    "mounts a service account's token": _set(pod_of, "automountServiceAccountToken", True),
    "no label app.kubernetes.io/part-of": lambda m: m["metadata"]["labels"].pop("app.kubernetes.io/part-of"),
    "its pods have no label app.kubernetes.io/component": lambda m: m["spec"]["template"]["metadata"]["labels"].pop(
        "app.kubernetes.io/component"
    ),
    "helm.sh/chart in the selector": _set(selector_of, "helm.sh/chart", "x-0.1.0"),
    "its pods are": _set(selector_of, "app.kubernetes.io/name", "y"),
    "in namespace kube-system": lambda m: m["metadata"].update(namespace="kube-system"),
}  # fmt: skip


@pytest.mark.parametrize("expected", BROKEN)
def test_one_broken_field_is_one_violation(expected):
    manifest = deployment()
    BROKEN[expected](manifest)
    found = violations([manifest])
    assert len(found) == 1, found
    assert found[0].startswith("Deployment/web: ")
    assert expected in found[0]


OTHER_KINDS = {
    "cluster-wide": _object("rbac.authorization.k8s.io/v1", "ClusterRole", rules=[]),
    "binds the ClusterRole edit": _object(
        "rbac.authorization.k8s.io/v1", "RoleBinding", roleRef={"kind": "ClusterRole", "name": "edit"}
    ),
    "without bounds": role(verbs=["*"]),
    "may escalate": role(resources=["roles"], verbs=["escalate"]),
    "has rights on secrets": role(resources=["secrets"], resourceNames=["a"]),
    "has rights on pods/exec": role(resources=["pods/exec"], verbs=["create"]),
    "refer to an existing one": _object("v1", "Secret", data={}),
    "AWS_SECRET_ACCESS_KEY in a ConfigMap": _object("v1", "ConfigMap", data={"AWS_SECRET_ACCESS_KEY": "x"}),
    "no activeDeadlineSeconds": _object(
        "batch/v1", "Job", spec={"backoffLimit": 1, "template": deployment()["spec"]["template"]}
    ),
}


@pytest.mark.parametrize("expected", OTHER_KINDS)
def test_rights_secrets_and_jobs(expected):
    found = violations([OTHER_KINDS[expected]])
    assert len(found) == 1, found
    assert expected in found[0]


def test_exceptions_are_by_name():
    manifest = deployment()
    pod_of(manifest)["automountServiceAccountToken"] = True
    assert violations([manifest], Exceptions(tokens=["Deployment/web"])) == []
    assert violations([deployment()], Exceptions(tokens=["Deployment/web"])) == [
        "Deployment/web: needs a token, does not mount it"
    ]
    secret = _object("v1", "Secret", data={})
    assert violations([secret], Exceptions(generated_secrets=["Secret/x"])) == []


def test_the_same_object_twice_is_found():
    assert violations([role(), role()]) == ["Role/x: made 2 times"]


def test_schemas_are_strict_and_know_every_kind():
    typo = deployment()
    container_of(typo)["imagePullPolicies"] = "Always"
    assert "imagePullPolicies" in schema_problems([typo], ["1.31"])[0]
    wrong = deployment()
    wrong["spec"]["replicas"] = "two"
    assert "$.spec.replicas" in schema_problems([wrong], ["1.37"])[0]
    assert "unknown kind example.com/v1 Widget" in schema_problems([_object("example.com/v1", "Widget")], ["1.31"])[0]


def test_the_jobs_of_a_training_runtime_are_checked():
    job = {"spec": {"template": {"spec": {"containers": [{"name": "node", "image": "localhost/x:1", "imagee": "x"}]}}}}
    runtime = _object(
        "trainer.kubeflow.org/v1alpha1",
        "TrainingRuntime",
        spec={"mlPolicy": {"torch": {}}, "template": {"spec": {"replicatedJobs": [{"name": "node", "template": job}]}}},
    )
    assert "'imagee' was unexpected" in schema_problems([runtime], ["1.34"])[0]
    assert any("runAsNonRoot" in violation for violation in violations([runtime]))
