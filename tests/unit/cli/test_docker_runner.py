"""What of the caller's machine a container sees, without Docker."""

import json

import pytest

from progrpo.errors import ConfigError
from progrpo_pipelines.cli import main
from progrpo_pipelines.local import docker_runner
from progrpo_pipelines.local.docker_runner import ContainerSettings, environment_of, inputs_of
from progrpo_pipelines.local.progress import ProgressReader
from progrpo_pipelines.local.running import _written_by
from progrpo_pipelines.local.tracking_server import artifacts_of, needs_server
from progrpo_pipelines.packaging.presets import resolve


def test_services_and_credentials_are_taken_over_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    caller = {
        "AWS_SECRET_ACCESS_KEY": "s",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
        "PROGRPO_SANDBOX_URL": "http://127.0.0.1:8080",
        "PATH": "/somewhere",
        "HF_HOME": "/mine",
        "GITHUB_TOKEN": "t",
        "PYTHONPATH": "/mine",
    }
    assert environment_of(caller) == ({name: caller[name] for name in list(caller)[:3]}, ())


def test_variables_that_name_files_bring_them_along(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("[default]")
    (tmp_path / "ca.pem").write_text("")
    caller = {"AWS_CA_BUNDLE": str(tmp_path / "ca.pem"), "SSL_CERT_FILE": str(tmp_path / "absent.pem")}
    environment, files = environment_of(caller)
    credentials = str(tmp_path / ".aws" / "credentials")
    assert environment == {"AWS_CA_BUNDLE": str(tmp_path / "ca.pem"), "AWS_SHARED_CREDENTIALS_FILE": credentials}
    assert set(files) == {str(tmp_path / "ca.pem"), credentials}


def test_local_inputs_become_absolute_and_links_are_followed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "0123").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/0123")
    arguments = {
        "checkpoint": {"uri": "snapshots/abc"},
        "dataset": {"source": {"train_uri": "problems.jsonl", "eval_uri": "s3://bucket/eval.jsonl"}},
        "other": {"uri": "embedded://countdown-sft"},
        "dataset_train_uri": "",  # absent, in a pipeline's form
    }
    changed, paths = inputs_of(arguments)
    assert changed == {
        "checkpoint": {"uri": str(snapshot)},
        "dataset": {"source": {"train_uri": str(tmp_path / "problems.jsonl"), "eval_uri": "s3://bucket/eval.jsonl"}},
        "other": {"uri": "embedded://countdown-sft"},
        "dataset_train_uri": "",
    }
    assert set(paths) == {str(snapshot), str(blobs), str(tmp_path / "problems.jsonl")}


def test_settings_survive_the_file(tmp_path):
    assert ContainerSettings.read(tmp_path) is None
    settings = ContainerSettings("run-1", "none", ("/data",), ())
    settings.write(tmp_path)
    found = ContainerSettings.read(tmp_path)
    assert (found.run, found.network, list(found.readable)) == ("run-1", "none", ["/data"])


def test_a_container_that_died_is_a_failed_step(tmp_path):
    progress = tmp_path / "001"
    progress.mkdir()
    (progress / "train-grpo-0.jsonl").write_text(json.dumps({"step": "train", "state": "running", "pid": 7}) + "\n")
    docker_runner._report_failure(progress, "its container was killed")
    docker_runner._report_failure(progress, "said twice")  # a step that has reported its own end keeps it
    (row,) = ProgressReader(tmp_path, in_containers=True).rows()
    assert (row.state, row.error, row.user_error) == ("failed", "its container was killed", False)


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"MLFLOW_TRACKING_URI": "sqlite:////runs/mlflow.db"}, True),
        ({"MLFLOW_TRACKING_URI": "sqlite:////runs/mlflow.db", "PROGRPO_TRACKING": "off"}, False),
        ({"MLFLOW_TRACKING_URI": "http://mlflow:5000"}, False),
    ],
)
def test_a_server_is_started_for_a_file_only(environment, wanted):
    assert needs_server(environment) is wanted
    assert str(artifacts_of("sqlite:////runs/mlflow.db")) == "/runs/mlartifacts"


def test_docker_that_does_not_answer_is_one_message(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/absent.sock")
    with pytest.raises(SystemExit) as exit_:
        main(["run", "compare", "--preset", "smoke", "--runner", "docker", "--output", str(tmp_path / "run")])
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: Docker does not answer at unix://{tmp_path}/absent.sock")
    assert not (tmp_path / "run").exists()


def test_network_without_containers_is_a_mistake(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["run", "compare", "--preset", "smoke", "--network", "none"])
    assert exit_.value.code == 2
    assert "--runner docker" in capsys.readouterr().err


def test_a_database_that_containers_cannot_reach_is_refused(tmp_path, monkeypatch):
    from rich.console import Console

    from progrpo_pipelines.local import running as local

    environment = {"MLFLOW_TRACKING_URI": "postgresql://me:secret@db/mlflow", local.RUN_ID_VARIABLE: "r"}
    with pytest.raises(ConfigError, match="over HTTP") as caught:
        local._containers(environment, "host", (), Console())
    assert "secret" not in str(caught.value)
    off = {**environment, "MLFLOW_TRACKING_URI": "sqlite:////runs/mlflow.db", "PROGRPO_TRACKING": "off"}
    assert local._containers(off, "none", (), Console()) == ContainerSettings("r", "none")


def test_a_file_uri_is_a_path(tmp_path):
    (tmp_path / "models").mkdir()
    changed, paths = inputs_of({"uri": f"{(tmp_path / 'models').as_uri()}"})
    assert changed == {"uri": str(tmp_path / "models")}
    assert paths == (str(tmp_path / "models"),)


def test_training_state_may_be_written(tmp_path):
    state = tmp_path / "state"
    parameters = resolve("compare", preset="smoke", settings=[f"train.checkpointing={{uri: {state}}}"])
    assert _written_by(parameters) == (str(state),)
    assert state.is_dir()  # Docker would make it as root
    assert _written_by(resolve("compare", preset="smoke")) == ()
    assert _written_by(resolve("evaluate", preset="smoke")) == ()
