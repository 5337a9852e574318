"""charts/progrpo and the code it is for: the sandbox's process runs as rendered; training's rights and runtime fit."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import yaml

from charts.helm import ROOT, render
from s3 import free_ports

ALWAYS = {"trainJobs": {"mode": "always", "runtime": {"create": True}}}
START_S = 60


def test_the_roles_are_those_of_docs_trainjob():
    """Both say what the code needs; tests/trainjob holds the document to the code."""
    text = (ROOT / "docs" / "trainjob.md").read_text()
    release = render("progrpo", ALWAYS)
    for name in ("launcher", "reaper"):
        (block,) = re.findall(rf"```yaml\n# {name}\n(.*?)```", text, re.DOTALL)
        wanted, given = (
            {
                (group, resource, verb)
                for rule in rules
                for group in rule["apiGroups"]
                for resource in rule["resources"]
                for verb in rule["verbs"]
            }
            for rules in (yaml.safe_load(block)["rules"], release.one("Role", f"progrpo-{name}")["rules"])
        )
        assert given == wanted


def test_the_runtime_is_the_launcher_s_default(monkeypatch):
    from progrpo_components.settings.trainjob import TrainJobConfig
    from progrpo_components.trainjob.launcher import find_runtime

    config, release = TrainJobConfig(), render("progrpo", ALWAYS)
    for name, value in release.one("ConfigMap", "progrpo-defaults")["data"].items():
        monkeypatch.setenv(name, value)
    runtime = release.one(config.runtime_kind, find_runtime(config))
    assert runtime["spec"]["mlPolicy"]["numNodes"] == config.num_nodes
    assert f"'{config.shm_size}'" in str(runtime)
    assert release.one("ConfigMap", config.config_map)


@contextmanager
def running_sandbox(container, directory):
    """Run the container's command on a free port; yields that server's address."""
    (port,) = free_ports(1)
    command = [sys.executable if part == "python" else part for part in container["command"]]
    command[command.index("--host") + 1] = "127.0.0.1"
    command[command.index("--port") + 1] = str(port)
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    variables |= {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    variables["HOME"] = str(directory)
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, env=variables, stdout=log, stderr=log, cwd=directory)
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def test_the_sandbox_answers_its_probes_and_judges(tmp_path, monkeypatch):
    from progrpo.rewards import code

    (container,) = render("progrpo").pod("Deployment/progrpo-sandbox").spec["containers"]
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
