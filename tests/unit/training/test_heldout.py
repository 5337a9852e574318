"""Held-out measurements while training, what stops a run, and a run that learns nothing."""

import pytest

from progrpo.config import GRPO, Arm, HeldoutConfig, TrainConfig
from progrpo.errors import TrainingError
from progrpo.metrics import HELDOUT_ENTROPY, heldout_pass_at, read_jsonl
from progrpo.training.heldout import Heldout
from progrpo.training.train import train

SETTINGS = {
    "steps": 4,
    "prompts_per_step": 4,
    "group_size": 4,
    "learning_rate": 1e-4,
    "max_completion_tokens": 9,
    "device": "cpu",
    "log_rollouts_every": 0,
}


def run(dataset, checkpoint, output, **settings):
    config = TrainConfig(**(SETTINGS | settings))
    arm = Arm(name="grpo", algorithm=GRPO())
    return train(arm, 0, config, dataset=dataset, checkpoint=checkpoint, output=output)


def test_it_is_measured_before_the_first_step_every_n_and_after_the_last(tiny_dataset, embedded_checkpoint, tmp_path):
    heldout = {"every": 3, "num_problems": 6, "num_samples": 4}
    run(tiny_dataset, embedded_checkpoint, tmp_path / "a", heldout=heldout)
    rows = read_jsonl(tmp_path / "a" / "metrics.jsonl")
    measured = {row["step"]: row for row in rows if HELDOUT_ENTROPY in row}
    assert sorted(measured) == [0, 3, 4]
    for row in measured.values():
        assert 0 <= row[heldout_pass_at(1)] <= row[heldout_pass_at(4)] <= 1
    # Measuring draws nothing that training draws.
    run(tiny_dataset, embedded_checkpoint, tmp_path / "b")
    rewards = [[row["train/loss"] for row in read_jsonl(tmp_path / name / "metrics.jsonl")[-4:]] for name in "ab"]
    assert rewards[0] == rewards[1]


def test_a_frozen_policy_measures_the_same_every_time(tiny_dataset, embedded_checkpoint, tmp_path):
    heldout = {"every": 1, "num_problems": 6, "num_samples": 4, "patience": 2}
    manifest = run(tiny_dataset, embedded_checkpoint, tmp_path / "a", learning_rate=1e-30, heldout=heldout)
    rows = read_jsonl(tmp_path / "a" / "metrics.jsonl")
    assert len({(row[heldout_pass_at(1)], row[HELDOUT_ENTROPY]) for row in rows}) == 1
    # No progress in two measurements: it stops after step 2, and ends well.
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert manifest.metadata["steps"] == 2
    assert "no progress" in manifest.metadata["stopped"]
    assert (tmp_path / "a" / "checkpoint" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("config", "measurements", "stops"),
    [
        ({"min_entropy_frac": 0.5}, [(0.1, 2.0), (0.2, 1.1), (0.2, 0.99)], [None, None, "entropy collapsed"]),
        ({"patience": 2}, [(0.3, 1.0), (0.2, 1.0), (0.4, 1.0), (0.4, 1.0), (0.1, 1.0)], [None] * 4 + ["no progress"]),
        ({}, [(0.3, 1.0), (0.0, 0.0)], [None, None]),
    ],
)
def test_when_to_stop(config, measurements, stops):
    heldout = Heldout(None, HeldoutConfig(**config), [], [])
    resumed = Heldout(None, HeldoutConfig(**config), [], [])
    for (rate, entropy), expected in zip(measurements, stops, strict=True):
        resumed.restore(heldout.state())  # a resumed run decides as the first would have
        metrics = {heldout_pass_at(1): rate, HELDOUT_ENTROPY: entropy}
        for each in (heldout, resumed):
            reason = each.take(metrics)
            assert (reason is None) == (expected is None)
            assert expected is None or expected in reason


def test_a_run_without_any_signal_gives_up_and_says_why(tiny_dataset, embedded_checkpoint, tmp_path):
    with pytest.raises(TrainingError, match=r"no group has had a signal for 2 steps.*0% of the completions were right"):
        # one token cannot be an answer
        run(tiny_dataset, embedded_checkpoint, tmp_path / "a", max_completion_tokens=1, max_steps_without_signal=2)
    assert not (tmp_path / "a" / "manifest.json").exists()
    assert len(read_jsonl(tmp_path / "a" / "metrics.jsonl")) == 1
