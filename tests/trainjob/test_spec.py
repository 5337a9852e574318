"""The manifest of a TrainJob, without a cluster: what goes where, and what must not get in."""

import json
import logging
import re
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from progrpo.config import parse
from progrpo.errors import ConfigError, StorageError
from progrpo_components import variables
from progrpo_components.settings import TrainJobConfig
from progrpo_components.trainjob.artifacts import plain_uri
from progrpo_components.trainjob.job import (
    MAX_TERMINATION_BYTES,
    error_of_termination,
    read_worker_job,
    termination_message,
)
from progrpo_components.trainjob.spec import OURS, Owner, build_trainjob, choose_api, environment

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
OWNER = Owner("compare-x7", "uid-1")
TASK = SimpleNamespace(
    resources={"limits": {"nvidia.com/gpu": "4", "memory": "100Gi"}, "requests": {"cpu": "8"}},
    node_selector={"gpu": "h100"},
    tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    affinity={"nodeAffinity": {}},
    env=[
        {"name": "PROGRPO_PIPELINE", "value": "compare"},
        {"name": "MLFLOW_TRACKING_URI", "value": "https://mlflow.example.com"},
        {"name": "MY_SECRET", "valueFrom": {"secretKeyRef": {"name": "mine", "key": "k"}}},
        {"name": "MLFLOW_TRACKING_TOKEN", "value": "token-in-clear"},
        {"name": "KFP_POD_NAME", "value": "launcher"},
        {"name": "PET_NNODES", "value": "9"},
        {"name": "HOME", "value": "/home/of-the-launcher"},
    ],
    volumes=[{"name": "cache", "persistentVolumeClaim": {"claimName": "cache"}}],
    volume_mounts=[{"name": "cache", "mountPath": "/cache"}],
)


def build(job, api="runtimePatches", task=TASK, owner=OWNER, **values):
    config = TrainJobConfig.model_validate(values)
    return build_trainjob(job, config, namespace="team-a", runtime="torch", api=api, task=task, owner=owner, now=NOW)


@pytest.fixture
def gpu_job(make_job):
    train = {"prompts_per_step": 8, "distributed": {"num_processes": 8, "strategy": "fsdp2"}}
    return make_job(output="s3://bucket/out", train=train)


def pod_of(body, api):
    if api == "podTemplateOverrides":
        (override,) = body["spec"][api]
        assert override["targetJobs"] == [{"name": "node"}]
        return override
    (patch,) = body["spec"][api]
    assert re.fullmatch(r"[a-z0-9.]+/[a-z]+", patch["manager"]), "Trainer's webhook wants a prefixed path"
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert replicated["name"] == "node"
    return replicated["template"]["spec"]["template"]


