"""Tracking to a real ``mlflow server``: one that serves a sqlite run, one that goes away, one that never was."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from progrpo.comparison.result import GateResult
from progrpo.manifest import write_manifest
from progrpo_components.promotion import register_candidate
from progrpo_components.tracking import open_tracking

START_S = 180


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """``mlflow server`` as ``make ui`` starts it, in a working directory of its own."""

    def __init__(self, root: Path, store: Path) -> None:
        self.port, self.root, self.store = free_port(), root, store
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.store}/mlflow.db"]
        command += ["--artifacts-destination", str(self.store / "mlartifacts")]
        with (self.root / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.root,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if self.get("/health") == b"OK":
                    return
            except OSError:
                time.sleep(0.2)
        self.stop()
        raise AssertionError((self.root / "server.log").read_text())

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self.uri}{path}", timeout=30) as response:  # noqa: S310
            return bytes(response.read())

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def open_run(experiment: str, arm: str = "grpo"):
    return open_tracking(experiment=experiment, pipeline_run_id="p", name=f"{arm} seed 0", arm=arm, seed=0)


@pytest.fixture(scope="module")
def local_run(tmp_path_factory):
    """A store written without a server: (its directory, the run in it, with one artifact)."""
    store = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PROGRPO_TRACKING", raising=False)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store / 'mlflow.db'}")
        report = store / "report.html"
        report.write_text("<p>report</p>")
        with open_run("local") as tracker:
            tracker.log(1, {"train/reward": 0.5})
            tracker.log_artifacts(report)
    return store, tracker.run_id


@pytest.fixture(scope="module")
def server(local_run, tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"), local_run[0])
    server.start()
    yield server
    server.stop()


@pytest.fixture
def _on_server(server, monkeypatch):
    monkeypatch.delenv("PROGRPO_TRACKING", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)


@pytest.fixture
def client(server):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=server.uri)


@pytest.mark.slow
def test_a_server_started_elsewhere_serves_the_artifacts_of_a_sqlite_run(server, local_run):
    _, run_id = local_run
    assert server.get(f"/get-artifact?path=report.html&run_uuid={run_id}") == b"<p>report</p>"
    assert b"report.html" in server.get(f"/api/2.0/mlflow/artifacts/list?run_id={run_id}")


@pytest.mark.slow
@pytest.mark.usefixtures("_on_server")
def test_everything_arrives_through_a_server(server, client, tmp_path):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "a.txt").write_text("plot")
    with open_run("remote") as tracker:
        tracker.log_params({"alpha": 0.3}, prefix="arm.")
        tracker.log(3, {"train/entropy": 0.5})
        tracker.log_artifacts(tmp_path)
    with open_run("remote") as again:
        again.log_metrics({"eval/pass_at_1": 0.25})
    assert again.run_id == tracker.run_id
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"arm.alpha": "0.3"}
    assert run.data.metrics == {"train/entropy": 0.5, "eval/pass_at_1": 0.25}
    assert [(m.step, m.value) for m in client.get_metric_history(tracker.run_id, "train/entropy")] == [(3, 0.5)]
    assert server.get(f"/get-artifact?path=plots/a.txt&run_uuid={tracker.run_id}") == b"plot"


@pytest.mark.slow
@pytest.mark.usefixtures("_on_server")
def test_a_candidate_is_registered_through_a_server(client, tmp_path):
    """A server takes no version from a path of the client's: the checkpoint goes to the artifacts of its run."""
    checkpoint = tmp_path / "training" / "checkpoint"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    gate = GateResult(
        candidate="grpo", outcome="promote", reason="every rule holds", level=0.95, rules=(), obstacles=(),
        model="through-a-server", fail_on=(), seed=0, checkpoint_digest=write_manifest(checkpoint, "checkpoint").digest,
    )  # fmt: skip
    with open_run("registry") as tracker:
        for _ in range(2):  # a step that is tried again
            registration = register_candidate(tracker, gate, (tmp_path / "training").as_uri(), {})
    assert (registration.version, registration.alias) == ("1", "champion")
    version = client.get_model_version_by_alias("through-a-server", "champion")
    assert version.description == "every rule holds"
    assert client.get_run(version.run_id).data.tags["progrpo.arm"] == "grpo"
    local = Path(client.download_artifacts(version.run_id, "checkpoint", str(tmp_path)))
    assert (local / "config.json").read_text() == "{}"


@pytest.mark.slow
@pytest.mark.usefixtures("_on_server")
def test_a_server_that_stops_and_comes_back_gets_everything(server, client, caplog, monkeypatch):
    monkeypatch.setattr("progrpo_components.tracking.FLUSH_S", 0.1)
    tracker = open_run("outage")
    tracker.log(1, {"train/reward": 0.1})
    server.stop()
    try:
        started = time.monotonic()
        tracker.log(2, {"train/reward": 0.2})
        assert time.monotonic() - started < 0.5  # the trainer does not wait for the server
        deadline = time.monotonic() + 60
        while "cannot be reached" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.1)
        tracker.log(3, {"train/reward": 0.3})
    finally:
        server.start()
    tracker.close()
    history = client.get_metric_history(tracker.run_id, "train/reward")
    assert sorted((m.step, m.value) for m in history) == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert caplog.text.count("cannot be reached") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("_on_server")
def test_a_server_that_stays_away_costs_seconds_and_a_warning(server, tmp_path, caplog):
    tracker = open_run("lost")
    server.stop()
    started = time.monotonic()
    tracker.log(1, {"train/reward": 0.1})
    tracker.log_artifacts(tmp_path)
    tracker.close()
    assert time.monotonic() - started < 45
    assert f"MLflow lacks 1 metrics of run {tracker.run_id}" in caplog.text


def test_a_server_that_never_was_costs_seconds_and_its_password_is_not_shown(monkeypatch, caplog):
    monkeypatch.delenv("PROGRPO_TRACKING", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:p%40ss-word@127.0.0.1:{free_port()}")
    started = time.monotonic()
    with open_run("dead") as tracker:
        tracker.log(1, {"train/reward": 0.1})
        tracker.log_params({"a": 1})
        tracker.log_dataset(Path("absent"))
        tracker.log_artifacts(Path("absent"))
    assert time.monotonic() - started < 40
    assert tracker.run_id is None
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("progrpo")]
    assert len(ours) == 1
    assert "cannot be used" in ours[0]
    assert "://***@127.0.0.1" in ours[0]
    assert "ss-word" not in caplog.text


def test_settings_of_the_user_win(monkeypatch):
    monkeypatch.delenv("PROGRPO_TRACKING", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    open_run("dead").close()
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
