"""The train step: what it writes, and what it refuses before the first rollout."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from progrpo.checkpoints.importer import write_checkpoint
from progrpo.config import GRPO, Arm, ProGRPO, TrainConfig
from progrpo.errors import ConfigError, DataError, ManifestError, StorageError, TrainingError
from progrpo.manifest import read_manifest
from progrpo.metrics import TRAIN_METRICS, Progress, read_jsonl
from progrpo.training.train import train
from progrpo.training.trainer import PolicyTrainer

PROGRPO = Arm(name="progrpo", algorithm=ProGRPO(alpha=1.0))
SETTINGS = {
    "steps": 3,
    "prompts_per_step": 4,
    "group_size": 4,
    "learning_rate": 1e-4,
    "max_completion_tokens": 9,
    "device": "cpu",
    "log_rollouts_every": 2,
}


class Sink:
    def __init__(self):
        self.rows = {}

    def log(self, step, metrics):
        self.rows[step] = dict(metrics)

    def close(self):
        raise AssertionError("whoever opened a sink closes it")


@pytest.fixture(scope="module")
def trained(embedded_checkpoint, tiny_dataset, tmp_path_factory):
    output, sink = tmp_path_factory.mktemp("train") / "run", Sink()
    progress = output.with_name("progress.jsonl")
    manifest = train(
        PROGRPO,
        7,
        TrainConfig(**SETTINGS),
        dataset=tiny_dataset,
        checkpoint=embedded_checkpoint,
        output=output,
        sinks=[sink],
        progress=Progress(progress, step="train", arm="progrpo", seed=7),
    )
    return output, manifest, sink, progress


def test_it_writes_a_training_run_with_its_lineage(trained, tiny_dataset, embedded_checkpoint):
    output, manifest, _, _ = trained
    assert read_manifest(output, "training").digest == manifest.digest
    assert manifest.inputs["dataset"] == read_manifest(tiny_dataset, "dataset").digest
    assert manifest.inputs["checkpoint"] == read_manifest(embedded_checkpoint, "checkpoint").digest
    assert manifest.config["arm"]["algorithm"] == ProGRPO(alpha=1.0).model_dump()
    assert manifest.config["seed"] == 7
    assert manifest.metadata["train_wall_time_s"] > 0


def test_the_checkpoint_is_an_artifact_that_loads_and_has_changed(trained, embedded_checkpoint):
    checkpoint = trained[0] / "checkpoint"
    read_manifest(checkpoint, "checkpoint")
    after, before = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (checkpoint, embedded_checkpoint)
    )
    assert any(not torch.equal(a, b) for a, b in zip(after.parameters(), before.parameters(), strict=True))
    templates = [AutoTokenizer.from_pretrained(path).chat_template for path in (checkpoint, embedded_checkpoint)]
    assert templates[0] == templates[1]


def test_metrics_have_their_defined_names_and_reach_every_sink(trained):
    output, _, sink, _ = trained
    rows = read_jsonl(output / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [{k: v for k, v in row.items() if k != "step"} for row in rows] == list(sink.rows.values())
    elsewhere = {"kl", "entropy_coef", "cov_chosen_frac", "overlong_penalty", "importance_ratio"}
    elsewhere |= {"resample/rounds", "resample/groups", "resample/skipped_frac"}
    assert set(sink.rows[1]) == set(TRAIN_METRICS) - {f"train/{name}" for name in elsewhere}
    assert all(isinstance(value, float) for value in sink.rows[1].values())


def test_rollouts_are_kept_with_what_arm_did_to_them(trained):
    output = trained[0]
    assert sorted(path.name for path in (output / "rollouts").iterdir()) == ["step_00001.parquet", "step_00002.parquet"]
    table = pq.read_table(output / "rollouts" / "step_00001.parquet").to_pydict()
    assert len(table["prompt"]) == 16
    metrics = read_jsonl(output / "metrics.jsonl")[0]
    assert sum(table["reward"]) / 16 == pytest.approx(metrics["train/reward"])
    assert sum(table["advantage_shift"]) / 16 == pytest.approx(metrics["train/arm/advantage_shift"], abs=1e-6)
    for group in set(table["group"]):
        prompts = {p for p, g in zip(table["prompt"], table["group"], strict=True) if g == group}
        assert len(prompts) == 1


def test_progress_names_reward_and_entropy(trained):
    last = json.loads(trained[3].read_text().splitlines()[-1])
    assert (last["done"], last["total"], last["arm"], last["seed"]) == (3, 3, "progrpo", 7)
    assert {"reward", "entropy"} <= last.keys()


def attempt(tmp_path, dataset, checkpoint, arm=PROGRPO, **settings):
    output = tmp_path / "run"
    try:
        train(arm, 0, TrainConfig(**(SETTINGS | settings)), dataset=dataset, checkpoint=checkpoint, output=output)
    finally:
        assert not (output / "manifest.json").exists(), "what failed must not look finished"


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"prompts_per_step": 65}, DataError, ["64 problems", "prompts_per_step is 65"]),
        ({"max_prompt_tokens": 3}, DataError, ["max_prompt_tokens is 3", "problem "]),
        ({"max_completion_tokens": 100_000}, ConfigError, ["context of", "max_completion_tokens to at most"]),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, tiny_dataset, embedded_checkpoint, settings, error, words):
    with pytest.raises(error) as caught:
        attempt(tmp_path, tiny_dataset, embedded_checkpoint, **settings)
    assert all(word in str(caught.value) for word in words), caught.value


def test_group_mean_needs_whole_groups(tmp_path, tiny_dataset, embedded_checkpoint):
    arm = Arm(name="recentred", algorithm=ProGRPO(prompt_confidence="group_mean"))
    with pytest.raises(ConfigError, match="micro_batch_size 2 splits the groups of 4"):
        attempt(tmp_path, tiny_dataset, embedded_checkpoint, arm, micro_batch_size=2)


def test_a_directory_with_files_is_refused_and_left_alone(trained, tiny_dataset, embedded_checkpoint):
    output = trained[0]
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    with pytest.raises(StorageError, match="is not empty"):
        train(PROGRPO, 0, TrainConfig(**SETTINGS), dataset=tiny_dataset, checkpoint=embedded_checkpoint, output=output)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


@pytest.fixture
def talkative_checkpoint(embedded_checkpoint, tmp_path):
    """The embedded checkpoint with dropout and sampling settings of its own."""
    model = AutoModelForCausalLM.from_pretrained(embedded_checkpoint, dtype=torch.float32, attention_dropout=0.5)
    model.generation_config.min_new_tokens = 9
    model.generation_config.do_sample, model.generation_config.top_k = True, 1
    output = tmp_path / "talkative"
    write_checkpoint(model, AutoTokenizer.from_pretrained(embedded_checkpoint), output, source="a test")
    assert json.loads((output / "config.json").read_text())["attention_dropout"] == 0.5
    return output


def test_rollouts_follow_our_settings_not_the_checkpoints(trained, talkative_checkpoint, tiny_dataset, tmp_path):
    output = tmp_path / "run"
    train(PROGRPO, 7, TrainConfig(**SETTINGS), dataset=tiny_dataset, checkpoint=talkative_checkpoint, output=output)
    ours, plain = read_jsonl(output / "metrics.jsonl"), read_jsonl(trained[0] / "metrics.jsonl")
    assert json.loads((output / "checkpoint" / "generation_config.json").read_text())["min_new_tokens"] == 9
    for a, b in zip(ours, plain, strict=True):
        durations = dict.fromkeys(("train/step_s", "perf/tokens_per_s", "perf/peak_memory_gib"), 0)
        assert a | durations == b | durations


def test_bfloat16_runs_where_there_is_no_gpu(tiny_dataset, embedded_checkpoint, tmp_path):
    config = TrainConfig(**(SETTINGS | {"device": "auto", "dtype": "bfloat16", "steps": 1}))
    train(PROGRPO, 0, config, dataset=tiny_dataset, checkpoint=embedded_checkpoint, output=tmp_path / "run")
    assert len(read_jsonl(tmp_path / "run" / "metrics.jsonl")) == 1


def test_inputs_must_be_finished_artifacts(tmp_path, tiny_dataset, embedded_checkpoint):
    with pytest.raises(ManifestError, match="a checkpoint artifact is needed"):
        attempt(tmp_path, tiny_dataset, tiny_dataset)
    with pytest.raises(ManifestError, match=r"no manifest\.json"):
        attempt(tmp_path, tmp_path, embedded_checkpoint)


def test_a_loss_that_is_not_finite_stops_training_and_keeps_its_metrics(
    tmp_path, tiny_dataset, embedded_checkpoint, monkeypatch
):
    original = PolicyTrainer._compute_loss

    def poisoned(self, model, inputs):
        loss = original(self, model, inputs)
        return loss * float("nan") if self.state.global_step == 1 else loss

    monkeypatch.setattr(PolicyTrainer, "_compute_loss", poisoned)
    with pytest.raises(TrainingError, match=r"in step 2\. Lower train\.learning_rate"):
        attempt(tmp_path, tiny_dataset, embedded_checkpoint, Arm(name="grpo", algorithm=GRPO()))
    assert [row["step"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
