"""A run that is killed and goes on is the run that was never killed, to the last bit."""

import json
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from progrpo.config import Arm, TrainConfig
from progrpo.errors import StateError
from progrpo.metrics import heldout_pass_at, read_jsonl
from progrpo.training.heldout import Heldout
from progrpo.training.state.points import read_point
from progrpo.training.train import train
from repetitions import repetitions

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
    # As text, in which a confidence that was not read (nan) equals another.
    return {path.name: repr(pq.read_table(path).to_pydict()) for path in sorted((output / "rollouts").iterdir())}


@pytest.fixture
def run(python, tiny_dataset, embedded_checkpoint, tmp_path):
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
        command = [python, str(PROGRAM), str(tmp_path / f"{name}.json")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=540)
        assert done.returncode == 0, done.stderr[-3000:]
        result = json.loads(done.stdout.splitlines()[-1])
        return Path(result["output"]), result["kills"]

    return run


@pytest.mark.slow
def test_kills_change_no_bit(run):
    times = repetitions("kills of a training run")
    whole, _ = run("whole", kills=0)
    resumed, kills = run("killed", kills=times)
    assert kills == times
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


def attempt(tmp_path, dataset, checkpoint, name, *, arm=ARM, seed=3, **config):
    settings = {"steps": 4, "heldout": None, "warmup_steps": 0, "log_rollouts_every": 0}
    settings |= {"checkpointing": {"uri": str(tmp_path / "state"), "every": 2}} | config
    output = tmp_path / name
    manifest = train(
        Arm(**arm), seed, TrainConfig(**(CONFIG | settings)), dataset=dataset, checkpoint=checkpoint, output=output
    )
    return output, manifest


def test_a_run_goes_on_for_more_steps_and_no_other_run_does(tmp_path, tiny_dataset, embedded_checkpoint):
    places = (tmp_path, tiny_dataset, embedded_checkpoint)
    attempt(*places, "short", steps=4)
    longer, manifest = attempt(*places, "longer", steps=6)
    whole, _ = attempt(*places, "whole", steps=6, checkpointing=None)
    assert metrics_of(longer) == metrics_of(whole)
    assert manifest.metadata["steps"] == 6
    with pytest.raises(StateError, match=r"train\.learning_rate was 0\.0001 and is 0\.001 now"):
        attempt(*places, "other", learning_rate=1e-3)
    with pytest.raises(StateError, match=r"seed3 .*saved by another run|arm\.algorithm"):
        attempt(*places, "other2", arm={"name": "progrpo", "algorithm": {"type": "progrpo", "alpha": 0.5}})
    assert not (tmp_path / "other" / "manifest.json").exists()


def test_a_damaged_point_is_passed_over(tmp_path, tiny_dataset, embedded_checkpoint, caplog):
    places = (tmp_path, tiny_dataset, embedded_checkpoint)
    attempt(*places, "first", steps=6)
    root = tmp_path / "state" / "run" / "progrpo-seed3"
    older, point = sorted(root.glob("step_*"))
    assert (older.name[:12], point.name[:12]) == ("step_0000002", "step_0000004")
    newest = point / "weights.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    resumed, _ = attempt(*places, "second", steps=6)
    assert "skipping the resume point of step 4" in caplog.text
    assert metrics_of(resumed) == metrics_of(tmp_path / "first")


def test_sigterm_saves_the_last_step_and_exits_with_143(python, tmp_path, tiny_dataset, embedded_checkpoint):
    settings = {
        "dataset": str(tiny_dataset),
        "checkpoint": str(embedded_checkpoint),
        "arm": ARM | {"algorithm": {"type": "grpo"}},
        "seed": 0,
        "train": CONFIG
        | {"steps": 2000, "heldout": None, "checkpointing": {"uri": str(tmp_path / "state"), "every": 1000}},
    }
    (tmp_path / "train.json").write_text(json.dumps(settings))
    command = [python, "-m", "progrpo_pipelines.cli", "step", "train"]
    command += ["--config", str(tmp_path / "train.json"), "--output", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not any(len(read_jsonl(path)) >= 2 for path in tmp_path.glob(".run.*/metrics.jsonl")):
        assert time.monotonic() < deadline, "training did not start"
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    process.terminate()
    assert process.wait(timeout=30) == 143
    (point,) = (tmp_path / "state" / "run" / "progrpo-seed0").glob("step_*")
    assert read_jsonl(point / "metrics.jsonl")[-1]["step"] == int(point.name[5:12])
    assert not (tmp_path / "run").exists()


def test_lowering_steps_below_the_point_is_refused(tmp_path, tiny_dataset, embedded_checkpoint):
    places = (tmp_path, tiny_dataset, embedded_checkpoint)
    attempt(*places, "first", steps=6)
    with pytest.raises(StateError, match=r"is of step 4, but train\.steps is 3\. Raise it to at least 4"):
        attempt(*places, "second", steps=3)
    # A point of the very last step, as a stop signal leaves it: nothing is left but to write the checkpoint.
    ended, manifest = attempt(*places, "third", steps=4)
    whole, _ = attempt(*places, "whole", steps=4, checkpointing=None)
    assert manifest.metadata["steps"] == 4
    assert metrics_of(ended) == metrics_of(whole)
    expected, weights = weights_of(whole), weights_of(ended)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


HELDOUT = {"num_problems": 4, "num_samples": 2}


def test_a_run_that_stopped_early_does_not_go_on(tmp_path, tiny_dataset, embedded_checkpoint):
    """Killed while the checkpoint was written, its next attempt finds the point of the step it stopped at."""
    places = (tmp_path, tiny_dataset, embedded_checkpoint)
    settings = {"steps": 8, "learning_rate": 1e-30, "heldout": {"every": 1, "patience": 2, **HELDOUT}}
    first, manifest = attempt(*places, "first", **settings)
    again, manifest_again = attempt(*places, "again", **settings)
    assert manifest.metadata["steps"] == manifest_again.metadata["steps"] == 2
    assert manifest.metadata["stopped"] == manifest_again.metadata["stopped"]
    assert metrics_of(again) == metrics_of(first)


def test_the_best_point_is_the_one_that_measured_best(tmp_path, tiny_dataset, embedded_checkpoint, monkeypatch):
    rates = iter([0.1, 0.9, 0.2, 0.3])  # at the start and after steps 3, 6, 9
    measure = Heldout.measure
    monkeypatch.setattr(Heldout, "measure", lambda self: measure(self) | {heldout_pass_at(1): next(rates)})
    checkpointing = {"uri": str(tmp_path / "state"), "every": 2, "keep_last": 1, "keep_best": True}
    heldout = {"every": 3, **HELDOUT}
    attempt(tmp_path, tiny_dataset, embedded_checkpoint, "run", steps=9, heldout=heldout, checkpointing=checkpointing)
    root = tmp_path / "state" / "run" / "progrpo-seed3"
    # Step 3 is no multiple of 2: a new best is saved at once. Step 8 has weights that were not measured.
    scores = {point.name[:12]: read_point(point).score for point in root.glob("step_*")}
    assert scores == {"step_0000003": 0.9, "step_0000008": None}


def test_keep_best_needs_a_measurement():
    with pytest.raises(ValueError, match="keep_best needs heldout"):
        TrainConfig(checkpointing={"uri": "x", "keep_best": True})
