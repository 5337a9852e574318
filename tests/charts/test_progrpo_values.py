"""What a user may not write into the values of charts/progrpo, and what Helm tells them."""

import copy

import helm_python
import pytest

from charts.helm import CHARTS, render, schema_error


def nested(path, value):
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


# (dotted key, wrong value, where Helm says it is wrong, what it says)
REFUSED = [
    ("imageRegistry", "r.example", "", "additional properties 'imageRegistry' not allowed"),
    ("global.imageRegistri", "r.example", "/global", "additional properties 'imageRegistri' not allowed"),
    ("global.imageRegistry", "https://r.example", "/global/imageRegistry", "does not match pattern"),
    ("global.imageRegistry", "R.example", "/global/imageRegistry", "does not match pattern"),
    ("global.imagePullSecrets", "site", "/global/imagePullSecrets", "got string, want array"),
    ("global.imagePullSecrets", [{"name": "site"}], "/global/imagePullSecrets/0", "got object, want string"),
    ("global.imagePullSecrets", ["a", "a"], "/global/imagePullSecrets", "items at 0 and 1 are equal"),
    ("nameOverride", "Not_A_Name", "/nameOverride", "does not match pattern"),
    ("fullnameOverride", "x" * 41, "/fullnameOverride", "maxLength: got 41, want 40"),
    ("commonLabels", {"team": "a b"}, "/commonLabels/team", "does not match pattern"),
    ("commonLabels", {"cost": 4711}, "/commonLabels/cost", "got number, want string"),
    ("commonAnnotations", ["a"], "/commonAnnotations", "got array, want object"),
    ("images.pullPolicy", "always", "/images/pullPolicy", "must be one of 'Always', 'IfNotPresent', 'Never'"),
    ("images.cpu", "progrpo-cpu:1", "/images/cpu", "got string, want object"),
    ("images.cpu.digest", "sha256:beef", "/images/cpu/digest", "does not match pattern"),
    ("images.cpu.digest", "1" * 64, "/images/cpu/digest", "does not match pattern"),
    ("images.gpu.tag", "a b", "/images/gpu/tag", "does not match pattern"),
    ("images.gpu.tag", 1.0, "/images/gpu/tag", "got number, want string"),
    ("images.gpu.repository", "", "/images/gpu/repository", "does not match pattern"),
    ("runs.serviceAccounts", [], "/runs/serviceAccounts", "minItems: got 0, want 1"),
    ("runs.serviceAccounts", "default-editor", "/runs/serviceAccounts", "got string, want array"),
    ("kfp.endpoint", "ml-pipeline.kubeflow:8888", "/kfp/endpoint", "does not match pattern"),
    ("kfp.endpoint", "http://me:secret@kfp.example", "/kfp/endpoint", "does not match pattern"),
    ("kfp.endpoint", "", "/kfp/endpoint", "does not match pattern"),
    ("kfp.token", "ey...", "/kfp", "additional properties 'token' not allowed"),
    ("mlflow.trackingUri", "sqlite:///mlflow.db", "/mlflow/trackingUri", "does not match pattern"),
    ("mlflow.trackingUri", "https://me:secret@mlflow.example", "/mlflow/trackingUri", "does not match pattern"),
    ("mlflow.password", "secret", "/mlflow", "additional properties 'password' not allowed"),
    ("s3.accessKey", "AKIA", "/s3", "additional properties 'accessKey' not allowed"),
    ("s3.region", "EU Central", "/s3/region", "does not match pattern"),
    ("s3.uri", "https://s3.example/bucket", "/s3/uri", "does not match pattern"),
    ("trainJobs.env", {"lower-case": "x"}, "", "invalid propertyName 'lower-case'"),
    ("trainJobs.env", {"NCCL_IB_DISABLE": 1}, "/trainJobs/env/NCCL_IB_DISABLE", "got number, want string"),
    ("caBundle.key", "a/b", "/caBundle/key", "does not match pattern"),
    ("pods.runAsUser", 1000, "/pods", "additional properties 'runAsUser' not allowed"),
    ("pods.fsGroup", 0, "/pods/fsGroup", "minimum: got 0, want 1"),
    ("pods.tolerations", [{"key": "a", "effect": "No"}], "/pods/tolerations/0/effect", "must be one of 'NoSchedule'"),
    ("pods.affinity", {"nodeAfinity": {}}, "/pods/affinity", "additional properties 'nodeAfinity' not allowed"),
    ("gpuPools.h100", {"gpuCount": 8}, "/gpuPools/h100", "missing property 'gpuType'"),
    ("gpuPools.h100", {"gpuType": "nvidia.com/gpu"}, "/gpuPools/h100", "missing property 'gpuCount'"),
    ("gpuPools.h100", {"gpuType": "h100", "gpuCount": 8}, "/gpuPools/h100/gpuType", "does not match pattern"),
    ("gpuPools.h100", {"gpuType": "a.b/c", "gpuCount": 0}, "/gpuPools/h100/gpuCount", "minimum: got 0, want 1"),
    ("gpuPools.h100", {"gpuType": "a.b/c", "gpuCount": "8"}, "/gpuPools/h100/gpuCount", "got string, want integer"),
    ("gpuPools.H100", {"gpuType": "a.b/c", "gpuCount": 8}, "", "invalid propertyName 'H100'"),
    ("pipelines.upload.backend", "2.14", "/pipelines/upload/backend", "must be one of '2.15', '2.16', '2.17'"),
    ("pipelines.upload.backend", 2.17, "/pipelines/upload/backend", "must be one of '2.15', '2.16', '2.17'"),
    ("pipelines.upload.packages", [], "/pipelines/upload/packages", "minItems: got 0, want 1"),
    ("pipelines.upload.packages", ["../x"], "/pipelines/upload/packages/0", "does not match pattern"),
    ("pipelines.upload.deadlineSeconds", 5, "/pipelines/upload/deadlineSeconds", "minimum: got 5, want 30"),
    ("trainJobs.mode", True, "/trainJobs/mode", "must be one of 'auto', 'always', 'never'"),
    ("trainJobs.numNodes", 0, "/trainJobs/numNodes", "minimum: got 0, want 1"),
    ("trainJobs.numNodes", 1.5, "/trainJobs/numNodes", "got number, want integer"),
    ("trainJobs.shmSize", "16 GB", "/trainJobs/shmSize", "does not match pattern"),
    ("reaper.enabled", "yes", "/reaper/enabled", "got string, want boolean"),
    ("reaper.schedule", "every hour", "/reaper/schedule", "does not match pattern"),
    ("reaper.maxHeartbeatAge", 15, "/reaper/maxHeartbeatAge", "got number, want string"),
    ("reaper.maxHeartbeatAge", "15 min", "/reaper/maxHeartbeatAge", "does not match pattern"),
    ("sandbox.workers", 0, "/sandbox/workers", "minimum: got 0, want 1"),
    ("sandbox.isolation", "none", "/sandbox/isolation", "must be one of 'full', 'pod'"),
    ("sandbox.replicas", 0, "/sandbox/replicas", "minimum: got 0, want 1"),
    ("sandbox.resources.limits.memory", "2 GB", "/sandbox/resources/limits/memory", "does not match pattern"),
    ("sandbox.resources.limits.cpu", -1, "/sandbox/resources/limits/cpu", "minimum: got -1, want 0"),
    ("sandbox.networkPolicy", False, "/sandbox", "additional properties 'networkPolicy' not allowed"),
    ("cache.accessMode", "RWX", "/cache/accessMode", "must be one of 'ReadWriteOnce'"),
    ("networkPolicy.cidrs", ["10.0.0.0/8"], "/networkPolicy/cidrs/0", "got string, want object"),
    ("networkPolicy.cidrs", [{"cidr": "s3.example", "ports": [443]}], "/networkPolicy/cidrs/0/cidr", "match pattern"),
    ("networkPolicy.cidrs", [{"cidr": "::/0", "ports": [0]}], "/networkPolicy/cidrs/0/ports/0", "minimum: got 0"),
    ("quota.hard", {"Pods!": 1}, "", "invalid propertyName 'Pods!'"),
    ("kueue.localQueue.name", "Default", "/kueue/localQueue/name", "does not match pattern"),
    ("doctor.resources.requests", {"cpu": None}, "/doctor/resources/requests", "missing property 'cpu'"),
]  # fmt: skip

