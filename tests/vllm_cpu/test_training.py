"""The train step with rollouts from vLLM, from end to end: ProGRPO, held-out measurements, resume points."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from progrpo.config import Arm, TrainConfig
from progrpo.manifest import read_manifest
from progrpo.metrics import read_jsonl
from progrpo.training import train as train_step
from progrpo.training.train import train

ARM = Arm.model_validate({"name": "progrpo", "algorithm": {"type": "progrpo", "alpha": 1.0}})
CONFIG = {
    "prompts_per_step": 4,
    "group_size": 4,
    "learning_rate": 1e-3,
    "max_completion_tokens": 9,
    "device": "cpu",
    "engine": {"type": "vllm", "sleep": False},
    "heldout": {"every": 2, "num_problems": 8, "num_samples": 4},
}
DURATIONS = {"train/step_s", "perf/tokens_per_s", "perf/peak_memory_gib"}


@pytest.fixture
def attempt(tiny_dataset: Path, embedded_checkpoint: Path, tmp_path: Path, monkeypatch):
    """Train; without the preflight, which keeps users from a vLLM on a CPU."""

    class Passed:
        def log_and_raise(self) -> None:
            pass

    monkeypatch.setattr(train_step, "preflight", lambda *_, **__: Passed())

    def attempt(name: str, **config) -> Path:
        output = tmp_path / name
        settings = TrainConfig.model_validate(CONFIG | config)
        train(ARM, 3, settings, dataset=tiny_dataset, checkpoint=embedded_checkpoint, output=output)
        return output

    return attempt


def _metrics(output: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k not in DURATIONS} for row in read_jsonl(output / "metrics.jsonl")]


def test_a_resumed_run_is_the_run_that_was_never_stopped(attempt, tmp_path: Path, measured) -> None:
    whole = attempt("whole", steps=4)
    read_manifest(whole, "training")
    rows = _metrics(whole)
    mismatch = max(row["perf/logprob_mismatch"] for row in rows if "perf/logprob_mismatch" in row)
    measured(steps=4, largest_mean_logprob_mismatch=mismatch)
    assert mismatch < 1e-4

    points = {"checkpointing": {"uri": str(tmp_path / "points"), "name": "run", "every": 2}}
    attempt("first", steps=2, **points)
    second = attempt("second", steps=4, **points)
    assert _metrics(second) == rows
    expected, weights = (load_file(run / "checkpoint" / "model.safetensors") for run in (whole, second))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_adapters_train(attempt) -> None:
    output = attempt("lora", steps=2, lora={"rank": 4}, updates_per_rollout=2, loss={"kl_beta": 0.01})
    assert all(row["perf/logprob_mismatch"] < 1e-4 for row in _metrics(output) if "perf/logprob_mismatch" in row)
