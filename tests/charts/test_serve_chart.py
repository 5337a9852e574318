"""charts/progrpo-serve: its values, with every file of values/progrpo-serve its manifests, and what matters in them."""

from __future__ import annotations

import re
from typing import Any

import helm_python
import pytest

from charts.helm import CHARTS, KUBERNETES, lint, load_values, pods, render, schema_error, schema_problems, values_files
from charts.policy import violations

CHART = "progrpo-serve"
FILES = values_files(CHART)


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def values(request: pytest.FixtureRequest) -> dict[str, Any]:
    return load_values(request.param)


def nested(path: str, value: Any) -> Any:
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


def load(name: str) -> dict[str, Any]:
    return load_values(next(path for path in FILES if path.stem == name))


def pod(values: dict[str, Any] | None = None) -> dict[str, Any]:
    return render(CHART, values, name="chat").one("Deployment")["spec"]["template"]["spec"]


def vllm(values: dict[str, Any] | None = None) -> dict[str, Any]:
    (container,) = pod(values)["containers"]
    return container


def volume(spec: dict[str, Any], name: str) -> dict[str, Any]:
    return next(v for v in spec["volumes"] if v["name"] == name)


def test_there_are_enough_of_them():
    assert len(FILES) >= 10


def test_lint_is_silent(request, values):
    oldest = "v1.33.0" if "oci-volume" in request.node.name else "v1.31.0"
    assert lint(CHART, values, kube_version=oldest) == []
    assert lint(CHART, values, kube_version="v1.37.0") == []


def test_manifests_fit_every_supported_kubernetes(values):
    release = render(CHART, values)
    assert release.manifests
    assert schema_problems(release.manifests, KUBERNETES) == []


def test_manifests_keep_to_the_policy(values):
    assert violations(render(CHART, values).manifests) == []


def test_install_dry_run(values):
    with helm_python.Config(namespace="team-a", storage_driver="memory") as config:
        result = config.install(str(CHARTS / CHART), "chat", values, namespace="team-a", dry_run="client")
    assert "kind: Deployment" in result["manifest"]


def test_no_image_comes_from_elsewhere_in_an_air_gap():
    found = list(pods(render(CHART, load("air-gap")).manifests))
    images = [container["image"] for each in found for container in each.containers]
    assert len(images) == 3
    assert all(image.startswith("registry.site.example:5000/mirror/") for image in images)
    assert all(each.spec["imagePullSecrets"] == [{"name": "site-registry"}] for each in found)


