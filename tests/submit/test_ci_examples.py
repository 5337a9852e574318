"""The CI examples do what they say: their own shell steps, against the recorder. No GitHub and no GitLab was there."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml

CI = Path(__file__).parents[2] / "examples" / "ci"
ACTION = yaml.safe_load((CI / "github" / "action.yml").read_text())
SUBMIT = next(step for step in ACTION["runs"]["steps"] if step.get("id") == "submit")
SECRET = "eyJ-very-secret"


@pytest.fixture
def command(tmp_path) -> Path:
    """A folder with the command ``progrpo``, which notes what it was called with."""
    path = tmp_path / "bin" / "progrpo"
    path.parent.mkdir()
    path.write_text(
        f"""#!/bin/sh
printf '%s\\n' "$@" > "{tmp_path}/arguments"
env > "{tmp_path}/environment"
ls -l "$TMPDIR"/*/token > "{tmp_path}/modes" 2> /dev/null
exec "{sys.executable}" -m progrpo_pipelines.cli "$@" --poll 0.1s
"""
    )
    path.chmod(0o755)
    return path.parent


def environment_of(command: Path, home: Path, **more: str) -> dict[str, str]:
    kept = {key: os.environ[key] for key in ("PYTHONPATH", "LANG", "OMP_NUM_THREADS") if key in os.environ}
    path = f"{command}{os.pathsep}{os.environ['PATH']}"
    return kept | {
        "PATH": path,
        "HOME": str(home),
        "TMPDIR": str(home),
        "PYTHONPATH": os.pathsep.join(sys.path),
        **more,
    }


@pytest.fixture
def action(recorder, command, tmp_path, package_path):
    """Start the action's step as GitHub does, with inputs; returns the process."""

    def start(**inputs: str) -> subprocess.Popen:
        given = {name.replace("-", "_"): spec.get("default", "") for name, spec in ACTION["inputs"].items()}
        given |= {"target": package_path, "experiment": "nightly", "endpoint": recorder.url, "idempotency_key": ""}
        given |= {"junit": str(tmp_path / "junit.xml")} | inputs
        step = {
            key: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda match: given[match[1].replace("-", "_")], value)
            for key, value in SUBMIT["env"].items()
        }
        files = {key: str(tmp_path / key) for key in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        script = tmp_path / "step.sh"
        script.write_text(SUBMIT["run"])
        return subprocess.Popen(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],  # what shell: bash means
            env=environment_of(command, tmp_path, RUNNER_TEMP=str(tmp_path), **files, **step),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # A shell cannot trap what it was started to ignore, as everything in the background of another shell is.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return start


def outputs(tmp_path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in (tmp_path / "GITHUB_OUTPUT").read_text().splitlines())


@pytest.mark.parametrize(("state", "code", "verdict"), [("SUCCEEDED", 0, "succeeded"), ("FAILED", 1, "failed")])
def test_action_gives_the_verdict(recorder, action, tmp_path, state, code, verdict):
    recorder.states, recorder.token = ["RUNNING", state], SECRET
    process = action(token=SECRET, settings="experiment=a b\n\nsteps=3\n")
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    (run,) = recorder.runs.values()
    assert run["runtime_config"]["parameters"] == {"experiment": "a b", "steps": 3}
    assert outputs(tmp_path) == {
        "run-id": run["run_id"], "url": f"{recorder.url}/#/runs/details/{run['run_id']}", "verdict": verdict
    }  # fmt: skip
    assert ET.parse(tmp_path / "junit.xml").getroot()[0].get("name") == "progrpo.evaluate"  # noqa: S314
    assert "evaluate: " in (tmp_path / "GITHUB_STEP_SUMMARY").read_text()
    for text in (out, err, *((tmp_path / name).read_text() for name in ("arguments", "environment"))):
        assert SECRET not in text
    token_file = (tmp_path / "arguments").read_text().split("--token-file\n")[1].splitlines()[0]
    assert not Path(token_file).exists()
    assert (tmp_path / "modes").read_text().startswith("-rw------- ")


def test_cancelled_action_ends_the_run(recorder, action, tmp_path):
    """GitHub sends SIGINT to the step's shell, and to nothing else."""
    recorder.states = ["RUNNING"]
    process = action()
    deadline = time.monotonic() + 60
    while sum("/runs/" in request.path for request in recorder.requests) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    assert [run["state"] for run in recorder.runs.values()] == ["CANCELING"]
    assert outputs(tmp_path)["verdict"] == "cancelled"


def test_wrong_input_fails_the_action(action, tmp_path):
    process = action(settings="stepz=3")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Did you mean steps?" in err
    assert outputs(tmp_path) == {"run-id": "", "url": "", "verdict": ""}


def test_no_input_is_written_into_a_script():
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step["run"]
        assert step["shell"] == "bash"
    used = set(re.findall(r"inputs\.([\w-]+)", (CI / "github" / "action.yml").read_text()))
    assert used == set(ACTION["inputs"])


def test_action_installs_what_submit_needs():
    """A target may be a pipeline's name, which is compiled on the spot."""
    (install,) = [step["run"] for step in ACTION["runs"]["steps"] if "pip" in step["run"]]
    (extra,) = re.findall(r"GITHUB_ACTION_PATH/\.\./\.\./\.\.\[(\w+)\]", install)
    assert extra == "compile"


def test_workflow_uses_the_action_as_it_is():
    workflow = yaml.safe_load((CI / "github" / "workflow.yml").read_text())
    steps = workflow["jobs"]["compare"]["steps"]
    (used,) = [step for step in steps if "uses" in step]
    assert used["uses"] == "./examples/ci/github"  # nothing of somebody else's
    required = {name for name, spec in ACTION["inputs"].items() if spec.get("required")}
    assert required <= set(used["with"]) <= set(ACTION["inputs"])


def test_gitlab_job(recorder, command, tmp_path, package_path):
    """The job of the example, with the template merged in as GitLab's ``extends`` does, by a POSIX shell."""
    template = yaml.safe_load((CI / "gitlab" / "progrpo.yml").read_text())[".progrpo-submit"]
    job = yaml.safe_load((CI / "gitlab" / "example.gitlab-ci.yml").read_text())["nightly-compare"]
    assert job["extends"] == ".progrpo-submit"
    ci = {"CI_PROJECT_PATH_SLUG": "team-models", "CI_PIPELINE_ID": "0" * 40, "CI_JOB_NAME_SLUG": "nightly"}
    variables = template["variables"] | job["variables"]
    variables |= {"PROGRPO_TARGET": package_path, "PROGRPO_PRESET": "", "PROGRPO_SETTINGS": "experiment=a b\nsteps=3\n"}
    variables = {key: re.sub(r"\$(\w+)", lambda match: ci[match[1]], value) for key, value in variables.items()}
    token = tmp_path / "token"
    token.write_text(SECRET)
    recorder.token = SECRET
    environment = environment_of(command, tmp_path, KFP_ENDPOINT=recorder.url, KFP_TOKEN_FILE=str(token), **variables)
    for _ in range(2):  # the second time as a retried job
        done = subprocess.run(
            ["sh", "-e"], input="\n".join(template["script"]), text=True, env=environment, cwd=tmp_path,
            capture_output=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    (run,) = recorder.runs.values()
    assert run["runtime_config"]["parameters"] == {"experiment": "a b", "steps": 3}
    result = json.loads((tmp_path / template["artifacts"]["paths"][0]).read_text())
    assert (result["verdict"], result["adopted"], result["experiment"]) == ("succeeded", True, "team-models")
    assert (tmp_path / template["artifacts"]["reports"]["junit"]).is_file()
    assert SECRET not in done.stdout + done.stderr
