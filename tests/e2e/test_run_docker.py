"""``progrpo run --runner docker``: the same pipeline in this repository's images, with MLflow and S3 on loopback."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import progrpo
from docker_engine import docker_engine, images  # noqa: F401 - fixtures
from finished_run import TINY, finished_run
from mlflow_server import MLflowServer
from progrpo.manifest import read_manifest
from repetitions import repetitions
from s3 import s3_server  # noqa: F401 - a fixture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

COMMAND = [sys.executable, "-m", "progrpo_pipelines.cli", "run"]
# Long enough to be interrupted: minutes of sampling.
LONG = ["evaluate", "--preset", "smoke", "--set", "evaluation.num_samples=20000", "--set", "dataset.source.num_train=8"]
LONG += ["--set", "dataset.source.num_eval=64", "--runner", "docker", "--network", "none"]


@pytest.fixture(scope="module")
def services(tmp_path_factory, s3_server):  # noqa: F811
    """The URI of a checkpoint in S3, and the environment that leads there and to an MLflow with its artifacts there."""
    client = s3_server.client()
    models, artifacts = s3_server.new_bucket("models"), s3_server.new_bucket("mlflow")
    for path in (Path(progrpo.__file__).parent / "embedded" / "countdown-sft").iterdir():
        client.upload_file(str(path), models, f"countdown-sft/{path.name}")
    database = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    server = MLflowServer(f"sqlite:///{database}", f"s3://{artifacts}/runs", s3_server.environment)
    server.start()
    environment = {**s3_server.environment, "MLFLOW_TRACKING_URI": server.uri, "PROGRPO_TRACKING": "on"}
    yield f"s3://{models}/countdown-sft", environment
    server.stop()


@pytest.fixture(scope="module")
def runs(tmp_path_factory, python, services, docker_engine, images):  # noqa: F811
    """A run in processes, and its first seed again in containers: their directories and what they printed."""
    checkpoint, environment = services
    folder = tmp_path_factory.mktemp("docker")
    settings = TINY | {"seeds": [0], "checkpoint": {"uri": checkpoint}}
    settings["comparison"] = {**TINY["comparison"], "gate": {**TINY["comparison"]["gate"], "min_seeds": 1}}
    (folder / "tiny.yaml").write_text(json.dumps(settings))
    command = [*COMMAND, "compare", "--preset", "smoke", "--params-file", str(folder / "tiny.yaml")]
    command += ["--output", str(folder / "docker"), "--runner", "docker"]
    environment = {**os.environ, **docker_engine.environment, **environment}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr + done.stdout
    process = finished_run(python)
    return {"process": (process.directory, process.stdout), "docker": (folder / "docker", done.stdout)}


def of_runs(client) -> list:
    """Every container that a run made, ended ones too; other tests have theirs in the same engine."""
    return client.containers.list(all=True, filters={"label": "progrpo.run"})


def contents(directory: Path, name: str) -> list:
    """The files of this name in a run's artifacts, of its first seed, without what tells one run from another."""
    found = []
    for path in directory.glob(f"artifacts/**/{name}"):
        content = json.loads(path.read_text())
        if content.get("seed") in (None, 0):
            found.append((content.get("arm") or "", content.get("seed"), content["metrics"]))
    return sorted(found, key=str)


def test_the_metrics_are_the_same_to_the_last_digit(runs):
    local, docker = (contents(runs[runner][0], "evaluation.json") for runner in ("process", "docker"))
    assert len(local) == 3
    timings = {key for _, _, metrics in local for key in metrics if key.startswith(("cost/", "perf/"))}
    for one, other in zip(local, docker, strict=True):
        assert {k: v for k, v in one[2].items() if k not in timings} == {
            k: v for k, v in other[2].items() if k not in timings
        }
    for arm in ("grpo", "progrpo"):
        rewards = []
        for runner in ("process", "docker"):
            (path,) = (
                path.parent / "metrics.jsonl"
                for path in runs[runner][0].glob("artifacts/**/manifest.json")
                if (manifest := json.loads(path.read_text()))["kind"] == "training"
                and (manifest["config"]["arm"]["name"], manifest["config"]["seed"]) == (arm, 0)
            )
            lines = map(json.loads, path.read_text().splitlines())
            rewards.append([(line["train/reward"], line["train/loss"]) for line in lines if "train/reward" in line])
        assert rewards[0] == rewards[1]
        assert len(rewards[0]) == 4


def test_every_artifact_is_whole_and_the_callers(runs):
    directory, _ = runs["docker"]
    kinds = []
    for path in directory.glob("artifacts/**/manifest.json"):
        kinds.append(json.loads(path.read_text())["kind"])
        read_manifest(path.parent, kinds[-1])
        assert path.stat().st_uid == os.getuid()
    assert sorted(set(kinds)) == ["checkpoint", "comparison", "dataset", "evaluation", "promotion", "training"]


def test_progress_and_paths_are_shown(runs):
    directory, printed = runs["docker"]
    for part in ("in containers of ", "train (progrpo, seed 0): finished, 4/4", str(directory / "report.html")):
        assert part in printed
    assert not (directory / "tmp").exists()


