"""The train step: a checkpoint and a dataset in, a trained checkpoint, its metrics and its rollouts out."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progrpo.checkpoints.loading import (
    check_room,
    context_length,
    eos_token_ids,
    load_model,
    load_tokenizer,
    render_prompts,
)
from progrpo.config import Arm, ProGRPO, TrainConfig
from progrpo.data.dataset import Problem, load_problems
from progrpo.environment import describe_hardware, library_versions, resolve_device
from progrpo.errors import ConfigError, DataError, StorageError, TrainingError
from progrpo.manifest import Manifest, read_manifest, write_manifest
from progrpo.metrics import JsonlSink, MetricSink, Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from progrpo.training.trainer import PolicyTrainer

VERSIONED = ("torch", "transformers", "trl")


def train(
    arm: Arm,
    seed: int,
    config: TrainConfig,
    *,
    dataset: Path,
    checkpoint: Path,
    output: Path,
    sinks: Sequence[MetricSink] = (),
    progress: Progress | None = None,
) -> Manifest:
    """Train one arm with one seed.

    Args:
        arm: the algorithm and its name.
        seed: of the order of the prompts and of the rollouts.
        config: the settings every arm shares.
        dataset: a dataset artifact; its training split is used.
        checkpoint: the checkpoint artifact to start from.
        output: empty directory for the training run: ``checkpoint/``, ``metrics.jsonl``, ``rollouts/``.
        sinks: where each step's metrics go besides ``metrics.jsonl``; they must not raise.
        progress: told after each step, with reward and entropy.

    Raises:
        ConfigError, DataError, CheckpointError: what cannot work, before the first rollout.
        StorageError: ``output`` holds files already.
        TrainingError: a loss that is not finite, out of memory.
    """
    started = time.monotonic()
    inputs = {
        "dataset": read_manifest(dataset, "dataset").digest,
        "checkpoint": read_manifest(checkpoint, "checkpoint").digest,
    }
    problems = load_problems(dataset, "train")
    check_configuration(arm, config, len(problems))
    if output.exists() and any(output.iterdir()):
        raise StorageError(f"{output} is not empty: a training run needs a directory of its own. Give another one.")

    import torch
    from transformers import set_seed

    from progrpo.checkpoints.importer import write_checkpoint

    device = resolve_device(config.device)
    if device.type == "cuda" and torch.cuda.device_count() > 1:
        raise ConfigError(
            f"{torch.cuda.device_count()} GPUs are visible, but training uses one. Set CUDA_VISIBLE_DEVICES to it."
        )
    torch.set_num_threads(config.num_threads)
    tokenizer = load_tokenizer(checkpoint)
    check_lengths(checkpoint, tokenizer, config, problems)
    # Weights are float32 whatever the arithmetic: a bfloat16 weight would swallow updates at a learning rate of 1e-6.
    model = load_model(checkpoint, torch.float32)
    generation_config = model.generation_config
    prepare_model(model, tokenizer, eos_token_ids(checkpoint, model, tokenizer))

    output.mkdir(parents=True, exist_ok=True)
    log = JsonlSink(output / "metrics.jsonl")
    trainer = build_trainer(arm, seed, config, model, tokenizer, problems, output)
    trainer.add_callback(_recorder(trainer, config, output, [log, *sinks], progress))
    set_seed(seed)  # rollouts draw from the global generators, whose state must not depend on what ran before
    try:
        trainer.train()
    except RuntimeError as error:
        # On a GPU torch.OutOfMemoryError, on a CPU a plain RuntimeError with these words.
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        rows = config.micro_batch_size or config.prompts_per_step * config.group_size
        raise TrainingError(
            f"out of memory on {describe_hardware(device)} in step {trainer.state.global_step + 1}: {error}. "
            f"Set train.micro_batch_size to {max(1, rows // 2)} (now {rows}), or train.gradient_checkpointing to true."
        ) from None
    finally:
        log.close()

    policy = trainer.accelerator.unwrap_model(trainer.model)
    policy.generation_config = generation_config  # whoever serves the checkpoint gets the settings it came with
    write_checkpoint(
        policy,
        tokenizer,
        output / "checkpoint",
        source=f"{arm.name}, seed {seed}, {config.steps} steps",
        inputs=inputs,
    )
    return write_manifest(
        output,
        "training",
        inputs=inputs,
        config={"arm": arm.model_dump(mode="json"), "seed": seed, "train": config.model_dump(mode="json")},
        metadata={
            "train_wall_time_s": round(time.monotonic() - started, 2),
            "hardware": describe_hardware(device),
            "versions": library_versions(*VERSIONED),
        },
    )


def check_configuration(arm: Arm, config: TrainConfig, num_problems: int | None) -> None:
    """Refuse what cannot work whatever the checkpoint.

    Args:
        arm: what is trained.
        config: how.
        num_problems: of the training split; None if that is not known yet.

    Raises:
        ConfigError: settings that contradict each other.
        DataError: fewer training problems than a step needs.
    """
    rows = config.prompts_per_step * config.group_size
    if (
        isinstance(arm.algorithm, ProGRPO)
        and arm.algorithm.prompt_confidence == "group_mean"
        and config.micro_batch_size not in (None, rows)
    ):
        raise ConfigError(
            f"arm {arm.name}: prompt_confidence 'group_mean' needs a whole group in one forward pass, but "
            f"train.micro_batch_size {config.micro_batch_size} splits the {rows} completions of a step. "
            f"Leave micro_batch_size out, or use another prompt_confidence."
        )
    if num_problems is not None and num_problems < config.prompts_per_step:
        raise DataError(
            f"the training split holds {num_problems} problems, but train.prompts_per_step is "
            f"{config.prompts_per_step}. Lower it, or give more problems."
        )


def check_lengths(
    checkpoint: Path, tokenizer: PreTrainedTokenizerBase, config: TrainConfig, problems: Sequence[Problem]
) -> None:
    """Refuse prompts that are too long for the limit or, with a completion, for the model's context.

    Raises:
        DataError, ConfigError: naming the longest problem and what would fit.
    """
    prompts = render_prompts(tokenizer, problems)
    length, problem = max((len(ids), problem.id) for ids, problem in zip(prompts, problems, strict=True))
    if length > config.max_prompt_tokens:
        raise DataError(
            f"problem {problem!r} has {length} prompt tokens, train.max_prompt_tokens is {config.max_prompt_tokens}. "
            f"Raise it or drop the problem."
        )
    check_room(problems, prompts, config.max_completion_tokens, context_length(checkpoint))


def prepare_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, eos: Sequence[int]) -> None:
    """Make the model sample what it is trained on: no dropout, and no sampling settings of the checkpoint's own.

    With dropout the scored policy would not be the one that sampled. ``generate`` fills what is left open from the
    checkpoint (min_new_tokens, top_k, penalties), which evaluation does not.
    """
    from torch.nn.modules.dropout import _DropoutNd
    from transformers import GenerationConfig

    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = eos[0]
    model.generation_config = GenerationConfig(eos_token_id=list(eos), pad_token_id=tokenizer.pad_token_id)
    for module in model.modules():
        for name, value in vars(module).items():
            # nn.Dropout keeps its rate as p, attention modules theirs as attention_dropout, for functional dropout.
            if isinstance(value, float) and ("dropout" in name or (name == "p" and isinstance(module, _DropoutNd))):
                setattr(module, name, 0.0)


def build_trainer(
    arm: Arm,
    seed: int,
    config: TrainConfig,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    output: Path,
) -> PolicyTrainer:
    """Translate our settings into TRL's, once and here."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig

    from progrpo.training.trainer import PolicyTrainer

    rows = config.prompts_per_step * config.group_size
    micro_batch_size = config.micro_batch_size or rows
    args = GRPOConfig(
        output_dir=os.fspath(output),
        max_steps=config.steps,
        per_device_train_batch_size=micro_batch_size,
        gradient_accumulation_steps=rows // micro_batch_size,
        num_generations=config.group_size,
        max_completion_length=config.max_completion_tokens,
        temperature=config.temperature,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup" if config.warmup_steps else "constant",
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        loss_type={"token_mean": "dapo", "sequence_mean": "grpo"}[config.loss.aggregation],
        epsilon=config.loss.clip_low,
        epsilon_high=config.loss.clip_high,
        beta=config.loss.kl_beta,
        scale_rewards="group" if config.loss.normalize_std else "none",
        seed=seed,
        data_seed=seed,
        use_cpu=resolve_device(config.device).type == "cpu",
        bf16=config.dtype == "bfloat16",
        gradient_checkpointing=config.gradient_checkpointing,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is not finite must be seen, not replaced by the last one
        disable_tqdm=True,
    )
    columns = {name: [getattr(problem, name) for problem in problems] for name in ("prompt", "answer", "task")}
    columns["problem_id"] = [problem.id for problem in problems]
    trainer = PolicyTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=correctness,
        args=args,
        train_dataset=Dataset.from_dict(columns),
        algorithm=arm.algorithm,
        normalize_std=config.loss.normalize_std,
    )
    trainer.remove_callback(PrinterCallback)  # prints every log line; ours go to the sinks
    return trainer