@pytest.mark.parametrize("api", ["runtimePatches", "podTemplateOverrides"])
def test_resources_placement_and_volumes_come_from_the_task(gpu_job, api):
    body = build(gpu_job, api, queue="gpus", priority_class="high", image="r/i@sha256:0", image_pull_secrets=["pull"])
    trainer = body["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 4)
    assert trainer["resourcesPerNode"] == TASK.resources
    assert trainer["image"] == "r/i@sha256:0"
    pod = pod_of(body, api)["spec"]
    assert pod["nodeSelector"] == {"gpu": "h100"}
    assert pod["tolerations"] == TASK.tolerations
    assert pod["affinity"] == {"nodeAffinity": {}}
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    assert {volume["name"] for volume in pod["volumes"]} == {"dshm", "cache"}
    (container,) = pod["containers"]
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/dev/shm", "/cache"}
    assert "env" not in container, "Trainer refuses it there"
    assert pod_of(body, api)["metadata"]["labels"] == {
        "progrpo.io/kfp-run-id": "run-1",
        "progrpo.io/arm": "progrpo",
        "progrpo.io/seed": "3",
        "sidecar.istio.io/inject": "false",
    }, "the recommended labels are the runtime's own, which network policies go by"
    assert ("securityContext" in container, "securityContext" in pod) == ((api == "runtimePatches",) * 2)
    assert body["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert body["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "high"
    assert body["spec"]["runtimeRef"] == {
        "apiGroup": "trainer.kubeflow.org",
        "kind": "TrainingRuntime",
        "name": "torch",
    }


def test_what_the_configuration_says_wins_over_the_task(gpu_job):
    body = build(gpu_job, resources_per_node={"limits": {"nvidia.com/gpu": 4.0}}, num_nodes=2, shm_size="64Gi")
    assert body["spec"]["trainer"]["resourcesPerNode"] == {"limits": {"nvidia.com/gpu": 4}}
    volumes = pod_of(body, "runtimePatches")["spec"]["volumes"]
    assert volumes[0] == {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}}


def test_without_a_task_the_runtime_decides(job):
    body = build(job, task=None, owner=None, deadline_s=None)
    assert not {"resourcesPerNode", "image"} & body["spec"]["trainer"].keys()
    assert not {"nodeSelector", "tolerations", "affinity"} & pod_of(body, "runtimePatches")["spec"].keys()
    assert "ownerReferences" not in body["metadata"]
    assert "activeDeadlineSeconds" not in body["spec"]


def test_labels_owner_and_heartbeat(gpu_job):
    metadata = build(gpu_job)["metadata"]
    labels = metadata["labels"]
    selector = OURS.split(",")
    assert selector[0] == f"app.kubernetes.io/managed-by={labels['app.kubernetes.io/managed-by']}"
    assert labels[selector[1]] == "run-1"
    assert (labels["progrpo.io/arm"], labels["progrpo.io/seed"]) == ("progrpo", "3")
    assert metadata["annotations"] == {
        "progrpo.io/run": "run-1/progrpo/3",
        "progrpo.io/output": "s3://bucket/out",
        "progrpo.io/heartbeat": "2026-01-02T03:04:05Z",
        "progrpo.io/workflow": "compare-x7",
        "progrpo.io/workflow-uid": "uid-1",
    }
    (owner,) = metadata["ownerReferences"]
    assert owner["blockOwnerDeletion"] is False, "which would need a right on workflows/finalizers"


def test_secrets_are_references_and_never_values(gpu_job, caplog):
    body = build(gpu_job)
    env = {entry["name"]: entry for entry in body["spec"]["trainer"]["env"]}
    assert env["PROGRPO_S3_SECRET_ACCESS_KEY"]["valueFrom"]["secretKeyRef"] == {
        "name": "progrpo-s3",
        "key": "AWS_SECRET_ACCESS_KEY",
        "optional": True,
    }
    assert env["MY_SECRET"]["valueFrom"]["secretKeyRef"]["name"] == "mine"
    assert env["MLFLOW_TRACKING_URI"] == {"name": "MLFLOW_TRACKING_URI", "value": "https://mlflow.example.com"}
    assert env["PROGRPO_S3_ENDPOINT_URL"]["valueFrom"]["configMapKeyRef"]["name"] == "progrpo-defaults"
    assert "token-in-clear" not in json.dumps(body)
    assert "MLFLOW_TRACKING_TOKEN is not passed on" in caplog.text
    assert "token-in-clear" not in caplog.text
    assert not {"KFP_POD_NAME", "PET_NNODES", "HOME"} & env.keys(), "Trainer's webhook refuses PET_*"
    assert len(env) == len(body["spec"]["trainer"]["env"])


def test_nodes_get_the_variables_of_the_steps_and_no_other():
    """Save what Kubeflow passes on, which includes what its MLflow plugin hands out."""
    names = {entry["name"] for entry in environment(TrainJobConfig(), ())}
    assert names == {*variables.CONFIG_MAP, *variables.S3_SECRET, *variables.MLFLOW_SECRET}
    assert all(name.startswith("PROGRPO_") for name in names)


def test_nodes_get_what_the_plugin_hands_to_the_launcher_alone(monkeypatch):
    """KFP_MLFLOW_CONFIG and credentials are set in the launcher's template, which no passthrough sees (2.17.0)."""
    config = {"endpoint": "http://mlflow", "parentRunId": "p", "experimentId": "1", "authType": "bearer"}
    config = json.dumps({**config, "credentialSecretRef": {"tokenKey": "my-token"}, "timeout": "30s"})
    monkeypatch.setenv("KFP_MLFLOW_CONFIG", config)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "in-clear")
    env = {entry["name"]: entry for entry in environment(TrainJobConfig(), ())}
    assert env["KFP_MLFLOW_CONFIG"]["value"] == config
    assert env["MLFLOW_TRACKING_TOKEN"]["valueFrom"]["secretKeyRef"] == {
        "name": "kfp-mlflow-credentials",
        "key": "my-token",
        "optional": True,
    }
    assert "in-clear" not in json.dumps(env)


@given(name=st.sampled_from(["A_TOKEN", "DB_PASSWORD", "x_secret", "OPENAI_API_KEY", "AWS_ACCESS_KEY_ID", "my_apikey"]))
def test_no_plain_secret_gets_through(name):
    logging.disable(logging.WARNING)
    found = environment(TrainJobConfig(), [{"name": name, "value": "in-clear"}])
    logging.disable(logging.NOTSET)
    assert "in-clear" not in json.dumps(found)


