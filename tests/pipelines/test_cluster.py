"""What a cluster would make of the packages: pods, states, what the last task hears and says, what MLflow shows."""

import json

import pytest
from kfp import dsl
from mlflow import MlflowClient

from kfp_driver import FailedError, KilledError, TerminatedError
from kubernetes_api import KubernetesApi, serve
from progrpo_components.settings import TrainJobConfig
from progrpo_components.trainjob.job import WorkerJob
from progrpo_components.trainjob.spec import build_trainjob
from s3 import s3_server  # noqa: F401 - a fixture

L40S = {"nvidia.com/gpu.product": "NVIDIA-L40S"}
TAINT = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
POOL = {"gpu_count": 2, "placement_node_selector": L40S, "placement_tolerations": [TAINT]}


def table(pods):
    """Show what the pods ask Kubernetes for: step, limits, node selector and tolerations."""
    lines = []
    for pod in pods:
        limits = " ".join(f"{name}={pod.limits[name]}" for name in sorted(pod.limits))
        placed = [*pod.node_selector.values(), *(item["key"] for item in pod.tolerations)]
        lines.append(" | ".join([pod.step, limits, *placed]))
    return lines


# --- pods ------------------------------------------------------------------------------------------------------------

CHECKED = [
    "validate-inputs | cpu=2 memory=4Gi",
    "import-checkpoint | cpu=2 memory=16Gi",
    "prepare-dataset | cpu=2 memory=8Gi",
]
ON_POOL = "cpu=2 memory=8Gi nvidia.com/gpu=2 | NVIDIA-L40S | nvidia.com/gpu"
END = ["compare | cpu=2 memory=16Gi", "promote | cpu=2 memory=4Gi", "finish | cpu=2 memory=2Gi"]
PODS = {
    "compare": [*CHECKED, f"evaluate | {ON_POOL}", *[f"train | {ON_POOL}", f"evaluate | {ON_POOL}"] * 4, *END],
    "train-and-evaluate": [*CHECKED, f"evaluate | {ON_POOL}", f"train | {ON_POOL}", f"evaluate | {ON_POOL}", *END],
    "evaluate": [*CHECKED, f"evaluate | {ON_POOL}", "finish | cpu=2 memory=2Gi"],
    "prepare": CHECKED,
}


@pytest.mark.parametrize("pipeline", PODS)
def test_gpus_are_asked_for_where_the_form_says(cluster, pipeline):
    run = cluster.play(f"{pipeline}-smoke", {} if pipeline == "prepare" else POOL)
    assert table(run.pods) == PODS[pipeline]
    for pod in run.pods:
        assert pod.requests == {name: pod.limits[name] if name == "memory" or pod.node_selector else "1"
                                for name in ("cpu", "memory")}  # fmt: skip
        names = {entry["name"] for entry in pod.env}
        assert {"PROGRPO_IMAGE", "PROGRPO_PIPELINE", "KFP_POD_NAME"} <= names
        shared = any(mount["mountPath"] == "/dev/shm" for mount in pod.volumes)
        assert shared == bool(pod.node_selector)
        assert pod.labels == {"app.kubernetes.io/part-of": "progrpo", "progrpo.io/step": pod.step}


def test_without_gpus_a_pod_has_no_entry_of_them_and_goes_anywhere(cluster):
    run = cluster.play("evaluate-smoke", {"gpu_count": 0})
    (pod,) = (pod for pod in run.pods if pod.step == "evaluate")
    assert pod.limits == {"cpu": "2", "memory": "8Gi"}
    assert (pod.node_selector, pod.tolerations, pod.affinity) == ({}, [], {})