# (dotted key, wrong value, what Helm says)
REFUSED = [
    ("modell", {}, "additional properties 'modell' not allowed"),
    ("model.source", "huggingface", "/model/source': value must be one of 'mlflow', 's3', 'pvc', 'oci'"),
    ("model.servedName", "", "/model/servedName': '' does not match pattern"),
    ("model.mlflow.uri", "models:/progrpo", "/model/mlflow/uri': 'models:/progrpo' does not match pattern"),
    ("model.mlflow.uri", "runs:/abc/model", "/model/mlflow/uri': 'runs:/abc/model' does not match pattern"),
    ("model.mlflow.trackingUri", "https://u:p@mlflow.example", "/model/mlflow/trackingUri':"),
    ("model.mlflow.token", "x", "/model/mlflow': additional properties 'token' not allowed"),
    ("model.s3.uri", "https://bucket/key", "/model/s3/uri': 'https://bucket/key' does not match pattern"),
    ("model.objectStore.accessKey", "x", "/model/objectStore': additional properties 'accessKey' not allowed"),
    ("model.pvc.path", "../other", "/model/pvc/path': '../other' does not match pattern"),
    ("model.pvc.path", "/absolute", "/model/pvc/path': '/absolute' does not match pattern"),
    ("model.oci.mode", "sidecar", "/model/oci/mode': value must be one of 'volume', 'copy'"),
    ("model.oci.reference", "no-registry", "/model/oci/reference': 'no-registry' does not match pattern"),
    ("model.storage.size", "40 GB", "/model/storage/size': '40 GB' does not match pattern"),
    ("model.storage.type", "hostPath", "/model/storage/type': value must be one of 'emptyDir', 'ephemeral'"),
    ("vllm.dtype", "int4", "/vllm/dtype': value must be one of"),
    ("vllm.gpuMemoryUtilization", 1.5, "/vllm/gpuMemoryUtilization': maximum: got 1.5, want 1"),
    ("vllm.gpuMemoryUtilization", 0, "/vllm/gpuMemoryUtilization': exclusiveMinimum: got 0, want 0"),
    ("vllm.maxModelLen", -1, "/vllm/maxModelLen': minimum: got -1, want 0"),
    ("vllm.extraArgs", "--a", "/vllm/extraArgs': got string, want array"),
    ("vllm.extraEnv", {"VLLM_API_KEY": "x"}, "invalid propertyName 'VLLM_API_KEY'"),
    ("vllm.extraEnv", {"VLLM_SERVER_DEV_MODE": "1"}, "invalid propertyName 'VLLM_SERVER_DEV_MODE'"),
    ("vllm.extraEnv", {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}, "invalid propertyName"),
    ("apiKey.existingSecret", "", "/apiKey/existingSecret': '' does not match pattern"),
    ("apiKey.value", "sk-123", "/apiKey': additional properties 'value' not allowed"),
    ("gpu.count", 0.5, "/gpu/count': got number, want integer"),
    ("gpu.resource", "gpu", "/gpu/resource': 'gpu' does not match pattern"),
    ("gpu.tolerations", [{"effect": "Always"}], "/gpu/tolerations/0/effect': value must be one of"),
    ("image.digest", "c1c9f6fd", "/image/digest': 'c1c9f6fd' does not match pattern"),
    ("replicas", -1, "/replicas': minimum: got -1, want 0"),
    ("rollout.maxSurge", 0, "/rollout/maxSurge'"),
    ("rollout.maxUnavailable", 1, "/rollout': additional properties 'maxUnavailable' not allowed"),
    ("probes.startupSeconds", 5, "/probes/startupSeconds': minimum: got 5, want 30"),
    ("autoscaling.type", "vpa", "/autoscaling/type': value must be one of 'none', 'hpa', 'keda'"),
    ("autoscaling.queueLength", 0, "/autoscaling/queueLength': minimum: got 0, want 1"),
    ("networkPolicy.fetchPorts", [70000], "/networkPolicy/fetchPorts/0': maximum: got 70,000, want 65,535"),
    ("podMonitor.interval", "often", "/podMonitor/interval': 'often' does not match pattern"),
]


@pytest.mark.parametrize(("path", "value", "message"), REFUSED)
def test_wrong_values_are_refused(path, value, message):
    assert message in schema_error(CHART, nested(path, value))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"source": "s3"}}, "set model.s3.uri"),
        ({"model": {"source": "pvc"}}, "set model.pvc.claim"),
        ({"model": {"source": "oci"}}, "set model.oci.reference"),
        (nested("model", {"source": "oci", "oci": {"reference": "r.example/m"}}), "add a tag or a digest"),
        (nested("model", {"source": "oci", "oci": {"reference": "r.example/m:latest"}}), "give a version"),
        ({"image": {"tag": "nightly"}}, "the tag nightly of vllm/vllm-openai .* give a version"),
        ({"vllm": {"extraArgs": ["--api-key=sk-1"]}}, "set apiKey.existingSecret"),
        ({"vllm": {"extraArgs": ["--api_key", "sk-1"]}}, "set apiKey.existingSecret"),
        ({"vllm": {"extraArgs": ["--trust-remote-code"]}}, "code that comes with a model is never run"),
        ({"vllm": {"extraArgs": ["--tensor-parallel-size=2"]}}, "set gpu.count"),
        ({"autoscaling": {"type": "keda"}}, "set autoscaling.prometheusUrl"),
        ({"autoscaling": {"type": "hpa", "minReplicas": 9}}, "minReplicas 9 is more than maxReplicas 4"),
    ],
)
def test_what_the_schema_cannot_say_the_templates_do(values, message):
    with pytest.raises(helm_python.HelmRenderError, match=message):
        render(CHART, values)


