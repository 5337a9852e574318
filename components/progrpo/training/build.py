"""Translate our settings into TRL's, once and here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progrpo.config import (
    Arm,
    LoRAConfig,
    Method,
    TrainConfig,
    VLLMEngineConfig,
    method_of,
)
from progrpo.data.dataset import Problem
from progrpo.environment import resolve_device
from progrpo.training.distributed import strategy_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from progrpo.training.rollouts import RolloutEngine
    from progrpo.training.trainer import PolicyTrainer

LOSS_TYPES = {"token_mean": "dapo", "sequence_mean": "grpo", "constant_length": "dr_grpo"}
OPTIMIZERS = {"adamw": "adamw_torch", "adamw_8bit": "adamw_bnb_8bit"}


def build_trainer(
    arm: Arm,
    seed: int,
    config: TrainConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    prompts: Sequence[Sequence[int]],
    output: Path,
) -> PolicyTrainer:
    """Make the trainer of one arm.

    Args:
        arm: the algorithm.
        seed: of the order of the prompts and of the rollouts.
        config: the settings every arm shares.
        model: the start checkpoint, prepared by :func:`progrpo.training.train.prepare_model`.
        tokenizer: its tokenizer, with a pad token.
        problems: the training split.
        prompts: token ids of each problem's prompt.
        output: a directory TRL may name; nothing is written there.
    """
    from accelerate.utils import gather_object
    from datasets import Dataset
    from transformers import PrinterCallback

    from progrpo.training.prompts import PromptStream
    from progrpo.training.rollouts import Collector
    from progrpo.training.trainer import PolicyTrainer

    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # of rollout_func; the contract test watches it
    method = method_of(arm.algorithm, config)
    args = trl_arguments(method, seed, config, output, **_engine_arguments(config, model))
    with _engine_started(config):
        trainer = PolicyTrainer(
            model=model,
            processing_class=tokenizer,
            reward_funcs=correctness,
            args=args,
            train_dataset=Dataset.from_dict({"prompt": [problems[0].prompt]}),  # TRL wants one; the collector has all
            peft_config=None if config.lora is None else lora_config(config.lora),
            method=method,
            max_steps_without_signal=config.max_steps_without_signal,
        )
    trainer.remove_callback(PrinterCallback)  # prints every log line; ours go to the sinks
    trainer.collector = Collector(
        stream=PromptStream(len(problems), seed),
        problems=problems,
        prompts=prompts,
        engine=_rollout_engine(trainer, seed, config),
        decoder=tokenizer,
        method=method,
        group_size=config.group_size,
        max_completion_tokens=config.max_completion_tokens,
        rank=trainer.accelerator.process_index,
        num_ranks=trainer.accelerator.num_processes,
        num_updates=config.updates_per_rollout,
        gather=gather_object,
    )
    return trainer


def trl_arguments(method: Method, seed: int, config: TrainConfig, output: Path, **engine: Any) -> Any:
    """Return the ``GRPOConfig`` of a method; ``engine`` are the fields of the rollout engine."""
    from trl import GRPOConfig

    micro_batch_size = config.micro_batch_size or config.rows_per_rank
    accumulation = config.rows_per_rank // micro_batch_size
    return GRPOConfig(
        output_dir=os.fspath(output),
        max_steps=config.steps,
        per_device_train_batch_size=micro_batch_size,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=accumulation * config.updates_per_rollout,
        num_iterations=config.num_iterations,
        num_generations=config.group_size,
        max_completion_length=config.max_completion_tokens,
        temperature=config.temperature,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup" if config.warmup_steps else "constant",
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim=OPTIMIZERS[config.optimizer],
        loss_type=LOSS_TYPES[method.loss.aggregation],
        importance_sampling_level=method.loss.ratio,
        epsilon=method.loss.clip_low,
        epsilon_high=method.loss.clip_high,
        beta=method.loss.kl_beta,
        scale_rewards="group" if method.loss.normalize_std else "none",
        seed=seed,
        data_seed=seed,
        use_cpu=resolve_device(config.device).type == "cpu",
        bf16=config.dtype == "bfloat16",
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is not finite must be seen, not replaced by the last one
        disable_tqdm=True,
        **method.algorithm.engine_settings(),
        **engine,
        **strategy_arguments(config),
    )


def _engine_arguments(config: TrainConfig, model: PreTrainedModel) -> dict[str, Any]:
    if not isinstance(config.engine, VLLMEngineConfig):
        return {}
    from progrpo.training.vllm_rollouts import vllm_arguments

    longest = config.max_prompt_tokens + config.max_completion_tokens
    return vllm_arguments(
        config.engine,
        max_model_tokens=min(longest, getattr(model.config, "max_position_embeddings", None) or longest),
        eos_token_ids=model.generation_config.eos_token_id,
        device="cpu" if resolve_device(config.device).type == "cpu" else "cuda",
        num_processes=config.distributed.num_processes,
    )


def _engine_started(config: TrainConfig) -> AbstractContextManager[None]:
    if not isinstance(config.engine, VLLMEngineConfig):
        return nullcontext()
    from progrpo.training.vllm_rollouts import engine_defaults

    return engine_defaults(config.dtype)


def lora_config(lora: LoRAConfig) -> Any:
    """Return peft's settings for ours."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,  # with dropout the scored policy would not be the one that sampled
        target_modules="all-linear" if lora.target_modules is None else list(lora.target_modules),
        task_type="CAUSAL_LM",
    )


def _rollout_engine(trainer: PolicyTrainer, seed: int, config: TrainConfig) -> RolloutEngine:
    if isinstance(config.engine, VLLMEngineConfig):
        from progrpo.training.vllm_rollouts import VLLMRollouts

        return VLLMRollouts(trainer, seed=seed)
    from progrpo.training.engines import TransformersRollouts

    return TransformersRollouts(
        trainer,
        seed=seed,
        temperature=config.temperature,
        max_tokens=config.max_completion_tokens,
        batch_size=config.engine.batch_size,
    )


def correctness(
    completions: Sequence[Sequence[Mapping[str, str]]], answer: Sequence[str], task: Sequence[str], **_: object
) -> list[float | None]:
    """Verify completions: 1 correct, 0 wrong, None where the verifier could not tell.

    TRL names its reward after this function. PolicyTrainer does not call it, as the collector has verified already;
    stock TRL with the same problems does.
    """
    from progrpo.rewards import verify_batch

    texts = [messages[-1]["content"] for messages in completions]
    verdicts = verify_batch(list(zip(task, answer, texts, strict=True)))
    return [float(verdict.correct) if verdict.scored else None for verdict in verdicts]