@pytest.fixture
def own_inputs(tmp_path):
    """Parameters of the multi-node packages, which need a model and data."""
    rows = [{"prompt": f"{i}+1", "answer": str(i + 1)} for i in range(100)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shorter = {"max_completion_tokens": 64}
    return {
        **POOL,
        "gpu_count": 8,
        "checkpoint_uri": "embedded://countdown-sft",
        "dataset_train_uri": str(tmp_path / "data.jsonl"),
        "dataset_task": "exact",
        "seeds": [0],
        "overrides": {"train": {"max_prompt_tokens": 32, **shorter}, "evaluation": shorter},
    }


def test_the_nodes_of_a_trainjob_get_the_gpus_and_its_launcher_none(
    cluster,
    own_inputs,
    s3_server,  # noqa: F811
    monkeypatch,
):
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3_server.client().create_bucket(Bucket="mlpipeline")
    run = cluster.play("compare-multi-node", own_inputs)
    launcher, _ = pods = [pod for pod in run.pods if pod.step == "launch-train"]
    assert table(pods) == ["launch-train | "] * 2
    assert "finish" in {pod.step for pod in run.pods}, cluster.error
    handed = launcher.task_config
    names = {"nodeSelector": "node_selector", "volumeMounts": "volume_mounts"}  # kfp/dsl/executor.py
    task = dsl.TaskConfig(**{names.get(name, name): value for name, value in handed.items()})
    uris = {name: f"s3://b/{name}" for name in ("dataset", "checkpoint", "output")}
    values = {"run": launcher.parameters["run"], "train": launcher.parameters["config"], "run_id": "r", **uris}
    trainjob = TrainJobConfig.model_validate(launcher.parameters["trainjob"])
    job = WorkerJob.model_validate(values)
    body = build_trainjob(job, trainjob, namespace="n", api="runtimePatches", task=task, runtime="r")
    limits = body["spec"]["trainer"]["resourcesPerNode"]["limits"]
    assert limits == {"cpu": "64", "memory": "768Gi", "nvidia.com/gpu": "8"}
    assert body["spec"]["trainer"]["numNodes"] == 2
    jobs = body["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = jobs[0]["template"]["spec"]["template"]["spec"]
    assert (pod["nodeSelector"], pod["tolerations"]) == (L40S, [TAINT])


def test_a_root_that_the_nodes_cannot_write_to_is_refused_first(cluster, own_inputs):
    run = cluster.play("compare-multi-node", own_inputs, pipeline_root="gs://bucket/artifacts")
    assert [pod.step for pod in run.pods] == ["validate-inputs", "finish"]
    assert "pipeline root: 'gs://bucket/artifacts/" in cluster.error
    assert "not gs://. Give the pipeline a pipeline root on an S3-compatible store" in cluster.error


# --- states, and what is said of them --------------------------------------------------------------------------------

WELL = {"pipeline": "FINISHED", "start": "FINISHED", "grpo-seed0": "FINISHED", "progrpo-seed0": "FINISHED"}
STOPPED = WELL | {"pipeline": "KILLED", "progrpo-seed0": "KILLED"}
FAILED = WELL | {"pipeline": "FAILED", "progrpo-seed0": "FAILED"}
LATE = WELL | {"pipeline": "FAILED"}
TRAIN = "train progrpo"
ENDINGS = {
    # what happens: (task -> how it ends, what finish hears, title of its card, its rows, MLflow)
    "all goes well": ({}, "COMPLETE", "succeeded", {}, WELL),
    "the import fails once": ({"import-checkpoint": [FailedError]}, "COMPLETE", "succeeded", {}, WELL),
    "the import fails": ({"import-checkpoint": [FailedError] * 3}, "FAILED", "failed", {}, {}),
    "a training fails": ({TRAIN: [FailedError]}, "FAILED", "failed", {"failed": "progrpo seed 0"}, FAILED),
    "the gate fails": ({"promote": [FailedError]}, "FAILED", "failed", {}, LATE),
    "a training is killed": (
        {TRAIN: [KilledError]}, "RUNNING", "not known, see the run's page",
        {"stopped in the middle": "progrpo seed 0"}, STOPPED,
    ),
    "Terminate": (
        {TRAIN: [TerminatedError]}, "RUNNING", "not known, see the run's page",
        {"stopped in the middle": "progrpo seed 0"}, STOPPED,
    ),
}  # fmt: skip


def rows_of(card):
    title, *lines = card.splitlines()
    rows = dict(line.strip("|` ").split("` | `") for line in lines if line.startswith("| `"))
    rows.pop("pipeline run")
    rows.pop("MLflow runs closed")
    return title, rows


@pytest.mark.parametrize("what", ENDINGS)
def test_the_last_task_says_how_a_run_ended(cluster, what):
    cluster.fates, heard, title, rows, statuses = ENDINGS[what]
    cluster.fates = {task: list(fates) for task, fates in cluster.fates.items()}
    run = cluster.play("compare-smoke", {"seeds": [0]})
    assert run.heard == heard
    assert rows_of(cluster.card) == (f"# compare: {title}", rows)
    assert cluster.mlflow() == statuses


@pytest.mark.parametrize(
    ("fate", "title", "rows", "status"),
    [
        (KilledError, "failed", {"failed": "train of training run 2", "stopped in the middle": "progrpo seed 0"},
         "FAILED"),
        (TerminatedError, "cancelled", {"stopped in the middle": "progrpo seed 0"}, "KILLED"),
    ],
)  # fmt: skip
def test_a_workflow_that_may_be_read_tells_a_kill_from_terminate(
    cluster, fate, title, rows, status, tmp_path, monkeypatch
):
    cluster.fates = {TRAIN: [fate]}
    cluster.api = KubernetesApi()
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    with serve(cluster.api, tmp_path / "kubeconfig"):
        run = cluster.play("compare-smoke", {"seeds": [0]})
    assert run.heard == "RUNNING"
    assert rows_of(cluster.card) == (f"# compare: {title}", rows)
    assert cluster.mlflow() == WELL | {"pipeline": status, "progrpo-seed0": status}


def test_before_2_17_the_comparison_tells_that_a_run_went_well(cluster):
    run = cluster.play("compare-smoke", {"seeds": [0]}, backend="2.16")
    assert run.heard == "RUNNING"
    assert rows_of(cluster.card) == ("# compare: succeeded", {})
    assert cluster.mlflow() == WELL


@pytest.mark.parametrize("pipeline", PODS)
def test_no_block_of_a_run_that_went_well_is_shown_as_running(cluster, pipeline):
    run = cluster.play(f"{pipeline}-smoke", cached={"prepare-dataset", "import-checkpoint"})
    waiting, states = [*run.root.children], set()
    while waiting:
        execution = waiting.pop()
        waiting += execution.children
        states.add(execution.state)
    assert states == {"COMPLETE", "CACHED"}
    assert run.heard == (None if pipeline == "prepare" else "COMPLETE")


def test_in_a_run_of_kubeflows_plugin_what_failed_is_named(cluster, monkeypatch):
    """The plugin on and nothing handed out: its run of the pipeline is known to the launcher's environment alone."""
    client = MlflowClient(cluster.uri)
    experiment = client.create_experiment("of the plugin")
    parent = client.create_run(experiment, tags={"progrpo.role": "plugin"}, run_name="plugin").info.run_id
    config = {"endpoint": cluster.uri, "parentRunId": parent, "experimentId": experiment}
    monkeypatch.setenv("KFP_MLFLOW_CONFIG", json.dumps(config))
    cluster.fates = {TRAIN: [FailedError]}
    cluster.play("compare-smoke", {"seeds": [0]})
    assert rows_of(cluster.card) == ("# compare: failed", {"failed": "progrpo seed 0"})
    assert cluster.mlflow()["plugin"] == "RUNNING"  # Kubeflow ends it
    assert [name for name, status in cluster.mlflow().items() if status == "FAILED"] == ["progrpo-seed0"]
