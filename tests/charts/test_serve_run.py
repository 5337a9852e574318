"""A promoted checkpoint on its way to a server: real MLflow and S3, and the rendered init container as a process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from charts.helm import render
from charts.processes import Machine, installed
from mlflow_server import running_mlflow
from progrpo.comparison.result import GateResult
from progrpo.errors import CheckpointError, ConfigError, ManifestError, StorageError
from progrpo.manifest import read_manifest, write_manifest
from progrpo_components.fetch_model import Fetched, fetch_model
from progrpo_components.registry import register
from s3 import S3Server, s3_server  # noqa: F401

BUCKET = "served"


@pytest.fixture(scope="module")
def server(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:  # noqa: F811
    """MLflow that keeps artifacts in S3 and hands them out itself."""
    client = s3_server.client()
    with suppress(client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket=BUCKET)
    database = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    artifacts = f"s3://{BUCKET}/mlflow"
    with running_mlflow(f"sqlite:///{database}", artifacts, environment=s3_server.environment) as mlflow:
        yield mlflow.uri


@pytest.fixture
def client(server: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: F811
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return MlflowClient(server)  # another test of this process may have set another one for all clients


@pytest.fixture
def training(tmp_path: Path) -> Path:
    directory = tmp_path / "training"
    checkpoint = directory / "checkpoint"
    (checkpoint / "parts").mkdir(parents=True)
    (checkpoint / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (checkpoint / "parts" / "model.safetensors").write_bytes(b"weights" * 1000)
    write_manifest(checkpoint, "checkpoint")
    return directory


def promote(client: Any, model: str, training: Path, uri: str) -> str:
    """Register a training's checkpoint as the promote step does, and return its digest."""
    digest = read_manifest(training / "checkpoint", "checkpoint").digest
    gate = GateResult(
        candidate="progrpo", outcome="promote", reason="better", level=0.95, rules=(), obstacles=(), model=model,
        fail_on=(), seed=0, checkpoint_digest=digest,
    )  # fmt: skip
    experiment = client.get_experiment_by_name("serve")
    run = client.create_run(experiment.experiment_id if experiment else client.create_experiment("serve"))
    assert register(client, run.info.run_id, gate, uri, {}) is not None
    return digest


def upload(s3: S3Server, directory: Path, key: str) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            s3.client().upload_file(str(path), BUCKET, f"{key}/{path.relative_to(directory)}")


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_the_champion_is_fetched_through_mlflow(client, training, tmp_path):
    digest = promote(client, "through-mlflow", training, str(training))
    fetched = fetch_model("models:/through-mlflow@champion", tmp_path / "out")
    assert fetched == Fetched("models:/through-mlflow/1", digest)
    assert contents(tmp_path / "out") == contents(training / "checkpoint")
    assert fetch_model("models:/through-mlflow/1", tmp_path / "again") == fetched


def test_a_version_in_a_bucket_is_fetched_from_there(client, s3_server, training, tmp_path):  # noqa: F811
    upload(s3_server, training, "runs/7")
    digest = promote(client, "in-a-bucket", training, f"s3://{BUCKET}/runs/7")
    assert fetch_model("models:/in-a-bucket@champion", tmp_path / "out").digest == digest
    assert contents(tmp_path / "out") == contents(training / "checkpoint")
    assert fetch_model(f"s3://{BUCKET}/runs/7/checkpoint", tmp_path / "direct").digest == digest


def test_a_second_start_of_the_pod_fetches_nothing_again(client, training, tmp_path):
    promote(client, "twice", training, str(training))
    out = tmp_path / "out"
    fetch_model("models:/twice@champion", out)
    before = (out / "config.json").stat().st_mtime_ns, (out / "config.json").stat().st_ino
    fetch_model("models:/twice@champion", out)
    assert ((out / "config.json").stat().st_mtime_ns, (out / "config.json").stat().st_ino) == before
    (tmp_path / ".out.fetch").mkdir()  # of an attempt that was killed
    (tmp_path / ".out.fetch" / "half").write_bytes(b"x")
    (out / "config.json").write_text("{}")  # a damaged one is fetched again
    fetch_model("models:/twice@champion", out)
    assert contents(out) == contents(training / "checkpoint")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "training"}


