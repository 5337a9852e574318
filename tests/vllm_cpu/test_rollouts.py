"""VLLMRollouts on TRL's trainer and the real vLLM: whose samples, with which probabilities, from which seeds."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from progrpo.config import VLLMEngineConfig
from progrpo.generation.engine import SamplingSettings
from progrpo.generation.vllm_engine import VLLMEngine
from progrpo.training.vllm_rollouts import VLLMRollouts, engine_defaults, vllm_arguments

G, SEED, TEMPERATURE, MAX_TOKENS = 4, 7, 0.7, 16
CONFIG = VLLMEngineConfig(sleep=False)
OPEN: list[object] = []
"""Engines of this module, kept: when vLLM's garbage is collected, the process groups of all others go with it."""


def _keys(prompts: list[list[int]], num: int = G) -> tuple[list[list[int]], list[tuple[int, int]]]:
    return [p for p in prompts for _ in range(num)], [(i, n) for i in range(len(prompts)) for n in range(num)]


def _length_reward(completion_ids, **_) -> list[float]:
    return [float(len(ids)) for ids in completion_ids]


def _trainer(
    checkpoint: Path,
    output: Path,
    prompts: list[list[int]],
    *,
    steps: int = 3,
    max_model_tokens: int = 64,
    defaults: AbstractContextManager[None] | None = None,
    **more,
) -> GRPOTrainer:
    """TRL's trainer; its rollouts come from VLLMRollouts, its reward pays length, so that the policy moves."""

    def rollout_func(_, trainer) -> dict[str, list]:
        rows, keys = _keys(prompts)
        drawn = trainer.engine.sample(rows, [(trainer.state.global_step, *key) for key in keys])
        return {
            "prompt_ids": rows,
            "completion_ids": [list(c.token_ids) for c in drawn],
            "logprobs": [list(c.logprobs) for c in drawn],
        }

    args = GRPOConfig(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=len(prompts) * G,
        num_generations=G,
        max_completion_length=MAX_TOKENS,
        temperature=TEMPERATURE,
        learning_rate=2e-3,
        lr_scheduler_type="constant",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
        **vllm_arguments(CONFIG, max_model_tokens=max_model_tokens, eos_token_ids=[2], device="cpu"),
    )
    with defaults or engine_defaults("float32"):
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32),
            processing_class=AutoTokenizer.from_pretrained(checkpoint, padding_side="left"),
            reward_funcs=_length_reward,
            args=args,
            train_dataset=Dataset.from_dict({"prompt": ["-"] * len(prompts)}),
            rollout_func=rollout_func,
            **more,
        )
    OPEN.append(trainer)
    trainer.engine = VLLMRollouts(trainer, seed=SEED)
    return trainer


@pytest.fixture(scope="module")
def trainer(embedded_checkpoint: Path, prompts: list[list[int]], tmp_path_factory) -> GRPOTrainer:
    return _trainer(embedded_checkpoint, tmp_path_factory.mktemp("trl"), prompts)


@pytest.fixture(scope="module")
def before_and_after(trainer: GRPOTrainer, prompts: list[list[int]]):
    """Samples before three updates and after them, with the same seeds."""
    rows, keys = _keys(prompts, 16)
    before = trainer.engine.sample(rows, keys)
    trainer.train()
    return before, trainer.engine.sample(rows, keys)


def _differences(trainer: GRPOTrainer, rows: list[list[int]], drawn: list) -> torch.Tensor:
    """|log-probability of the sampler - of the trainer's own scoring pass| of every token."""
    pad, left, right = 0, max(map(len, rows)), max(len(c.token_ids) for c in drawn)
    ids = [
        [pad] * (left - len(r)) + r + list(c.token_ids) + [pad] * (right - len(c.token_ids))
        for r, c in zip(rows, drawn, strict=True)
    ]
    mask = [
        [0] * (left - len(r)) + [1] * (len(r) + len(c.token_ids)) + [0] * (right - len(c.token_ids))
        for r, c in zip(rows, drawn, strict=True)
    ]
    with torch.no_grad():
        logprobs, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, torch.tensor(ids), torch.tensor(mask), right
        )
    own = [torch.tensor(c.logprobs) - logprobs[i, : len(c.token_ids)] for i, c in enumerate(drawn)]
    return torch.cat(own).abs()


def test_an_update_reaches_the_samples(trainer, before_and_after, prompts, tmp_path: Path) -> None:
    """After it, samples are those of a vLLM that loads the updated weights from disk, seed for seed."""
    before, after = before_and_after
    assert sum(b.token_ids != a.token_ids for b, a in zip(before, after, strict=True)) > len(before) // 4
    updated = tmp_path / "updated"
    trainer.accelerator.unwrap_model(trainer.model).save_pretrained(updated)
    fresh = VLLMEngine(updated, CONFIG, dtype="float32", eos_token_ids=[2], max_model_tokens=64)
    rows, keys = _keys(prompts, 16)
    OPEN.append(fresh)
    expected = fresh.complete(rows, keys, SamplingSettings(TEMPERATURE, 1.0, MAX_TOKENS), SEED)
    assert [c.token_ids for c in after] == [c.token_ids for c in expected]
    assert [c.finish_reason for c in after] == [c.finish_reason for c in expected]


