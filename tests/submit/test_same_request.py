"""``kfp run submit`` of the pinned kfp and ``progrpo submit`` ask the server for the same run.

The real kfp command line, against the stand-in of kfp_recorder.py: some four seconds a call.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def kfp_run_submit(recorder, package: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call kfp's command line."""
    command = [str(Path(sys.executable).with_name("kfp")), "--endpoint", recorder.url, "--output", "json"]
    command += ["run", "submit", "-e", "nightly", "-r", "run-1", "-f", str(package), *arguments]
    environment = os.environ | {"HOME": str(home), "KFP_EXISTING_TOKEN": "secret-token", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def some_arguments(package: Path) -> dict[str, str]:
    """Return a value for a text, a list, a mapping and a number among the package's parameters, as one writes it."""
    spec = next(yaml.load_all(package.read_text(), Loader=yaml.CSafeLoader))
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    given = {"experiment": "nightly"}
    for kind in ("LIST", "STRUCT", "NUMBER_INTEGER"):
        for name in [name for name, entry in parameters.items() if entry["parameterType"] == kind][:1]:
            given[name] = json.dumps(parameters[name]["defaultValue"])
    return given


def compared(recorder) -> None:
    """Two runs were asked for, and they are the same but for the experiment's id."""
    assert [body["display_name"] for body in recorder.posted("/experiments")] == ["nightly", "nightly"]
    first, second = ({**body, "experiment_id": "-"} for body in recorder.posted("/runs"))
    assert first == second
    assert first["runtime_config"]["parameters"]["experiment"] == "nightly"


def test_lines_of_the_documentation(recorder, tmp_path):
    """Both lines of docs/ci.md, as a shell runs them."""
    text = (ROOT / "docs" / "ci.md").read_text().partition("<!-- tested lines -->")[2]
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")][:2]
    assert [line.split()[0] for line in lines] == ["kfp", "progrpo"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": str(tmp_path), "KFP_ENDPOINT": recorder.url, "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    progrpo = f'progrpo() {{ "{sys.executable}" -m progrpo_pipelines.cli "$@"; }}; '  # also without an installation
    for line in lines:
        done = subprocess.run(
            ["bash", "-c", progrpo + line], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        recorder.experiments.clear()
    compared(recorder)


def test_a_failed_run_with_every_kind_of_argument(recorder, submit, monkeypatch, tmp_path):
    """It also shows why there is a command of ours: kfp's exit code is 0 although the run failed."""
    recorder.token, recorder.states = "secret-token", ["FAILED"]
    monkeypatch.setenv("KFP_EXISTING_TOKEN", "secret-token")
    path = ROOT / "pipelines" / "compiled" / "compare-smoke.yaml"
    arguments = some_arguments(path)
    assert len(arguments) >= 3
    settings = [f"{name}={value}" for name, value in arguments.items()]
    theirs = kfp_run_submit(recorder, path, tmp_path, "-t", "60", *settings)
    assert theirs.returncode == 0, theirs.stdout + theirs.stderr
    recorder.experiments.clear()
    ours = submit("--run-name", "run-1", *(text for item in settings for text in ("--set", item)), package=str(path))
    assert ours.code == 1, ours.err
    compared(recorder)
    assert recorder.posted("/runs")[1]["runtime_config"]["parameters"].keys() == arguments.keys()
    assert "secret-token" not in ours.out + ours.err


def test_a_text_stays_a_text(recorder, submit, package_path):
    """kfp guesses types: experiment=2024 becomes a number, which the server refuses for a STRING."""
    assert submit("--set", "experiment=2024").code == 0
    assert recorder.posted("/runs")[0]["runtime_config"] == {"parameters": {"experiment": "2024"}}
