"""``kfp run submit`` of the pinned kfp and ``progrpo submit`` ask the server for the same run.

The real kfp command line, against the stand-in of kfp_recorder.py: some four seconds a call.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

COMPILED = Path(__file__).parents[2] / "pipelines" / "compiled"


def kfp_run_submit(recorder, package: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call the line that docs/ci.md shows."""
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


@pytest.mark.parametrize(
    ("package", "states", "codes"),
    [("evaluate-smoke", ["SUCCEEDED"], (0, 0)), ("compare-smoke", ["FAILED"], (0, 1))],
)
def test_same_request(recorder, submit, monkeypatch, tmp_path, package, states, codes):
    """The second case also shows why there is a command of ours: kfp's exit code is 0 although the run failed."""
    recorder.token, recorder.states = "secret-token", states
    monkeypatch.setenv("KFP_EXISTING_TOKEN", "secret-token")
    path = COMPILED / f"{package}.yaml"
    arguments = some_arguments(path)
    settings = [f"{name}={value}" for name, value in arguments.items()]
    theirs = kfp_run_submit(recorder, path, tmp_path, "-t", "60", *settings)
    assert theirs.returncode == codes[0], theirs.stdout + theirs.stderr
    recorder.experiments.clear()
    ours = submit("--run-name", "run-1", *(text for item in settings for text in ("--set", item)), package=str(path))
    assert ours.code == codes[1], ours.err

    made = recorder.posted("/experiments")
    assert [body["display_name"] for body in made] == ["nightly", "nightly"]
    first, second = ({**body, "experiment_id": "-"} for body in recorder.posted("/runs"))
    assert first == second
    assert second["runtime_config"]["parameters"].keys() == arguments.keys()
    assert "secret-token" not in ours.out + ours.err


def test_a_text_stays_a_text(recorder, submit, package_path):
    """kfp guesses types: experiment=2024 becomes a number, which the server refuses for a STRING."""
    assert submit("--set", "experiment=2024").code == 0
    assert recorder.posted("/runs")[0]["runtime_config"] == {"parameters": {"experiment": "2024"}}
