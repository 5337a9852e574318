"""What is found before anything is trained: every problem at once, each with what to do."""

import json
import shutil

import pytest
import torch

from architectures import QWEN_05B, QWEN_7B
from progrpo.config import (
    GRPO,
    GSPO,
    Arm,
    ClipCov,
    ForkingTokens,
    HeldoutConfig,
    KLCov,
    LoRAConfig,
    LossConfig,
    PassK,
    ProGRPO,
    TrainConfig,
    VLLMEngineConfig,
)
from progrpo.errors import CheckpointError, ConfigError, DataError
from progrpo.training.preflight import (
    Findings,
    check_adapters,
    check_machine,
    check_memory,
    check_settings,
    preflight,
)

GB = 10**9
SMALL = {"steps": 4, "prompts_per_step": 4, "group_size": 4, "max_completion_tokens": 9, "device": "cpu"}


def arm(algorithm=None, name="arm"):
    return Arm(name=name, algorithm=algorithm or GRPO())


def settings_of(*arms, counts=None, **train):
    findings = Findings()
    check_settings(arms or [arm()], TrainConfig(**(SMALL | train)), findings, **(counts or {}))
    return findings


def text_of(findings):
    return "\n".join(map(str, findings.errors))


# --- settings --------------------------------------------------------------------------------------------------------


def test_good_settings_have_no_findings():
    found = settings_of(*(arm(algorithm()) for algorithm in (GRPO, ProGRPO, PassK, ClipCov, ForkingTokens)))
    assert (found.errors, found.warnings) == ([], [])
    found.log_and_raise()


@pytest.mark.parametrize(
    ("algorithm", "settings", "counts", "kind", "words"),
    [
        (PassK(k=5), {}, {}, ConfigError, "k = 5 of Pass@k training is above train.group_size 4"),
        (None, {}, {"num_problems": 3}, DataError, "holds 3 problems, but train.prompts_per_step is 4"),
        (None, {"heldout": {"num_problems": 9}}, {"num_heldout": 8}, DataError, "has 8 held-out problems"),
        (None, {"engine": {"type": "vllm"}}, {}, ConfigError, "vllm, which needs a GPU, but train.device is cpu"),
        (None, {"optimizer": "adamw_8bit"}, {}, ConfigError, "adamw_8bit, which needs a GPU"),
        (None, {"lora": {"target_modules": ["q_proj", "lm_head"]}}, {}, ConfigError, "names lm_head"),
        (
            None,
            {"device": "cuda", "engine": {"type": "vllm", "tensor_parallel": 2}},
            {},
            ConfigError,
            "tensor_parallel 2 does not divide the 1 processes",
        ),
        (
            ProGRPO(prompt_confidence="group_mean"),
            {"micro_batch_size": 2},
            {},
            ConfigError,
            "micro_batch_size 2 splits the groups of 4 completions",
        ),
    ],
)
def test_what_cannot_work_is_refused(algorithm, settings, counts, kind, words):
    found = settings_of(arm(algorithm), counts=counts, **settings)
    with pytest.raises(kind) as caught:
        found.log_and_raise()
    assert words in str(caught.value)


def test_group_mean_takes_whole_groups():
    group_mean = arm(ProGRPO(prompt_confidence="group_mean"))
    for size in (None, 4, 8, 16):
        assert settings_of(group_mean, micro_batch_size=size).errors == []


@pytest.mark.parametrize("algorithm", [GSPO(), KLCov(), GRPO(loss=LossConfig(ratio="sequence"))])
def test_an_algorithm_that_one_update_makes_grpo_warns(algorithm):
    (text,) = settings_of(arm(algorithm)).warnings
    assert "trains as grpo with the same loss does" in text
    assert settings_of(arm(algorithm), updates_per_rollout=2).warnings == []
    assert settings_of(arm(algorithm), num_iterations=2).warnings == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"distributed": {"strategy": "fsdp2"}}, "with one process nothing is sharded"),
        ({"checkpointing": {"uri": "/points", "every": 4}}, "a killed run would start again"),
        ({"warmup_steps": 4, "learning_rate": 1e-5}, "never reaches 1e-05"),
    ],
)
def test_what_is_hardly_meant_warns(settings, words):
    (text,) = settings_of(**settings).warnings
    assert words in text