def test_an_image_volume_needs_a_kubernetes_that_mounts_it(capfd):
    """A lint reports what ``fail`` says on stderr, and goes on; of the two, only it can be told a version."""
    lint(CHART, load("oci-volume"), kube_version="v1.33.0")
    assert "mounts no images" not in capfd.readouterr().err
    lint(CHART, load("oci-volume"), kube_version="v1.32.0")
    assert "Kubernetes v1.32.0 mounts no images (1.33 does). Set it to copy" in capfd.readouterr().err


# --- what matters ----------------------------------------------------------------------------------------------------


def test_the_key_is_a_reference_everywhere():
    wanted = {"secretKeyRef": {"name": "progrpo-serve-api-key", "key": "api-key"}}
    release = render(CHART)
    for owner in pods(release.manifests):
        (found,) = [v for c in owner.spec["containers"] for v in c["env"] if v["name"] == "VLLM_API_KEY"]
        assert found["valueFrom"] == wanted
    assert not release.of("Secret", "Role", "RoleBinding")
    assert not any(
        "VLLM_API_KEY" in str(m) for m in render(CHART, load("no-api-key")).manifests if m["kind"] != "ConfigMap"
    )


@pytest.mark.parametrize(
    ("name", "path", "kind", "init"),
    [
        ("defaults", "/model/checkpoint", "emptyDir", "fetch"),
        ("mlflow-version", "/model/checkpoint", "emptyDir", "fetch"),
        ("s3", "/model/checkpoint", "emptyDir", "fetch"),
        ("pvc", "/model/qwen/checkpoint", "persistentVolumeClaim", None),
        ("oci-volume", "/model/models", "image", None),
        ("oci-copy", "/model/checkpoint", "emptyDir", "copy"),
        ("tensor-parallel", "/model/checkpoint", "ephemeral", "fetch"),
    ],
)
def test_each_source_ends_where_vllm_reads(name, path, kind, init):
    spec = pod(load(name))
    assert spec["containers"][0]["command"] == ["vllm", "serve", path]
    assert kind in volume(spec, "model")
    assert [c["name"] for c in spec.get("initContainers", ())] == ([init] if init else [])
    (mount,) = [m for m in spec["containers"][0]["volumeMounts"] if m["name"] == "model"]
    assert mount == {"name": "model", "mountPath": "/model", "readOnly": True}


def test_a_fetch_has_the_credentials_of_its_source_and_vllm_has_none():
    (fetch,) = pod(load("mlflow-version"))["initContainers"]
    assert fetch["command"] == ["python", "-m", "progrpo_components.fetch_model"]
    assert fetch["args"] == ["models:/countdown/7", "--output=/model/checkpoint"]
    env = {v["name"]: v.get("value") or v["valueFrom"] for v in fetch["env"]}
    assert env["PROGRPO_S3_SECRET_ACCESS_KEY"]["secretKeyRef"] == {
        "name": "our-s3",
        "key": "AWS_SECRET_ACCESS_KEY",
        "optional": True,
    }
    assert env["PROGRPO_MLFLOW_TRACKING_TOKEN"]["secretKeyRef"]["name"] == "our-mlflow"
    assert env["PROGRPO_MLFLOW_TRACKING_URI"] == "https://mlflow.site.example/mlflow"
    assert env["PROGRPO_S3_ENDPOINT_URL"] == "https://s3.site.example"
    assert {name for name in env if name.startswith(("AWS_", "MLFLOW_"))} <= {"AWS_CA_BUNDLE"}
    (fetch,) = pod(load("s3"))["initContainers"]
    assert fetch["args"][0] == "s3://models/team-a/qwen/checkpoint"
    assert "progrpo-mlflow" not in str(fetch)
    for name in ("defaults", "s3"):
        assert not {"AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD"} & {v["name"] for v in vllm(load(name))["env"]}
        assert "envFrom" not in vllm(load(name))


