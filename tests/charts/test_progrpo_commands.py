"""The commands and variables that charts/progrpo renders, given to the programs they are for, on this machine."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer
import yaml

from charts.helm import load_values, pods, render, values_files
from s3 import free_ports

VALUES = {path.stem: load_values(path) for path in values_files("progrpo")}
START_S = 60


def containers(release):
    return {c["name"]: c for each in pods(release.manifests) for c in each.containers}


def environment(container):
    """Return the variables with a plain value, and what this machine's Python needs."""
    given = {v["name"]: v["value"] for v in container.get("env", ()) if "value" in v}
    ours = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return {**ours, **given}


@pytest.mark.parametrize("name", [name for name in VALUES if name != "nothing"])
def test_the_command_line_takes_every_command(name):
    from progrpo_pipelines.cli import app

    commands = typer.main.get_command(app).commands
    found = containers(render("progrpo", VALUES[name]))
    called = {
        container["command"][1]: container["command"][2:]
        for container in found.values()
        if container["command"][0] == "progrpo"
    }
    assert called
    for command, arguments in called.items():
        context = commands[command].make_context(command, list(arguments))  # refuses what it does not know
        if "namespace" in context.params:
            assert context.params["namespace"] in ("team-a", "shared-pipelines")
        if command != "compile" and "endpoint" in context.params:
            assert context.params["endpoint"].startswith("http")


@pytest.mark.slow
def test_the_job_compiles_what_it_uploads_with_the_site_s_digests(tmp_path):
    found = containers(render("progrpo", VALUES["air-gap"]))
    compiling, uploading = found["compile"], found["upload"]
    command = [sys.executable, "-m", "progrpo_pipelines.cli", *compiling["command"][1:]]
    here = [part.replace("/tmp/", f"{tmp_path}/") for part in command]
    subprocess.run(here, check=True, env=environment(compiling), cwd=tmp_path, timeout=300)
    files = [Path(part.replace("/tmp/", f"{tmp_path}/")) for part in uploading["command"] if part.endswith(".yaml")]
    assert [file.stem for file in files] == ["compare-smoke", "compare", "evaluate", "prepare", "train-and-evaluate"]
    digests = {f"cpu@sha256:{'1' * 64}", f"gpu@sha256:{'2' * 64}"}
    for file in files:
        executors = next(iter(yaml.safe_load_all(file.read_text())))["deploymentSpec"]["executors"].values()
        images = {executor["container"]["image"] for executor in executors}
        assert {image.removeprefix("registry.site.example:5000/mirror/progrpo/progrpo-") for image in images} <= digests


@contextmanager
def running_sandbox(container, directory):
    """Run the container's command on a free port; yields that server's address."""
    (port,) = free_ports(1)
    command = [sys.executable if part == "python" else part for part in container["command"]]
    command[command.index("--host") + 1] = "127.0.0.1"
    command[command.index("--port") + 1] = str(port)
    variables = {**environment(container), "HOME": str(directory), "TMPDIR": str(directory)}
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, env=variables, stdout=log, stderr=log, cwd=directory)
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def test_the_sandbox_answers_its_probes_and_judges(tmp_path, monkeypatch):
    from progrpo.rewards import code

    (container,) = (c for name, c in containers(render("progrpo", VALUES["defaults"])).items() if name == "sandbox")
    with running_sandbox(container, tmp_path) as (process, address):
        probe = container["readinessProbe"]["httpGet"]
        assert container["livenessProbe"]["httpGet"] == container["startupProbe"]["httpGet"] == probe
        deadline = time.monotonic() + START_S
        while True:
            try:
                with urllib.request.urlopen(address + probe["path"], timeout=5) as reply:  # noqa: S310
                    assert json.load(reply)["status"] == "ok"
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.2)
        # The variable is the one that ConfigMap progrpo-defaults gives to pipeline pods.
        monkeypatch.setenv("PROGRPO_SANDBOX_URL", address)
        answer = json.dumps({"inputs": ["2\n"], "outputs": ["4\n"]})
        right, wrong = "print(2 * int(input()))", "print(3 * int(input()))"
        verdicts = code.verify_all([(answer, f"```python\n{program}\n```") for program in (right, wrong)])
        assert [verdict.correct for verdict in verdicts] == [True, False]
    assert process.returncode == 0  # Kubernetes' SIGTERM ends it in order