def test_mlflow_and_s3_were_reached_from_the_containers(runs, services):
    from mlflow import MlflowClient

    _, environment = services
    uri = environment["MLFLOW_TRACKING_URI"]
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    (experiment,) = client.search_experiments(filter_string="name = 'progrpo'")
    mine = [
        run
        for run in client.search_runs([experiment.experiment_id])
        if run.data.tags["progrpo.pipeline_run_id"].startswith("docker-")
    ]
    assert sorted(run.info.run_name for run in mine) == ["docker", "grpo-seed0", "progrpo-seed0", "start"]
    assert {run.info.status for run in mine} == {"FINISHED"}
    (comparison,) = (run.info.run_id for run in mine if run.info.run_name == "docker")
    assert "report.html" in {file.path for file in client.list_artifacts(comparison)}
    version = client.get_model_version_by_alias("progrpo", "champion")
    assert version.source


def test_no_secret_is_written_down(runs, services):
    directory, printed = runs["docker"]
    secret = services[1]["AWS_SECRET_ACCESS_KEY"]
    assert secret not in printed
    for path in directory.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path


def test_no_container_is_left(runs, docker_engine):  # noqa: F811
    assert of_runs(docker_engine.client()) == []


def test_without_a_server_the_runs_are_in_the_local_database(tmp_path, docker_engine, images):  # noqa: F811
    from mlflow import MlflowClient

    command = [*COMMAND, "evaluate", "--preset", "smoke", "--runner", "docker", "--output", str(tmp_path / "run")]
    command += ["--set", "dataset.source.num_train=8", "--set", "dataset.source.num_eval=8"]
    command += ["--set", "evaluation.num_samples=2"]
    environment = {**os.environ, **docker_engine.environment, "PROGRPO_TRACKING": "on"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr + done.stdout
    assert f"--backend-store-uri sqlite:///{tmp_path / 'mlflow.db'}" in done.stdout
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("progrpo")
    assert experiment.artifact_location.startswith((tmp_path / "mlartifacts").as_uri())
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert any("eval/pass_at_1" in run.data.metrics for run in runs)
    assert (tmp_path / "mlartifacts").stat().st_uid == os.getuid()


# --- failing, and being stopped --------------------------------------------------------------------------------------


@pytest.fixture
def long_run(tmp_path, docker_engine, images):  # noqa: F811
    """A run in the middle of its evaluate step, and that step's container."""
    process = subprocess.Popen(
        [*COMMAND, *LONG, "--output", str(tmp_path / "run")],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **docker_engine.environment},
        # A shell starts its background jobs with SIGINT ignored, and what is ignored is inherited: also by this test.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    client = docker_engine.client()
    sampled = wait_for(
        lambda: (
            process.poll() is not None
            or any('"done"' in file.read_text() for file in (tmp_path / "run" / "progress").glob("*/evaluate-*.jsonl"))
        ),
        300,
    )
    assert process.poll() is None, process.stderr.read()
    assert sampled, "the evaluate step did not start"
    (container,) = of_runs(client)
    yield process, container, client, tmp_path / "run"
    process.kill()
    process.wait()
    process.stderr.close()
    wait_for(lambda: not of_runs(client), 30)


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not (result := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return result


def test_a_killed_component_fails_the_run(long_run):
    process, container, client, _ = long_run
    container.kill()
    _, message = process.communicate(timeout=60)
    assert process.returncode == 1
    assert message.startswith("error: evaluate (start) failed: its container was killed (exit code 137)")
    assert of_runs(client) == []


def test_an_interrupt_ends_the_step_first_and_leaves_nothing(long_run):
    process, _, client, directory = long_run
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130, message
    assert of_runs(client) == []
    (progress,) = (directory / "progress").glob("*/evaluate-*.jsonl")
    assert json.loads(progress.read_text().splitlines()[-1])["state"] == "failed"  # SIGTERM reached Python itself


def test_killing_the_command_leaves_no_container(long_run):
    process, _, client, _ = long_run
    process.kill()
    process.wait()
    assert wait_for(lambda: not of_runs(client), 30)


def test_every_failure_is_a_failure(tmp_path, docker_engine, images, monkeypatch):  # noqa: F811
    """Containers that end before anyone asks are where kfp's own runner reports success."""
    from kfp import dsl, local
    from kfp.local import docker_task_handler

    from progrpo_pipelines.local.docker_runner import ContainerSettings, ContainerTasks

    @dsl.container_component
    def fail():
        return dsl.ContainerSpec(image=images["progrpo-cpu"], command=["sh", "-c", "exit 3"])

    @dsl.container_component
    def succeed():
        return dsl.ContainerSpec(image=images["progrpo-cpu"], command=["sh", "-c", "exit 0"])

    monkeypatch.setenv("DOCKER_HOST", docker_engine.host)
    tasks = ContainerTasks(tmp_path, ContainerSettings("failures", "none"), {})
    monkeypatch.setattr(docker_task_handler, "run_docker_container", tasks.run)
    local.init(local.DockerRunner(), pipeline_root=str(tmp_path / "artifacts"))
    failures, times = 0, repetitions("failing containers")
    for _ in range(times):
        try:
            fail()
        except RuntimeError as error:
            failures += "FAILURE" in str(error)
    succeed()
    assert failures == times
    assert docker_engine.client().containers.list(all=True, filters={"label": "progrpo.run=failures"}) == []