# What takes two values to see; a schema cannot.
FAILS = [
    (nested("trainJobs.pool", "h100"), 'trainJobs.pool is "h100", but gpuPools has none'),
    (
        {"trainJobs": {"pool": "h200"}, "gpuPools": {"h100": {"gpuType": "a.b/c", "gpuCount": 1}}},
        "gpuPools has h100. Name one of them",
    ),
    (nested("kueue.localQueue.enabled", True), "needs kueue.localQueue.clusterQueue"),
    (nested("networkPolicy.runs", True), "does nothing without networkPolicy.enabled"),
    (nested("cache.existingClaim", "models"), "does nothing without cache.enabled"),
    (nested("images.cpu.tag", "latest"), "images.cpu.tag is latest, which says no version"),
    (nested("commonLabels", {"app.kubernetes.io/name": "x"}), "which the chart sets itself"),
    (nested("trainJobs.env.AWS_SECRET_ACCESS_KEY", "x"), "trainJobs.env.AWS_SECRET_ACCESS_KEY looks like a secret"),
    (nested("trainJobs.env.HF_TOKEN", "x"), "trainJobs.env.HF_TOKEN looks like a secret"),
    (nested("trainJobs.env.AWS_REGION", "x"), "trainJobs.env.AWS_REGION is set by the chart itself"),
]