def test_gpus_are_asked_for_and_all_used():
    spec = pod(load("tensor-parallel"))
    container = spec["containers"][0]
    for side in ("requests", "limits"):
        assert container["resources"][side]["nvidia.com/gpu"] == 4
    assert "--tensor-parallel-size=4" in container["args"]
    assert spec["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert spec["runtimeClassName"] == "nvidia"
    assert volume(spec, "shm")["emptyDir"] == {"medium": "Memory", "sizeLimit": "32Gi"}
    assert vllm(load("amd-gpu"))["resources"]["limits"]["amd.com/gpu"] == 1
    cpu = pod(load("cpu"))
    assert cpu["containers"][0]["resources"]["limits"].keys() == {"cpu", "memory"}
    assert not any("tensor-parallel" in argument for argument in cpu["containers"][0]["args"])
    assert "tolerations" not in cpu


def test_fetching_takes_no_gpu():
    (fetch,) = pod()["initContainers"]
    assert "nvidia.com/gpu" not in str(fetch["resources"])


def test_a_rollout_takes_no_server_away_before_its_successor_is_ready():
    spec = render(CHART, load("rollout")).one("Deployment")["spec"]
    assert spec["replicas"] == 3
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": "50%"}
    container = spec["template"]["spec"]["containers"][0]
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 3605
    assert spec["progressDeadlineSeconds"] > 3605


@pytest.mark.parametrize("name", ["defaults", "rollout"])
def test_a_stopping_server_drains_before_it_is_killed(name):
    spec = pod(load(name))
    container = spec["containers"][0]
    (drain,) = (int(a.partition("=")[2]) for a in container["args"] if a.startswith("--shutdown-timeout="))
    sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert (drain, sleep) == ((600, 0) if name == "rollout" else (120, 10))
    assert spec["terminationGracePeriodSeconds"] >= drain + sleep + 30


def test_probes_ask_the_engine_without_a_key():
    container = vllm()
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": "http"}
    # A server under load must not be killed for a slow answer.
    liveness = container["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 60


def test_nothing_is_downloaded_reported_or_run_from_a_model():
    env = {v["name"]: v.get("value") for v in vllm()["env"]}
    assert env["HF_HUB_OFFLINE"] == env["VLLM_NO_USAGE_STATS"] == "1"
    assert "--trust-remote-code" not in vllm()["args"]
    for name in ("pvc", "oci-volume", "oci-copy"):
        assert render(CHART, load(name)).one("NetworkPolicy")["spec"]["egress"] == []


def test_a_fetch_may_reach_names_and_the_stores_ports():
    dns, stores = render(CHART).one("NetworkPolicy")["spec"]["egress"]
    assert {port["port"] for port in dns["ports"]} == {53}
    assert [port["port"] for port in stores["ports"]] == [80, 443, 5000, 8333, 9000]


def test_every_cache_is_on_a_writable_volume():
    container = vllm()
    mounts = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    for variable in container["env"]:
        if re.search("(CACHE|HOME|WORKSPACE)", variable["name"]):
            assert any(variable["value"].startswith(mount) for mount in mounts), variable


def test_autoscaling_owns_the_number_of_servers():
    for name, kind in (("hpa", "HorizontalPodAutoscaler"), ("keda", "ScaledObject")):
        release = render(CHART, load(name), name="chat")
        assert "replicas" not in release.one("Deployment")["spec"]
        target = release.one(kind)["spec"]["scaleTargetRef"]
        assert target["name"] == release.one("Deployment")["metadata"]["name"]
    assert not render(CHART).of("HorizontalPodAutoscaler", "ScaledObject")
    (metric,) = render(CHART, load("hpa")).one("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "vllm_num_requests_waiting"
    (trigger,) = render(CHART, load("keda"), name="chat").one("ScaledObject")["spec"]["triggers"]
    query = 'sum(vllm:num_requests_waiting{namespace="team-a",model_name="progrpo"})'
    assert trigger["metadata"]["query"] == query


def test_the_service_and_the_budget_select_the_servers():
    release = render(CHART, load("names-and-labels"))
    template = release.one("Deployment")["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "serving"
    assert release.one("Service")["spec"]["selector"].items() <= labels.items()
    assert release.one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert release.one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    # The pod of helm test is no server.
    assert not release.one("Service")["spec"]["selector"].items() <= release.one("Pod")["metadata"]["labels"].items()


def test_openshift_chooses_user_and_group():
    for values, fixed in ((load("openshift"), False), ({}, True)):
        for owner in pods(render(CHART, values).manifests):
            context = owner.spec["securityContext"]
            assert ("runAsUser" in context, "fsGroup" in context) == (fixed, fixed)
            assert context["runAsNonRoot"] is True
