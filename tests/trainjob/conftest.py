"""The stand-in Kubernetes API, a job, and a training run that is there already."""

import pytest

from charts.helm import render
from kubernetes_api import KubernetesApi, at, serve
from progrpo.manifest import write_manifest
from progrpo_components.settings import TrainJobConfig
from progrpo_components.trainjob import launcher
from progrpo_components.trainjob.cluster import Cluster
from progrpo_components.trainjob.job import WorkerJob
from progrpo_components.trainjob.launcher import launch


@pytest.fixture(scope="session")
def training_runtime():
    """The training runtime of charts/progrpo."""
    return render("progrpo", {"trainJobs": {"mode": "always", "runtime": {"create": True}}}).one("TrainingRuntime")


@pytest.fixture
def api(tmp_path, monkeypatch, training_runtime):
    """A stand-in API server with the chart's training runtime; the kubeconfig points to it."""
    api = KubernetesApi()
    metadata = {**training_runtime["metadata"], "creationTimestamp": at(-86400)}
    api.runtimes[metadata["name"]] = {**training_runtime, "metadata": metadata}
    monkeypatch.setenv("PROGRPO_TRAINING_RUNTIME", metadata["name"])
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KFP_POD_NAME", "launcher-pod")
    api.pods["launcher-pod"] = {
        "metadata": {
            "name": "launcher-pod",
            "labels": {},
            "ownerReferences": [
                {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "compare-x7", "uid": "uid-workflow"}
            ],
        }
    }
    with serve(api, tmp_path / "kubeconfig"):
        yield api


@pytest.fixture
def job(tmp_path, make_job):
    return make_job(output=str(tmp_path / "training"))


@pytest.fixture(scope="session")
def make_job():
    """Make a job of two ranks; values are keys of a WorkerJob."""
    return _make_job


def _make_job(**values):
    run = {"arm": {"name": "progrpo", "algorithm": {"type": "progrpo"}}, "seed": 3}
    train = {"steps": 2, "prompts_per_step": 4, "device": "cpu", "distributed": {"num_processes": 2}}
    uris = {name: f"s3://bucket/{name}" for name in ("dataset", "checkpoint", "output")}
    tracking = {"experiment": "e", "run_id": "run-1"}
    return WorkerJob.model_validate(
        {"run": run, "train": train, "run_id": "run-1", "tracking": tracking, **uris, **values}
    )


@pytest.fixture
def write_output(job, tmp_path):
    """Write the training run that a TrainJob would have written."""

    def write():
        (tmp_path / "training").mkdir()
        (tmp_path / "training" / "metrics.jsonl").write_text("{}\n")
        write_manifest(tmp_path / "training", "training", metadata={"steps": 2})

    return write


@pytest.fixture
def lines():
    return []


@pytest.fixture
def launched(job, lines, monkeypatch):
    """Launch with a short patience, as fast as the stand-in answers."""
    monkeypatch.setattr(launcher, "GONE_S", 5.0)

    def run(config=None, *, patience_s=3.0, other_job=None, **values):
        cluster = Cluster.connect(patience_s=patience_s)
        return launch(
            other_job or job, config or TrainJobConfig(**values), cluster=cluster, show=lines.append, poll_s=0.02
        )

    return run
