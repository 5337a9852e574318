"""What Kubeflow puts into a task's environment, and what we do: neither may stand in the other's way."""

import pytest
from mlflow import MlflowClient

from conftest import COMPILED
from kfp_driver import FailedError, Run

CREDENTIALS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


def handed_out(run_id="a", experiment_id="1", uri="http://mlflow"):
    """What the plugin hands out, of every kind of authentication: v2/common/plugins/mlflow/handler.go of 2.17.0."""
    values = {
        "MLFLOW_RUN_ID": run_id,
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_EXPERIMENT_ID": experiment_id,
        "MLFLOW_WORKSPACE": "team-a",
        "MLFLOW_TRACKING_AUTH": "kubernetes-namespaced",
    }
    secret = {"name": "kfp-mlflow-credentials", "key": "k"}
    return [
        *({"name": name, "value": value} for name, value in values.items()),
        *({"name": name, "valueFrom": {"secretKeyRef": secret}} for name in CREDENTIALS),
    ]


@pytest.mark.parametrize("package", ["compare-smoke", "evaluate-smoke", "prepare-smoke", "train-and-evaluate-smoke"])
def test_no_variable_of_ours_is_one_that_a_platform_sets(package):
    """The launcher of Kubeflow runs in our container, and reads AWS_ and MLFLOW_ variables there."""
    text = (COMPILED / f"{package}.yaml").read_text()
    run = Run(text, {}, lambda pod: None)
    for label, container in run.spec["deploymentSpec"]["executors"].items():
        config = run.kubernetes[label]
        keys = [key["envVar"] for kind in ("configMapAsEnv", "secretAsEnv") for item in config[kind]
                for key in item["keyToEnv"]]  # fmt: skip
        ours = {*keys, *(item["name"] for item in container["container"].get("env", ()))}
        assert not [name for name in ours if name.startswith(("AWS_", "MLFLOW_"))], label


def test_with_the_variables_of_kubeflows_plugin_every_pod_is_taken(cluster):
    """And the last task knows the runs of its making: they are named, and Kubeflow ends them."""
    client = MlflowClient(cluster.uri)
    experiment = client.create_experiment("of the plugin")

    def of_task(task):
        tags = {"progrpo.role": "plugin"}
        run = client.create_run(experiment, run_name=f"kubeflow {task}", tags=tags)
        entries = handed_out(run.info.run_id, experiment, cluster.uri)
        return [entry for entry in entries if entry["name"] not in ("MLFLOW_WORKSPACE", "MLFLOW_TRACKING_AUTH")]

    cluster.fates = {"train progrpo": [FailedError]}
    run = cluster.play("compare-smoke", {"seeds": [0]}, plugin_env=of_task)
    assert run.heard == "FAILED"
    assert "| `failed` | `train progrpo seed 0` |" in cluster.card
