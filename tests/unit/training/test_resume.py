"""A run that is killed and goes on is the run that was never killed, to the last bit."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from progrpo.metrics import read_jsonl

PROGRAM = Path(__file__).with_name("killed_runs.py")
DURATIONS = {"train/step_s", "perf/tokens_per_s", "perf/peak_memory_gib"}
CONFIG = {
    "steps": 60,
    "prompts_per_step": 4,
    "group_size": 4,
    "updates_per_rollout": 2,  # so that most points lie in the middle of a batch of rollouts
    "num_iterations": 2,
    "learning_rate": 1e-4,
    "warmup_steps": 30,
    "weight_decay": 0.01,
    "max_completion_tokens": 9,
    "device": "cpu",
    "log_rollouts_every": 7,
    "heldout": {"every": 20, "num_problems": 8, "num_samples": 2},
}
ARM = {"name": "progrpo", "algorithm": {"type": "progrpo", "alpha": 1.0, "dynamic_sampling": {"max_rounds": 1}}}


def metrics_of(output):
    return [{k: v for k, v in row.items() if k not in DURATIONS} for row in read_jsonl(output / "metrics.jsonl")]


def weights_of(output):
    return load_file(output / "checkpoint" / "model.safetensors")


def rollouts_of(output):
    return {path.name: pq.read_table(path) for path in sorted((output / "rollouts").iterdir())}


@pytest.fixture
def run(tiny_dataset, embedded_checkpoint, tmp_path):
    """Train in killed processes; return the output of the attempt that ended, and how many were killed."""

    def run(name, *, kills, ranks=1, arm=ARM, every=3, **config):
        config = CONFIG | {"distributed": {"num_processes": ranks}} | config
        if kills:
            config["checkpointing"] = {"uri": str(tmp_path / f"{name}-state"), "every": every}
        settings = {
            "dataset": str(tiny_dataset),
            "checkpoint": str(embedded_checkpoint),
            "arm": arm,
            "config": config,
            "output": str(tmp_path / name),
            "kills": kills,
            "ranks": ranks,
            "seed": 11,
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(settings))
        command = [sys.executable, str(PROGRAM), str(tmp_path / f"{name}.json")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=540)
        assert done.returncode == 0, done.stderr[-3000:]
        result = json.loads(done.stdout.splitlines()[-1])
        return Path(result["output"]), result["kills"]

    return run


@pytest.mark.slow
def test_twenty_kills_change_no_bit(run):
    whole, _ = run("whole", kills=0)
    resumed, kills = run("killed", kills=20)
    assert kills == 20
    assert metrics_of(resumed) == metrics_of(whole)
    assert [row["step"] for row in metrics_of(resumed)] == list(range(61))
    expected, weights = weights_of(whole), weights_of(resumed)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert rollouts_of(resumed) == rollouts_of(whole)


@pytest.mark.slow
def test_two_ranks_go_on_as_well(run):
    settings = {"steps": 16, "heldout": None, "warmup_steps": 4}
    whole, _ = run("whole", kills=0, ranks=2, **settings)
    resumed, kills = run("killed", kills=3, ranks=2, every=2, **settings)
    assert kills == 3
    for row, expected in zip(metrics_of(resumed), metrics_of(whole), strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-6)
    expected, weights = weights_of(whole), weights_of(resumed)
    for name in expected:
        torch.testing.assert_close(weights[name], expected[name], rtol=1e-4, atol=1e-6)
