"""The recorder, a small package, and the command as a user calls it."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from kfp import compiler, dsl

from kfp_recorder import Recorder, recording
from progrpo_pipelines import cli
from progrpo_pipelines.client import api, starting


@dataclass(frozen=True)
class Done:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


@pytest.fixture(scope="session")
def package_path(tmp_path_factory) -> str:
    """A small compiled pipeline: a parameter of every type, a task, a loop, and a task that writes Markdown."""

    def component(function):
        return dsl.component(function, base_image="localhost/none:1", packages_to_install=[], install_kfp_package=False)

    @component
    def prepare(dataset: dict, experiment: str) -> list:
        pass

    @component
    def train(seed: int, rate: float):
        pass

    @component
    def evaluate(
        steps: int,
        summary: dsl.Output[dsl.Markdown],
        card: dsl.Output[dsl.Markdown],
        metrics: dsl.Output[dsl.Metrics],
        report: dsl.Output[dsl.HTML],
    ):
        pass

    @dsl.pipeline(name="evaluate")
    def pipeline(
        dataset: dict = {"source": "a"},  # noqa: B006 - kfp reads the default
        experiment: str = "progrpo",
        fast: bool = True,
        rate: float = 1e-6,
        seeds: list = [0, 1],  # noqa: B006
        steps: int = 10,
    ):
        prepared = prepare(dataset=dataset, experiment=experiment).set_display_name("Prepare dataset")
        with dsl.ParallelFor(seeds) as seed:
            train(seed=seed, rate=rate).after(prepared).set_display_name("Train")
        evaluate(steps=steps).after(prepared).set_display_name("Evaluate")

    path = tmp_path_factory.mktemp("package") / "evaluate-smoke.yaml"
    compiler.Compiler().compile(pipeline, str(path))
    return str(path)


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
def submit(progrpo, package_path):
    """Call ``progrpo submit`` with a small package, and wait for its end."""

    def call(*arguments: str, package: str = package_path, **kwargs: Any) -> Done:
        common = ("--experiment", "nightly", "--wait", "--poll", "0.02s", "--retry-for", "0.4s")
        return progrpo("submit", package, *common, *arguments, **kwargs)

    return call
