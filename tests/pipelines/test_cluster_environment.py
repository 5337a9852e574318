"""What Kubeflow's MLflow plugin puts into a task's environment and what we do must not stand in each other's way."""

from mlflow import MlflowClient

from kfp_driver import FailedError


def test_with_the_variables_of_kubeflows_plugin_every_pod_is_taken(cluster):
    """And the last task knows which of the runs that Kubeflow made for the tasks failed."""
    client = MlflowClient(cluster.uri)
    experiment = client.create_experiment("of the plugin")

    def handed_out(task):
        """As v2/common/plugins/mlflow/handler.go of 2.17.0, RetrieveUserContainerEnvVars, with basic auth."""
        made = client.create_run(experiment, run_name=f"kubeflow {task}", tags={"progrpo.role": "plugin"})
        values = {"MLFLOW_RUN_ID": made.info.run_id, "MLFLOW_TRACKING_URI": cluster.uri}
        values["MLFLOW_EXPERIMENT_ID"] = experiment
        secret = {"name": "kfp-mlflow-credentials", "key": "k"}
        return [
            *({"name": name, "value": value} for name, value in values.items()),
            *(
                {"name": f"MLFLOW_TRACKING_{name}", "valueFrom": {"secretKeyRef": secret}}
                for name in ("USERNAME", "PASSWORD")
            ),
        ]

    cluster.fates = {"train progrpo": [FailedError]}
    run = cluster.play("compare-smoke", {"seeds": [0]}, plugin_env=handed_out)
    assert run.heard == "FAILED"
    assert "| `failed` | `train progrpo seed 0` |" in cluster.card