def test_all_problems_come_in_one_message_each_once(caplog):
    found = settings_of(arm(PassK(k=9), "a"), arm(KLCov(), "b"), optimizer="adamw_8bit", counts={"num_problems": 1})
    with pytest.raises(ConfigError) as caught:
        found.log_and_raise()
    lines = str(caught.value).splitlines()
    assert lines[0] == "3 problems:"
    assert [line.strip().split()[0] for line in lines[1:]] == ["arm", "the", "train.optimizer"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # of kl_cov


# --- machine ---------------------------------------------------------------------------------------------------------


def machine(monkeypatch, *, gpus, missing=(), **train):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in missing else object())
    findings = Findings()
    check_machine(TrainConfig(**({"device": "auto"} | train)), findings)
    return text_of(findings)


@pytest.mark.parametrize(
    ("gpus", "settings", "words"),
    [
        (0, {"device": "cuda"}, "torch sees no GPU here"),
        (0, {"engine": {"type": "vllm"}}, "train.engine is vllm, which needs a GPU, but torch sees none here"),
        (0, {"optimizer": "adamw_8bit"}, "train.optimizer is adamw_8bit, which needs a GPU"),
        (1, {"distributed": {"num_processes": 2}}, "num_processes is 2, one a GPU, but 1 GPUs are visible"),
        (4, {}, "4 GPUs are visible, but training uses one"),
        (1, {"engine": {"type": "vllm"}, "missing": ["vllm"]}, "vllm is not installed: pip install vllm"),
        (1, {"optimizer": "adamw_8bit", "missing": ["bitsandbytes"]}, "bitsandbytes is not installed"),
        (0, {"lora": {}, "missing": ["peft"]}, "peft is not installed"),
    ],
)
def test_a_machine_that_cannot_train_it(monkeypatch, gpus, settings, words):
    assert words in machine(monkeypatch, gpus=gpus, **settings)


def test_a_machine_that_can(monkeypatch):
    assert machine(monkeypatch, gpus=0, distributed={"num_processes": 4}) == ""  # on a CPU there may be any number
    assert machine(monkeypatch, gpus=2, distributed={"num_processes": 2}, engine={"type": "vllm"}) == ""


# --- checkpoint and dataset ------------------------------------------------------------------------------------------


def adapters(*targets):
    findings = Findings()
    check_adapters(QWEN_7B, TrainConfig(lora=LoRAConfig(target_modules=targets)), findings)
    return text_of(findings)


def test_adapters_need_layers_that_exist():
    assert adapters("q_proj", "self_attn.v_proj", "model.layers.3.mlp.up_proj") == ""
    found = adapters("q_proj", "query", "proj")
    assert "'query' matches no linear layer" in found
    assert "'proj' matches no linear layer" in found  # peft compares whole names
    assert "There are: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj." in found


def memory(device, *arms, **train):
    findings = Findings()
    check_memory(arms or [arm()], TrainConfig(**train), QWEN_7B, findings, device, on_gpu=True, prompt_tokens=512)
    return findings


def test_a_certain_overflow_is_an_error_with_advice():
    small = {"micro_batch_size": 1, "gradient_checkpointing": True, "max_completion_tokens": 512}
    found = memory(80 * GB, **small, engine={"type": "transformers", "batch_size": 8})
    # 16 bytes each of 7.6e9 parameters
    assert "weights, gradients and optimizer alone take 122 GB" in text_of(found)
    assert "train.lora {rank: 16}" in text_of(found)


def test_a_probable_overflow_is_a_warning():
    found = memory(141 * GB, max_completion_tokens=512)
    assert found.errors == []
    (text,) = found.warnings
    assert "most for activations" in text
    assert "train.micro_batch_size" in text