def correctness(
    completions: Sequence[Sequence[Mapping[str, str]]], answer: Sequence[str], task: Sequence[str], **_: object
) -> list[float | None]:
    """Verify completions: 1 correct, 0 wrong, None where the verifier could not tell (no advantage then)."""
    from progrpo.rewards import verify_batch

    texts = [messages[-1]["content"] for messages in completions]
    verdicts = verify_batch(list(zip(task, answer, texts, strict=True)))
    return [float(verdict.correct) if verdict.scored else None for verdict in verdicts]


TRL_METRICS = {
    "reward": "train/reward",
    "reward_std": "train/reward_std",
    "entropy": "train/entropy",
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/learning_rate",
    "completions/mean_length": "train/completion_tokens",
    "completions/clipped_ratio": "train/truncated_frac",
    "frac_reward_zero_std": "train/zero_std_frac",
    "kl": "train/kl",
    "arm/prompt_confidence": "train/arm/prompt_confidence",
    "arm/answer_confidence": "train/arm/answer_confidence",
    "arm/advantage_shift": "train/arm/advantage_shift",
    "arm/gated_frac": "train/arm/gated_frac",
}
"""TRL's log keys and ours, which progrpo.metrics.TRAIN_METRICS explains."""


def _recorder(
    trainer: PolicyTrainer,
    config: TrainConfig,
    output: Path,
    sinks: Sequence[MetricSink],
    progress: Progress | None,
) -> Any:
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
        """Send each step's metrics on, keep its rollouts, stop on a loss that is not finite."""

        def __init__(self) -> None:
            self._last = time.monotonic()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
            if "loss" not in logs:  # the summary after the last step
                return
            now = time.monotonic()
            metrics = {ours: float(logs[key]) for key, ours in TRL_METRICS.items() if logs.get(key) is not None}
            metrics["train/step_s"], self._last = now - self._last, now
            step = state.global_step
            for sink in sinks:
                sink.log(step, metrics)
            for key in ("train/loss", "train/grad_norm"):
                if not math.isfinite(metrics[key]):
                    raise TrainingError(
                        f"{key} is {metrics[key]} in step {step}. Lower train.learning_rate (now "
                        f"{config.learning_rate:g}) or train.max_grad_norm (now {config.max_grad_norm:g})."
                    )
            if config.log_rollouts_every and (step % config.log_rollouts_every == 0 or step == 1):
                write_rollouts(output / "rollouts" / f"step_{step:05d}.parquet", trainer.rollouts)
            if progress is not None:
                shown = {"reward": metrics.get("train/reward", 0.0), "entropy": metrics.get("train/entropy", 0.0)}
                progress.update(step, config.steps, **shown)

    return Recorder()


def write_rollouts(path: Path, rollouts: Mapping[str, Sequence[Any]]) -> None:
    """Write one step's rollouts as parquet, one row a completion, in group order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(pa.table(dict(rollouts)), temporary)
    temporary.replace(path)
