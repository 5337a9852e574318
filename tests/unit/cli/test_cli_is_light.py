"""What a user types most often must not wait for torch, and --version and presets answer at once."""

import json
import subprocess
import sys

import pytest

from progrpo import __version__
from progrpo_pipelines.cli import main

HEAVY = ("torch", "transformers", "mlflow", "trl", "pyarrow")
PROBE = """
import json, sys
from progrpo_pipelines.cli import main
try:
    main(json.loads(sys.argv[1]))
except SystemExit as exit:
    assert not exit.code, exit.code
loaded = sorted(name for name in json.loads(sys.argv[2]) if name in sys.modules)
print("LOADED", json.dumps(loaded))
"""


@pytest.mark.parametrize(
    ("arguments", "banned"),
    [
        (["--help"], (*HEAVY, "kfp", "yaml")),
        (["run", "--help"], (*HEAVY, "kfp")),
        (["plan", "--help"], (*HEAVY, "kfp")),
        (["plan", "compare", "--preset", "smoke", "--no-dataset"], (*HEAVY, "kfp")),
        (["rollouts", "--help"], (*HEAVY, "kfp")),
        (["presets"], (*HEAVY, "kfp")),
        (["compile", "--all", "--output", "OUTPUT"], HEAVY),
    ],
)
def test_command_imports_nothing_heavy(arguments, banned, tmp_path):
    arguments = [str(tmp_path) if argument == "OUTPUT" else argument for argument in arguments]
    command = [sys.executable, "-c", PROBE, json.dumps(arguments), json.dumps(banned)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"progrpo {__version__}\n"


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "progrpo run compare --preset smoke" in capsys.readouterr().out


def test_presets_are_listed(capsys):
    with pytest.raises(SystemExit):
        main(["presets"])
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["multi-node", "paper-qwen2.5-7b", "single-gpu", "smoke"]