def test_memory_that_is_enough_or_unknown_is_no_finding():
    fits = {"micro_batch_size": 1, "gradient_checkpointing": True, "max_completion_tokens": 512}
    for device in (400 * GB, None):
        found = memory(device, **fits, engine={"type": "transformers", "batch_size": 8})
        assert (found.errors, found.warnings) == ([], [])
        assert found.estimates["arm"].peak > 100 * GB


def test_ranks_on_a_cpu_share_its_memory():
    def found(ranks, device):
        findings = Findings()
        train = TrainConfig(**SMALL, distributed={"num_processes": ranks})
        check_memory([arm()], train, QWEN_05B, findings, device, on_gpu=False, prompt_tokens=64)
        return findings

    certain = found(1, None).estimates["arm"].certain
    assert found(1, certain).errors == []
    assert "weights, gradients and optimizer alone" in text_of(found(2, certain))


def test_vllm_needs_room_for_its_own_weights():
    found = memory(24 * GB, lora={}, engine=VLLMEngineConfig(), micro_batch_size=1)
    assert "memory_frac 0.3 gives vLLM 7.2 GB of each device, but its copy of the weights alone takes 15.2 GB" in (
        text_of(found)
    )


def look(dataset, checkpoint, device=100 * GB, **train):
    return preflight(
        [arm()], TrainConfig(**(SMALL | train)), dataset=dataset, checkpoint=checkpoint, device_bytes=device
    )


def test_preflight_finds_nothing_wrong_with_the_embedded_task(tiny_dataset, embedded_checkpoint):
    found = look(tiny_dataset, embedded_checkpoint, heldout=HeldoutConfig(num_problems=16))
    assert (found.errors, found.warnings) == ([], [])
    assert set(found.estimates) == {"arm"}


def test_preflight_finds_the_problems_of_every_part(tiny_dataset, embedded_checkpoint):
    found = look(
        tiny_dataset,
        embedded_checkpoint,
        device=10**6,
        prompts_per_step=65,
        max_prompt_tokens=3,
        lora={"target_modules": ["qproj"]},
        heldout=HeldoutConfig(num_problems=17),
    )
    words = ["64 problems", "16 held-out problems", "max_prompt_tokens is 3", "'qproj'", "weights, gradients"]
    assert all(word in text_of(found) for word in words), text_of(found)
    assert len(found.errors) == len(words)


def changed(checkpoint, output, name, **changes):
    shutil.copytree(checkpoint, output)
    content = json.loads((output / name).read_text())
    for key, value in changes.items():
        content.pop(key) if value is None else content.update({key: value})
    (output / name).write_text(json.dumps(content))
    return output


@pytest.mark.parametrize(
    ("name", "changes", "kind", "words"),
    [
        ("config.json", {"max_position_embeddings": 20}, ConfigError, "context of 20 tokens"),
        ("config.json", {"num_attention_heads": None}, CheckpointError, "names no num_attention_heads"),
    ],
)
def test_preflight_reads_the_checkpoint(tiny_dataset, embedded_checkpoint, tmp_path, name, changes, kind, words):
    found = look(tiny_dataset, changed(embedded_checkpoint, tmp_path / "model", name, **changes))
    assert [type(error) for error in found.errors] == [kind]
    assert words in text_of(found)


def test_a_checkpoint_without_a_chat_template_is_found(tiny_dataset, embedded_checkpoint, tmp_path):
    model = shutil.copytree(embedded_checkpoint, tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    found = look(tiny_dataset, model)
    assert [type(error) for error in found.errors] == [CheckpointError]
    assert "has no chat template" in text_of(found)


def test_a_tokenizer_of_another_model_is_found(tiny_dataset, embedded_checkpoint, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    small = changed(embedded_checkpoint, tmp_path / "model", "config.json", vocab_size=30)
    LlamaForCausalLM(LlamaConfig.from_pretrained(small)).save_pretrained(small)
    found = look(tiny_dataset, small)
    assert [type(error) for error in found.errors] == [CheckpointError]
    assert "the embedding has 30 rows" in text_of(found)