def test_greedy_samples_are_those_of_the_updated_model(trainer, before_and_after, prompts, monkeypatch) -> None:
    monkeypatch.setattr(trainer.vllm_generation, "temperature", 0.0)
    drawn = trainer.engine.sample(prompts, [(0, i) for i in range(len(prompts))])
    for prompt, completion in zip(prompts, drawn, strict=True):
        output = trainer.model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=MAX_TOKENS, eos_token_id=2
        )
        assert list(completion.token_ids) == output[0, len(prompt) :].tolist()


def test_sampled_logprobs_are_the_trainers(trainer, before_and_after, prompts, measured) -> None:
    rows, _ = _keys(prompts, 16)
    difference = _differences(trainer, rows, before_and_after[1])
    measured(dtype="float32", max=difference.max().item(), mean=difference.mean().item(), tokens=len(difference))
    assert difference.max() < 1e-4
    assert _differences(trainer, rows, before_and_after[0]).max() > 0.1, "of the policy before the update they are not"


def test_trl_sees_the_same_policy_in_both(trainer, before_and_after) -> None:
    """Of every step of the training, as TRL reports it: ratio 1, whatever the correction."""
    for log in trainer.state.log_history[:3]:
        assert log["sampling/sampling_logp_difference/max"] < 1e-4
        assert log["sampling/importance_sampling_ratio/mean"] == pytest.approx(1.0, abs=1e-3)


def test_keys_decide_what_is_drawn(trainer, before_and_after, prompts) -> None:
    rows, keys = _keys(prompts, 16)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = trainer.engine.sample(rows, keys)
    assert [c.token_ids for c in again] == [c.token_ids for c in before_and_after[1]]
    assert torch.equal(torch.get_rng_state(), state), "the trainer's generator must be untouched"
    reversed_ = trainer.engine.sample(rows[::-1], keys[::-1])[::-1]
    assert sum(a.token_ids != b.token_ids for a, b in zip(again, reversed_, strict=True)) <= 1  # rounding
    assert len({c.token_ids for c in again[-16:]}) > 4, "the completions of a prompt must differ"
    others = trainer.engine.sample(rows, [(*key, 1) for key in keys])
    assert [c.token_ids for c in others] != [c.token_ids for c in again]


def test_eos_is_the_last_token(before_and_after) -> None:
    for completion in [c for samples in before_and_after for c in samples]:
        assert len(completion.logprobs) == len(completion.token_ids)
        assert (completion.token_ids[-1] == 2) == (completion.finish_reason == "stop")
        assert 2 not in completion.token_ids[:-1]


def test_adapters_reach_the_samples(embedded_checkpoint: Path, prompts, tmp_path: Path, measured) -> None:
    from peft import LoraConfig

    lora = LoraConfig(r=8, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = _trainer(embedded_checkpoint, tmp_path, prompts, peft_config=lora)
    rows, keys = _keys(prompts, 16)
    before = trainer.engine.sample(rows, keys)
    trainer.train()
    after = trainer.engine.sample(rows, keys)
    assert [c.token_ids for c in before] != [c.token_ids for c in after]
    difference = _differences(trainer, rows, after)
    measured(adapter="LoRA", max=difference.max().item(), mean=difference.mean().item())
    assert difference.max() < 1e-4


def test_without_our_dtype_vllm_computes_in_another(embedded_checkpoint, prompts, tmp_path, measured, monkeypatch):
    """What engine_defaults is for; if this fails, vLLM or TRL changed its choice and it may go."""
    from vllm import _custom_ops

    monkeypatch.setattr(_custom_ops, "_supports_onednn", False)
    trainer = _trainer(embedded_checkpoint, tmp_path, prompts, defaults=nullcontext())
    rows, keys = _keys(prompts, 16)
    difference = _differences(trainer, rows, trainer.engine.sample(rows, keys))
    measured(dtype="bfloat16, vLLM's choice", max=difference.max().item(), mean=difference.mean().item())
    assert difference.max() > 1e-2


def test_a_long_prompt_is_computed_once(long_checkpoint: Path, tmp_path: Path, prefix_hits, measured) -> None:
    """300 tokens are two whole blocks of 128 and a rest: seven of eight requests take 256 from the cache."""
    prompt = torch.randint(6, 85, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    trainer = _trainer(long_checkpoint, tmp_path, [prompt], max_model_tokens=512)
    fractions = prefix_hits(trainer.vllm_generation.llm)
    trainer.engine.sample(*_keys([prompt], 8))
    measured(rollouts_prefix_hit_frac=fractions)
    assert fractions == [pytest.approx(7 * 256 / (8 * 300))]


def test_vllm_itself_refuses_to_sleep_on_a_cpu(embedded_checkpoint: Path) -> None:
    """Why vllm_arguments refuses it there."""
    from vllm import LLM

    with pytest.raises(ValueError, match="Sleep mode is not supported"):
        LLM(model=str(embedded_checkpoint), enable_sleep_mode=True)
