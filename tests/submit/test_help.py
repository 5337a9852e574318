"""--help says what a CI author needs, and loads nothing heavy."""

import json
import subprocess
import sys

import pytest

from progrpo_pipelines.cli import main

HEAVY = ("torch", "transformers", "mlflow", "trl", "pyarrow", "boto3", "kfp", "kfp_server_api", "kubernetes", "yaml")
PROBE = """
import json, sys
from progrpo_pipelines.cli import main
try:
    main(json.loads(sys.argv[1]))
except SystemExit as exit:
    assert not exit.code, exit.code
print("LOADED", json.dumps(sorted(name for name in json.loads(sys.argv[2]) if name in sys.modules)))
"""


@pytest.mark.parametrize("command", ["submit", "upload", "doctor"])
def test_help(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert "Exit codes: 0" in text
    assert f"progrpo {command} " in text


def test_help_is_light():
    arguments = [sys.executable, "-c", PROBE, json.dumps(["submit", "--help"]), json.dumps(HEAVY)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED []"
