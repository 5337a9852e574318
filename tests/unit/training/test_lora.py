"""Adapters: trained, merged, and the same model for whoever loads them with peft or without."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from progrpo.config import GRPO, Arm, EvaluateConfig, LoRAConfig, LossConfig, ProGRPO, TrainConfig
from progrpo.evaluation.evaluate import evaluate
from progrpo.manifest import read_manifest
from progrpo.metrics import read_jsonl
from progrpo.training.train import train

SETTINGS = {
    "steps": 4,
    "prompts_per_step": 4,
    "group_size": 8,
    "learning_rate": 1e-3,
    "max_completion_tokens": 9,
    "device": "cpu",
    "log_rollouts_every": 0,
    "lora": LoRAConfig(rank=4, alpha=8),
}


def run(directory, dataset, checkpoint, algorithm, **settings):
    config = TrainConfig(**(SETTINGS | settings))
    arm = Arm(name="arm", algorithm=algorithm)
    return train(arm, 0, config, dataset=dataset, checkpoint=checkpoint, output=directory / "run")


@pytest.fixture(scope="module")
def trained(embedded_checkpoint, tiny_dataset, tmp_path_factory):
    directory = tmp_path_factory.mktemp("lora")
    run(directory, tiny_dataset, embedded_checkpoint, ProGRPO(alpha=1.0))
    return directory / "run"


def logits(model):
    ids = torch.arange(40).view(2, 20) % 80
    with torch.no_grad():
        return model.eval()(ids).logits


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def test_merged_weights_give_the_adapters_logits(trained, embedded_checkpoint):
    merged = logits(load(trained / "checkpoint"))
    adapted = logits(PeftModel.from_pretrained(load(embedded_checkpoint), trained / "adapter"))
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-4)
    assert (merged - logits(load(embedded_checkpoint))).abs().max() > 1e-2, "training must have changed something"


def test_what_is_written_holds_no_path_and_no_pickle(trained):
    assert {path.suffix for path in (trained / "adapter").iterdir()} <= {".json", ".safetensors", ".md"}
    assert json.loads((trained / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == ""
    read_manifest(trained, "training")


def test_the_merged_checkpoint_is_evaluated(trained, tiny_dataset, tmp_path):
    config = EvaluateConfig(num_samples=2, max_completion_tokens=9, device="cpu", max_problems=4)
    arm = Arm(name="arm", algorithm=ProGRPO(alpha=1.0))
    manifest = evaluate(
        config, dataset=tiny_dataset, checkpoint=trained / "checkpoint", output=tmp_path / "e", arm=arm, seed=0
    )
    assert manifest.metadata["num_problems"] == 4


def test_alpha_zero_is_grpo_and_the_kl_pass_does_not_touch_the_confidences(embedded_checkpoint, tiny_dataset, tmp_path):
    """With adapters the reference is the same model with them switched off: its pass must not be taken for the old."""
    losses = []
    for name, algorithm in (("grpo", GRPO()), ("progrpo", ProGRPO(alpha=0.0))):
        (tmp_path / name).mkdir()
        run(tmp_path / name, tiny_dataset, embedded_checkpoint, algorithm, loss=LossConfig(kl_beta=0.1))
        losses.append([row["train/loss"] for row in read_jsonl(tmp_path / name / "run" / "metrics.jsonl")])
    assert losses[0] == losses[1]
    confidences = [
        row["train/arm/answer_confidence"] for row in read_jsonl(tmp_path / "progrpo" / "run" / "metrics.jsonl")
    ]
    assert len(set(confidences)) == len(confidences)


def test_adapters_resume_exactly(embedded_checkpoint, tiny_dataset, tmp_path):
    state = {"uri": str(tmp_path / "state"), "every": 2}
    for name, settings in (
        ("short", {"steps": 3, "checkpointing": state}),
        ("long", {"steps": 5, "checkpointing": state}),
        ("whole", {"steps": 5}),
    ):
        (tmp_path / name).mkdir()
        run(tmp_path / name, tiny_dataset, embedded_checkpoint, ProGRPO(alpha=1.0), **settings)
    resumed, whole = (load(tmp_path / name / "run" / "checkpoint").state_dict() for name in ("long", "whole"))
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