def test_ranks_nodes_and_gpus_must_fit(gpu_job):
    with pytest.raises(ConfigError, match=r"num_processes is 8, which does not divide among trainjob.num_nodes 3"):
        build(gpu_job, num_nodes=3)
    with pytest.raises(ConfigError, match=r"each node asks for 4 nvidia.com/gpu, but has 2 ranks"):
        build(gpu_job, num_nodes=4)
    with pytest.raises(ConfigError, match=r"each node asks for 1 nvidia.com/mig-3g.40gb, but has 4 ranks"):
        build(gpu_job, resources_per_node={"limits": {"nvidia.com/mig-3g.40gb": 1, "memory": "1Gi"}})


def test_the_name_is_the_same_at_each_attempt_and_differs_between_runs(make_job):
    jobs = [
        make_job(output="a"),
        make_job(output="b"),
        make_job(run_id="run-2"),
        make_job(run={"arm": {"name": "progrpo", "algorithm": {"type": "progrpo"}}, "seed": 4}),
        make_job(run={"arm": {"name": "grpo", "algorithm": {"type": "grpo"}}, "seed": 3}),
    ]
    names = [job.name for job in jobs]
    assert names[0] == names[1]
    assert len(set(names[1:])) == 4


@settings(max_examples=50)
@given(run_id=st.text(min_size=1, max_size=200))
def test_any_run_id_makes_legal_names(make_job, run_id):
    body = build_trainjob(make_job(run_id=run_id), TrainJobConfig(), namespace="n", runtime="r", api="runtimePatches")
    # A JobSet's pods are NAME-node-0-0-abcde, and each part of a host name has 63 characters.
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,40}[a-z0-9])?", body["metadata"]["name"])
    for value in body["metadata"]["labels"].values():
        assert re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", value)


def test_the_job_survives_kubernetes_and_comes_back(make_job):
    """Kubernetes turns $(NAME) in an argument into a variable's value and $$ into $."""
    job = make_job(run_id='$(HOME) $$ é " \n', dataset="s3://b/$(AWS_SECRET_ACCESS_KEY)")
    text = job.as_argument()
    assert "$" not in text
    assert "\n" not in text
    assert read_worker_job(text) == job


@given(message=st.text(max_size=9000))
def test_a_termination_message_fits_and_comes_back(message):
    text = termination_message(ConfigError(message))
    assert len(text.encode()) <= MAX_TERMINATION_BYTES
    back = error_of_termination(text)
    assert type(back) is ConfigError
    assert message.startswith(str(back))


@pytest.mark.parametrize("text", ["", "Traceback", "[]", '{"error": 1}', "null"])
def test_what_is_no_termination_message_is_none(text):
    assert error_of_termination(text) is None


def test_the_api_is_chosen_by_the_clusters_fields():
    assert choose_api(TrainJobConfig(), {"trainer", "podTemplateOverrides"}) == "podTemplateOverrides"
    assert choose_api(TrainJobConfig(), {"runtimePatches", "podTemplateOverrides"}) == "runtimePatches"
    assert choose_api(TrainJobConfig(api="podTemplateOverrides"), set()) == "podTemplateOverrides"
    with pytest.raises(ConfigError, match=r"neither runtimePatches nor podTemplateOverrides, but podSpecOverrides"):
        choose_api(TrainJobConfig(), {"podSpecOverrides"})


@pytest.mark.parametrize(
    ("uri", "plain"),
    [
        ("minio://mlpipeline/v2/artifacts/x", "s3://mlpipeline/v2/artifacts/x"),
        ("s3://bucket/x?endpoint=minio:9000&disableSSL=true", "s3://bucket/x"),
        ("/mnt/claim/x", "/mnt/claim/x"),
    ],
)
def test_kubeflows_uris_are_taken(uri, plain):
    assert plain_uri(uri) == plain


def test_other_stores_are_refused():
    with pytest.raises(StorageError, match=r"not gs://. Give the pipeline a pipeline root on an S3-compatible store"):
        plain_uri("gs://bucket/x")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"num_nodes": 0}, "num_nodes"),
        ({"nodes": 2}, "unknown key"),
        ({"priority_class": "high"}, "needs queue"),
        ({"shm_size": "lots"}, "shm_size"),
        ({"runtime": "No Such"}, "runtime"),
        ({"deadline_s": 1}, "deadline_s"),
        ({"api": "podSpecOverrides"}, "api"),
        ({"resources_per_node": {"limit": {}}}, "unknown key"),
    ],
)
def test_wrong_settings_are_explained(values, told):
    with pytest.raises(ConfigError, match=told):
        parse(TrainJobConfig, values, source="trainjob")
