"""Real MLflow servers: one on sqlite below a path, one on PostgreSQL and S3 with passwords."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mlflow_server import MLflowServer
from postgres import postgres  # noqa: F401  # a fixture
from progrpo_components.tracking import Place, locate
from progrpo_components.tracking.tracker import Tracker
from s3 import s3_server  # noqa: F401  # a fixture
from shared import made_once

PREFIX = "/team/mlflow"
FAST_SENDER = """
import sys
from progrpo_components.tracking import delivery, sender
delivery.POINTS_A_BATCH = 10
sender.FLUSH_S, sender.FIRST_WAIT_S, sender.LONGEST_WAIT_S = 0.02, 0.02, 0.05
sender.GIVE_UP_S, sender.LAST_S = 60.0, 240.0
sys.exit(sender.main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Tracked:
    """A server that runs for the session, and how it is reached."""

    port: int
    uri: str
    environment: dict[str, str]


@pytest.fixture(scope="session")
def sqlite_server() -> Tracked:
    """A server on sqlite that listens below a path, as behind an ingress."""

    def start(root: Path) -> dict[str, Any]:
        options = ["--static-prefix", PREFIX]
        server = MLflowServer(f"sqlite:///{root / 'mlflow.db'}", str(root / "artifacts"), options=options, root=root)
        server.start_for_session(f"{PREFIX}/health")
        return {"port": server.port, "uri": f"{server.uri}{PREFIX}", "environment": {}}

    return Tracked(**made_once("mlflow-sqlite", start))


@pytest.fixture(scope="session")
def team_server(postgres, s3_server, require_all) -> Tracked:  # noqa: F811
    """What a team runs: PostgreSQL, artifacts in S3 by way of the server, users with passwords."""
    if find_spec("flask_wtf") is None:
        reason = "basic auth of mlflow server needs Flask-WTF (mlflow[auth])"
        pytest.fail(reason) if require_all else pytest.skip(reason)

    def start(root: Path) -> dict[str, Any]:
        s3_server.client().create_bucket(Bucket="mlflow")
        config = root / "auth.ini"
        settings = {
            "default_permission": "READ",
            "database_uri": f"sqlite:///{root}/users.db",
            "admin_username": "ana",
            "admin_password": "a-password-of-ana",
            "auth_cache_ttl_seconds": 300,  # without it every request costs a slow hash
            "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
        }
        config.write_text("[mlflow]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))
        environment = {
            **s3_server.environment,
            "MLFLOW_S3_ENDPOINT_URL": s3_server.endpoint,
            "MLFLOW_AUTH_CONFIG_PATH": str(config),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "for-tests",
        }
        options = ["--app-name", "basic-auth", "--serve-artifacts"]
        server = MLflowServer(postgres.uri, "s3://mlflow/artifacts", environment, options, root=root)
        server.start_for_session()
        user = {"MLFLOW_TRACKING_USERNAME": "ana", "MLFLOW_TRACKING_PASSWORD": "a-password-of-ana"}
        return {"port": server.port, "uri": server.uri, "environment": user}

    return Tracked(**made_once("mlflow-team", start))


@pytest.fixture
def use(monkeypatch) -> Callable[[str, dict[str, str]], None]:
    """Return a function that lets steps track to a URI, with nothing else set."""

    def set_up(uri: str, environment: dict[str, str] | None = None) -> None:
        names = ["PROGRPO_TRACKING", "PROGRPO_PIPELINE_RUN_ID", "KFP_MLFLOW_CONFIG"]
        for name in (*names, *(name for name in os.environ if name.startswith("MLFLOW_"))):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
        for name, value in (environment or {}).items():
            monkeypatch.setenv(name, value)

    return set_up


@pytest.fixture
def fast_sender(monkeypatch, python, tmp_path) -> None:
    """Start senders that wait hundredths of a second where others wait seconds."""
    program = tmp_path / "fast_sender.py"
    program.write_text(FAST_SENDER)
    monkeypatch.setattr(Tracker, "sender_command", [python, str(program)])
    monkeypatch.setattr("progrpo_components.tracking.tracker.CLOSE_S", 250.0)


@pytest.fixture
def _no_sender(monkeypatch) -> None:
    """Start no sender: what is logged stays in the spool until a test delivers it."""
    monkeypatch.setattr(Tracker, "_start", lambda self: None)


@pytest.fixture
def pipeline_run() -> str:
    """The id of a pipeline run that no other test has used."""
    return uuid.uuid4().hex


def runs_of(client, pipeline_run: str, experiment: str = "tracking") -> dict[str, Any]:
    """The runs of a pipeline run by name; fails if two have the same."""
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id], f"tags.`progrpo.pipeline_run_id` = '{pipeline_run}'")
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {run.info.run_name: run for run in runs}


def place_of(run: str, arm: str | None = "grpo", seed: int | None = 0, *, task: str = "train", **options) -> Place:
    """Where a step of a pipeline run logs."""
    return locate(experiment="tracking", pipeline_run_id=run, run_name=run, task=task, arm=arm, seed=seed, **options)


def history(client, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Every point of a run."""
    keys = client.get_run(run_id).data.metrics
    return {key: sorted((m.step, m.value) for m in client.get_metric_history(run_id, key)) for key in keys}


def spools(directory: Path) -> list[Path]:
    """The spools in and below a directory."""
    return sorted(directory.rglob(".tracking-*.jsonl"))
