"""A compare run of a minute, made once a session: what every test of a finished run reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repetitions import FULL
from shared import made_once

COMMAND = ("-m", "progrpo_pipelines.cli", "run")
TINY: dict[str, Any] = {
    "dataset": {"source": {"num_train": 64, "num_eval": 16}},
    "train": {"steps": 4, "prompts_per_step": 2, "group_size": 4, "log_rollouts_every": 2},
    "evaluation": {"num_samples": 4},
    "comparison": {
        "num_resamples": 100,
        "gate": {  # holds whatever 4 steps of training do
            "candidate": "progrpo",
            "rules": [{"metric": "eval/pass_at_1", "against": "start", "relation": "not_worse", "margin": 1.0}],
        },
    },
}


@dataclass(frozen=True)
class FinishedRun:
    """The folder of ``progrpo run compare`` with these settings, and what the command printed; tests only read it."""

    directory: Path
    settings: Path
    stdout: str
    stderr: str

    @property
    def tracking_uri(self) -> str:
        """MLflow's database beside it, where the run is logged."""
        return f"sqlite:///{self.directory.parent / 'mlflow.db'}"


def finished_run(python: str) -> FinishedRun:
    """Return the run; the first who asks makes it.

    Args:
        python: what runs the command and so its steps; in a full session each loads all for itself, as a user's does.
    """

    def make(folder: Path) -> dict[str, str]:
        settings, directory = folder / "tiny.yaml", folder / "run"
        settings.write_text(json.dumps(TINY))
        command = [sys.executable if FULL else python, *COMMAND, "compare", "--preset", "smoke"]
        command += ["--params-file", str(settings), "--output", str(directory)]
        environment = {**os.environ, "PROGRPO_TRACKING": "on"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
        assert done.returncode == 0, done.stderr + done.stdout
        return {"directory": str(directory), "settings": str(settings), "stdout": done.stdout, "stderr": done.stderr}

    made = made_once("finished-run", make)
    return FinishedRun(Path(made["directory"]), Path(made["settings"]), made["stdout"], made["stderr"])