def test_a_checkpoint_changed_after_its_promotion_is_refused(client, s3_server, training, tmp_path):  # noqa: F811
    promote(client, "changed", training, f"s3://{BUCKET}/changed")
    (training / "checkpoint" / "config.json").write_text("{}")
    upload(s3_server, training, "changed")
    with pytest.raises(ManifestError, match="differs from its manifest"):
        fetch_model("models:/changed@champion", tmp_path / "out")
    write_manifest(training / "checkpoint", "checkpoint")  # whole again, but another checkpoint
    upload(s3_server, training, "changed")
    with pytest.raises(CheckpointError, match="changed after its promotion"):
        fetch_model("models:/changed@champion", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["training"]


def test_what_cannot_be_served_says_why(client, server, training, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"'runs:/1/model' cannot be served. Allowed: models:/NAME@ALIAS"):
        fetch_model("runs:/1/model", out)
    with pytest.raises(StorageError, match="Check MLFLOW_TRACKING_URI"):
        fetch_model("models:/nobody@champion", out)
    with pytest.raises(StorageError, match="neither an object nor a prefix"):
        fetch_model(f"s3://{BUCKET}/nothing", out)
    client.create_registered_model("foreign")
    run = client.create_run(client.create_experiment("foreign"))
    client.create_model_version("foreign", f"{run.info.artifact_uri}/model", run_id=run.info.run_id)
    with pytest.raises(CheckpointError, match="was not registered by progrpo"):
        fetch_model("models:/foreign/1", out)


def test_the_rendered_container_fetches_and_says_what_is_wrong(
    client,
    server,
    s3_server,  # noqa: F811
    training,
    tmp_path,
):
    digest = promote(client, "rendered", training, str(training))
    others = {
        "progrpo-defaults": {"MLFLOW_TRACKING_URI": server, "AWS_ENDPOINT_URL": s3_server.endpoint},
        "progrpo-s3": {name: s3_server.environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")},
    }
    names = {"/model": str(tmp_path / "model"), "/tmp": str(tmp_path)}
    (tmp_path / "model").mkdir()

    def run(uri: str) -> Any:
        release = render("progrpo-serve", {"model": {"mlflow": {"uri": uri}}})
        machine = Machine(release, tmp_path, names, {"python": installed("python")}, others)
        (fetch,) = machine.pod("Deployment/progrpo-progrpo-serve").spec["initContainers"]
        return machine.run(fetch)

    done = run("models:/rendered@champion")
    assert done.returncode == 0, done.stderr.decode()
    assert f"fetched models:/rendered/1, checkpoint {digest}".encode() in done.stderr
    assert contents(tmp_path / "model" / "checkpoint") == contents(training / "checkpoint")
    done = run("models:/rendered@nobody")
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: MLflow does not give 'models:/rendered@nobody'")
    assert s3_server.secret_key.encode() not in done.stderr


class Server(BaseHTTPRequestHandler):
    """A stand-in for vLLM's API: one model, one token, and a key where there is one."""

    key = ""

    def do_GET(self) -> None:
        self.reply({"data": [{"id": "progrpo"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply({"choices": [{"text": " 2"}]})

    def reply(self, body: Any) -> None:
        allowed = not self.key or self.headers.get("Authorization") == f"Bearer {self.key}"
        self.send_response(200 if allowed else 401)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("asked_for", "given", "model", "message"),
    [
        ("sk-1", "sk-1", "progrpo", "progrpo answered ' 2'"),
        ("", "sk-1", "progrpo", "the server answers without a key"),
        ("sk-1", "sk-2", "progrpo", "HTTP Error 401"),
        ("", "", "progrpo", "vLLM asks nobody for an empty key"),
        ("sk-1", "sk-1", "other", "the server has ['progrpo'], not 'other'"),
    ],
)
def test_helm_test_finds_a_server_that_is_open_or_another(asked_for, given, model, message, tmp_path):
    handler = type("Keyed", (Server,), {"key": asked_for})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        release = render("progrpo-serve", {"model": {"servedName": model}})
        address = f"http://127.0.0.1:{server.server_port}"
        names = {"http://progrpo-progrpo-serve:80": address, "/etc/progrpo": str(tmp_path / "etc")}
        machine = Machine(release, tmp_path, names, {"python": installed("python")})
        pod = machine.pod("Pod/progrpo-progrpo-serve-test")
        machine.write_config_maps(pod)
        (container,) = pod.spec["containers"]
        plain = {**container, "env": [v for v in container["env"] if v["name"] != "VLLM_API_KEY"]}
        done = machine.run(plain, env={"VLLM_API_KEY": given})
        server.shutdown()
    assert message in (done.stdout + done.stderr).decode()
    assert (done.returncode == 0) == ("answered" in message)
