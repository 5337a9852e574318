"""Every algorithm trains some steps on a CPU, moves the weights, and differs from grpo where it should."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from progrpo.config import (
    DAPO,
    GRPO,
    GSPO,
    AdaptiveEntropy,
    Arm,
    ClipCov,
    DrGRPO,
    DynamicSampling,
    EntropyBonus,
    ForkingTokens,
    KLCov,
    LossConfig,
    OverlongPenalty,
    PassK,
    ProGRPO,
    TrainConfig,
    Unlikeliness,
)
from progrpo.manifest import read_manifest
from progrpo.metrics import TRAIN_METRICS, read_jsonl
from progrpo.training.train import train
from repetitions import repetitions

STEPS = repetitions("steps that each algorithm trains")
SETTINGS = {
    "steps": STEPS,
    "prompts_per_step": 4,
    "group_size": 8,
    "learning_rate": 1e-4,
    "max_completion_tokens": 9,
    "device": "cpu",
    "log_rollouts_every": 0,
}
UPDATES = {"updates_per_rollout": 2, "num_iterations": 2}  # so that ratios leave 1

ALGORITHMS = {
    "grpo": (GRPO(), {}),
    "progrpo": (ProGRPO(alpha=1.0), {}),
    "progrpo-off-policy": (ProGRPO(alpha=1.0), UPDATES),
    "progrpo-kl-clip-higher-no-std": (
        ProGRPO(alpha=1.0, loss=LossConfig(kl_beta=0.01, clip_high=0.4, normalize_std=False)),
        UPDATES,
    ),
    "progrpo-sequence-mean": (ProGRPO(alpha=1.0, loss=LossConfig(aggregation="sequence_mean")), {}),
    "progrpo-dynamic-sampling": (ProGRPO(alpha=1.0, dynamic_sampling=DynamicSampling(max_rounds=2)), {}),
    "dr_grpo": (DrGRPO(), {}),
    "dapo": (DAPO(), {"steps": 20}),  # until a group is without a signal
    "gspo": (GSPO(), UPDATES),
    "entropy_bonus": (EntropyBonus(coef=0.05), {}),
    "entropy_bonus-adaptive": (EntropyBonus(coef=0.0, adaptive=AdaptiveEntropy(target=1.0, delta=0.01)), {}),
    "clip_cov": (ClipCov(clip_frac=0.05, cov_low=0.1, cov_high=10), {}),
    "kl_cov": (KLCov(kl_frac=0.05), UPDATES),
    "unlikeliness": (Unlikeliness(), {}),
    "passk": (PassK(k=4), {}),
    "forking_tokens": (ForkingTokens(), {}),
}


@pytest.fixture(scope="module")
def run(embedded_checkpoint, tiny_dataset, tmp_path_factory):
    """Train once by name; return (output directory, metrics by step)."""
    done = {}

    def run(name):
        if name not in done:
            algorithm, settings = ALGORITHMS[name]
            output = tmp_path_factory.mktemp(name) / "run"
            arm = Arm(name=name, algorithm=algorithm)
            config = TrainConfig(**(SETTINGS | settings))
            train(arm, 0, config, dataset=tiny_dataset, checkpoint=embedded_checkpoint, output=output)
            done[name] = output, read_jsonl(output / "metrics.jsonl")
        return done[name]

    return run


def weights(directory):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_trains(run, name, embedded_checkpoint):
    output, rows = run(name)
    assert [row["step"] for row in rows] == list(range(1, ALGORITHMS[name][1].get("steps", STEPS) + 1))
    assert set().union(*rows) - {"step"} <= set(TRAIN_METRICS)
    assert all(math.isfinite(value) for row in rows for value in row.values())
    manifest = read_manifest(output, "training")
    assert manifest.config["arm"]["algorithm"]["type"] == name.split("-")[0]
    after = weights(output / "checkpoint")
    assert after.isfinite().all()
    assert not torch.equal(after, weights(embedded_checkpoint))
    if name != "grpo":
        assert not torch.equal(after, weights(run("grpo")[0] / "checkpoint"))


@pytest.mark.slow
def test_ratios_are_one_with_one_update_and_leave_one_with_several(run):
    assert all(row["train/clipped_frac"] == 0 for row in run("progrpo")[1])
    assert any(row["train/clipped_frac"] > 0 for row in run("progrpo-off-policy")[1])


@pytest.mark.slow
def test_sampler_and_trainer_agree(run):
    assert max(row["perf/logprob_mismatch"] for row in run("progrpo-off-policy")[1]) < 1e-5


@pytest.mark.slow
def test_dynamic_sampling_counts_what_it_does_and_progrpo_needs_less_of_it(run):
    dapo = [row["train/resample/groups"] for row in run("dapo")[1]]
    progrpo = [row["train/resample/groups"] for row in run("progrpo-dynamic-sampling")[1]]
    assert sum(dapo) > 0
    assert all(0 <= row["train/resample/rounds"] <= 3 for row in run("dapo")[1])
    # An all-correct group moves ProGRPO, so fewer of its groups are without a signal; both saw the same first step.
    assert progrpo[0] <= dapo[0]


@pytest.mark.slow
def test_the_adaptive_coefficient_climbs_while_entropy_is_below_its_target(run):
    coefficients = [row["train/entropy_coef"] for row in run("entropy_bonus-adaptive")[1]]
    assert coefficients == pytest.approx([0.01 * step for step in range(1, STEPS + 1)])
    assert {row["train/entropy_coef"] for row in run("entropy_bonus")[1]} == {0.05}


@pytest.mark.slow
def test_clip_cov_chooses_some_tokens(run):
    assert 0 < max(row["train/cov_chosen_frac"] for row in run("clip_cov")[1]) <= 0.05 + 1e-6


def train_twice(first, second, settings, checkpoint, dataset, tmp_path):
    for name, algorithm in (("first", first), ("second", second)):
        config = TrainConfig(**(SETTINGS | {"steps": 4} | settings))
        train(
            Arm(name=name, algorithm=algorithm),
            0,
            config,
            dataset=dataset,
            checkpoint=checkpoint,
            output=tmp_path / name,
        )
    return (weights(tmp_path / name / "checkpoint") for name in ("first", "second"))


@pytest.mark.parametrize("algorithm", [KLCov(), GSPO(loss=LossConfig(ratio="sequence"))], ids=lambda a: a.type)
def test_with_one_update_a_batch_these_are_grpo(algorithm, embedded_checkpoint, tiny_dataset, tmp_path):
    """rho is 1 then: nothing is clipped, and the gradient of |log rho| is 0."""
    loss = algorithm.loss or LossConfig()
    grpo = GRPO(loss=loss.model_copy(update={"ratio": "token"}))
    first, second = train_twice(algorithm, grpo, {}, embedded_checkpoint, tiny_dataset, tmp_path)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


def test_alpha_zero_is_grpo_off_policy_and_with_dynamic_sampling(embedded_checkpoint, tiny_dataset, tmp_path):
    """With alpha 0 the confidences are read and weigh nothing, also off the old policy's pass."""
    first, second = train_twice(ProGRPO(alpha=0.0), GRPO(), UPDATES, embedded_checkpoint, tiny_dataset, tmp_path)
    assert torch.equal(first, second)


def test_a_penalty_for_length_reaches_the_rollouts(embedded_checkpoint, tiny_dataset, tmp_path):
    import pyarrow.parquet as pq

    arm = Arm(name="short", algorithm=GRPO(overlong_penalty=OverlongPenalty(buffer_frac=0.5, weight=1.0)))
    config = TrainConfig(**(SETTINGS | {"steps": 1, "log_rollouts_every": 1, "max_completion_tokens": 8}))
    train(arm, 0, config, dataset=tiny_dataset, checkpoint=embedded_checkpoint, output=tmp_path / "run")
    table = pq.read_table(tmp_path / "run" / "rollouts" / "step_00001.parquet").to_pylist()
    for row in table:
        assert row["overlong_penalty"] == pytest.approx(-max(0, row["num_tokens"] - 4) / 4)
        assert row["reward"] == pytest.approx(row["correct"] + row["overlong_penalty"])
