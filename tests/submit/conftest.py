"""The recorder, a compiled package, and the command as a user calls it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kfp_recorder import Recorder, recording
from progrpo_pipelines import cli
from progrpo_pipelines.submit import api, starting

COMPILED = Path(__file__).parents[2] / "pipelines" / "compiled"


@dataclass(frozen=True)
class Done:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


@pytest.fixture
def recorder(monkeypatch) -> Recorder:
    """A stand-in of the KFP API; every environment variable that could lead elsewhere is gone."""
    for name in ("KFP_ENDPOINT", "KFP_NAMESPACE", "KFP_EXISTING_TOKEN", "KFP_TOKEN_FILE", "KFP_COOKIE",
                 "KF_PIPELINES_ENDPOINT", "KUBERNETES_SERVICE_HOST", "GITHUB_STEP_SUMMARY", "SSL_CERT_FILE",
                 "REQUESTS_CA_BUNDLE"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(starting, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(starting, "_RACE_S", 0.01)
    monkeypatch.setattr(api, "_FIRST_WAIT_S", 0.05)
    with recording() as made:
        yield made
        assert made.problems == []


@pytest.fixture
def progrpo(recorder, capsys):
    """Call ``progrpo ARGUMENTS`` with the recorder as its server."""

    def call(*arguments: str, endpoint: str | None = None) -> Done:
        with pytest.raises(SystemExit) as exited:
            cli.main([*arguments, "--endpoint", endpoint or recorder.url])
        captured = capsys.readouterr()
        return Done(int(exited.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture
def submit(progrpo):
    """Call ``progrpo submit`` with a small package, and wait for its end."""

    def call(*arguments: str, package: str = str(COMPILED / "evaluate-smoke.yaml"), **kwargs: Any) -> Done:
        common = ("--experiment", "nightly", "--wait", "--poll", "0.02s", "--retry-for", "0.4s")
        return progrpo("submit", package, *common, *arguments, **kwargs)

    return call


@pytest.fixture
def package_path() -> str:
    """A small compiled pipeline."""
    return str(COMPILED / "evaluate-smoke.yaml")
