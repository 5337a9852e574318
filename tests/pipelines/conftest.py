"""What runs in the pods of a package that the stand-in of Kubeflow plays."""

import inspect
import json
import shutil
from pathlib import Path

import pytest
from kfp import dsl
from mlflow import MlflowClient

from kfp_driver import FailedError, Run
from kubernetes_api import KubernetesApi
from progrpo.errors import ProGRPOError
from progrpo_components.finish.component import finish
from progrpo_components.steps import Tracking
from progrpo_components.tracking.runs import Finder, new_client
from progrpo_components.validate_inputs.component import validate_inputs

COMPILED = Path(__file__).parents[2] / "pipelines" / "compiled"
VALIDATED = {}
"""What the first task made of a form; nothing that it looks at changes here."""


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


class Cluster:
    """Plays packages. The first and the last step are the real ones; of those between, MLflow's runs are."""

    def __init__(self, directory):
        self.uri = f"sqlite:///{directory / 'mlflow.db'}"
        self._directory = directory
        self.fates: dict[str, list[type[Exception]]] = {}
        """Task, and of a training run arm and seed -> how its attempts end; beyond them, well."""
        self.card = self.error = ""
        self.api: KubernetesApi | None = None
        self.run: Run | None = None

    def play(self, package, parameters=(), **options):
        text = (COMPILED / f"{package}.yaml").read_text()
        self.run = Run(text, dict(parameters), self._program, **options)
        return self.run.execute()

    def mlflow(self):
        """Return name -> status of every MLflow run."""
        client = MlflowClient(self.uri)
        ids = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(ids)
        return {
            "pipeline" if run.data.tags["progrpo.role"] == "pipeline" else run.info.run_name: run.info.status
            for run in runs
        }

    def _program(self, pod):
        steps = {"validate-inputs": self._validate, "finish": self._finish}
        with pytest.MonkeyPatch.context() as environment:
            for entry in pod.env:
                if entry.get("value") and entry["name"].startswith("MLFLOW_"):
                    environment.setenv(entry["name"], entry["value"])
            steps.get(pod.step, self._work)(pod)

    def _work(self, pod):
        run = pod.parameters.get("run") or next((a.metadata for a in pod.inputs.get("model", ())), {})
        arm = run["arm"]["name"] if run else None
        fates = self.fates.get(f"{pod.task} {arm}" if "run" in pod.parameters else pod.task, [])
        fate = fates.pop(0) if fates else None
        for output in pod.outputs.values():
            output.metadata = dict(run)
        pod.results["Output"] = ""
        if "run_id" in pod.parameters and pod.step != "promote":
            known = ("experiment", "run_id", "run_name")
            tracking = Tracking.of_pipeline(*(pod.parameters[name] for name in known if name in pod.parameters))
            of = (arm or "start", int(run["seed"]) if run else None) if pod.step != "compare" else (None, None)
            place = tracking.locate(pod.step.removeprefix("launch-"), *of)
            client = new_client(place.uri)
            run_id = Finder(client).open_run(place).run_id
            if fate is None:
                client.set_terminated(run_id, "FINISHED")
            elif fate is FailedError:
                client.set_terminated(run_id, "FAILED")
        if fate is not None:
            raise fate

    def _validate(self, pod):
        signature = inspect.signature(validate_inputs.python_func).parameters
        given = {
            name: int(value) if signature[name].annotation is int else value
            for name, value in pod.parameters.items()
            if name in signature
        }
        key = json.dumps([given, self.run.pipeline_root])
        if key not in VALIDATED:
            card = dsl.Markdown(name="card", uri=pod.outputs["card"].uri, metadata={})
            card.custom_path = str(self._directory / "inputs.md")
            try:
                VALIDATED[key] = validate_inputs.python_func(**given, card=card)
            except ProGRPOError as error:
                self.error = str(error)
                raise FailedError from error
        names = [name for name in validate_inputs.component_spec.outputs if name != "card"]
        pod.results.update(zip(names, VALIDATED[key], strict=True))

    def _finish(self, pod):
        status = pod.parameters["status"]
        if self.api is not None:
            self.api.workflows[status["pipelineJobResourceName"]] = self.run.workflow
        summary = dsl.Markdown(name="summary", uri="", metadata={})
        summary.custom_path = str(self._directory / "finish.md")
        finish.python_func(
            **{name: value for name, value in pod.parameters.items() if name != "status"},
            status=dsl.PipelineTaskFinalStatus(
                state=status["state"],
                pipeline_job_resource_name=status["pipelineJobResourceName"],
                pipeline_task_name=status["pipelineTaskName"],
                error_code=None,
                error_message="",
            ),
            summary=summary,
        )
        self.card = Path(summary.path).read_text()


@pytest.fixture
def cluster(tmp_path, monkeypatch, empty_store):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    cluster = Cluster(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", cluster.uri)
    monkeypatch.setenv("PROGRPO_TRACKING", "on")
    for variable in ("PROGRPO_PIPELINE_RUN_ID", "KUBERNETES_SERVICE_HOST", "KFP_MLFLOW_CONFIG", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(variable, raising=False)
    return cluster