def test_there_are_enough_of_them():
    assert len(REFUSED) >= 40


@pytest.mark.parametrize(
    ("path", "value", "where", "what"), REFUSED, ids=[f"{r[0]}-{i}" for i, r in enumerate(REFUSED)]
)
def test_a_wrong_value_is_refused_where_it_stands(path, value, where, what):
    values = nested(path, value)
    message = schema_error("progrpo", values)
    assert f"at '{where}': " in message, message
    assert what in message
    assert len(message.splitlines()) <= 6, message
    with pytest.raises(helm_python.HelmValuesError):
        render("progrpo", values)


@pytest.mark.parametrize(("values", "what"), FAILS)
def test_values_that_do_not_fit_together_are_refused(values, what):
    assert schema_error("progrpo", values) == ""
    with pytest.raises(helm_python.HelmRenderError, match=r"configmap\.yaml") as caught:
        render("progrpo", values)
    assert what in str(caught.value)


def test_every_object_of_the_schema_is_closed_or_says_what_its_keys_are():
    with helm_python.Chart.load(str(CHARTS / "progrpo")) as chart:
        schema = chart.schema
        defaults = chart.values
    opened = [where for where, node in _objects(schema, "") if node.get("additionalProperties") in (None, True)]
    # Kubernetes' own, deep and changing; it checks them itself.
    assert opened == [f"/properties/pods/properties/affinity/properties/{k}" for k in _AFFINITIES]
    assert _undescribed(schema, schema, defaults, "") == []


_AFFINITIES = ("nodeAffinity", "podAffinity", "podAntiAffinity")


def _objects(node, where):
    if isinstance(node, dict):
        if node.get("type") == "object":
            yield where, node
        for key, value in node.items():
            yield from _objects(value, f"{where}/{key}")


def _undescribed(schema, node, defaults, where):
    """Return the keys that the schema allows and values.yaml does not show."""
    found = []
    node = schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
    for key, child in node.get("properties", {}).items():
        if not isinstance(defaults, dict) or key not in defaults:
            found.append(f"{where}/{key}")
        elif defaults[key]:
            found += _undescribed(schema, child, copy.deepcopy(defaults[key]), f"{where}/{key}")
    return found
