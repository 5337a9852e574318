"""The train step: a checkpoint and a dataset in, a trained checkpoint, its metrics and its rollouts out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progrpo.checkpoints.importer import write_checkpoint
from progrpo.checkpoints.loading import eos_token_ids, load_model, load_tokenizer, render_prompts
from progrpo.config import Arm, CheckpointingConfig, TrainConfig, TransformersEngineConfig
from progrpo.data.dataset import load_problems
from progrpo.environment import describe_hardware, library_versions, resolve_device
from progrpo.errors import StorageError, TrainingError
from progrpo.manifest import Manifest, read_manifest, write_manifest
from progrpo.metrics import METRICS_NAME, JsonlSink, MetricSink, Progress, ProgressSink
from progrpo.rewards import check_verifiers
from progrpo.training.distributed import full_weights
from progrpo.training.preflight import preflight

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from progrpo.training.heldout import Heldout
    from progrpo.training.state.store import StateStore
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
    run_id: str = "run",
    sinks: Sequence[MetricSink] = (),
    progress: Progress | None = None,
) -> Manifest:
    """Train one arm with one seed, on this rank; with several, every rank calls it and the first writes.

    Args:
        arm: the algorithm and its name.
        seed: of the order of the prompts and of the rollouts.
        config: the settings every arm shares.
        dataset: a dataset artifact; its training split is used.
        checkpoint: the checkpoint artifact to start from.
        output: empty directory for the training run: ``checkpoint/``, ``adapter/`` with LoRA, ``metrics.jsonl``,
            ``rollouts/``.
        run_id: of the pipeline run, the folder of resume points unless ``config.checkpointing`` names one.
        sinks: where each step's metrics go besides ``metrics.jsonl``; they must not raise.
        progress: told after each step, with reward and entropy.

    Raises:
        ConfigError, DataError, CheckpointError: what cannot work, before the first rollout.
        StateError: resume points of another run, or none that can be read.
        StorageError: ``output`` holds files already.
        TrainingError: a loss that is not finite, no signal for many steps, out of memory.
        SystemExit: told to stop by SIGTERM, status 143, or SIGINT, 130; a resume point was saved if they are kept.
    """
    started = time.monotonic()
    inputs = {
        "dataset": read_manifest(dataset, "dataset").digest,
        "checkpoint": read_manifest(checkpoint, "checkpoint").digest,
    }
    if output.exists() and any(output.iterdir()):
        raise StorageError(f"{output} is not empty: a training run needs a directory of its own. Give another one.")

    import torch
    from transformers import set_seed

    from progrpo.training.build import build_trainer
    from progrpo.training.recorder import Finished, Recorder, Stopped

    preflight([arm], config, dataset=dataset, checkpoint=checkpoint).log_and_raise()
    device = resolve_device(config.device)
    torch.set_num_threads(config.num_threads)
    problems = load_problems(dataset, "train")
    check_verifiers({problem.task for problem in problems})
    tokenizer = load_tokenizer(checkpoint)
    prompts = render_prompts(tokenizer, problems)
    # Weights are float32 whatever the arithmetic: a bfloat16 weight would swallow updates at a learning rate of 1e-6.
    model = load_model(checkpoint, torch.float32)
    generation_config = model.generation_config
    prepare_model(model, tokenizer, eos_token_ids(checkpoint, model, tokenizer))

    trainer = build_trainer(arm, seed, config, model, tokenizer, problems, prompts, output)
    heldout = open_heldout(trainer, config, dataset)
    is_first = trainer.accelerator.is_main_process
    with ExitStack() as stack:
        if is_first:
            output.mkdir(parents=True, exist_ok=True)
        resume = store = None
        if config.checkpointing is not None:
            from progrpo.training.resume import Resume, fingerprint

            store = stack.enter_context(open_store(config.checkpointing, arm, seed, run_id)) if is_first else None
            identity = fingerprint(arm, seed, config, inputs)
            resume = Resume(config.checkpointing, store, identity, output, config.steps)
        log: list[MetricSink] = []
        if is_first:
            shown = [ProgressSink(progress, config.steps)] if progress is not None else []
            log = [stack.enter_context(closing(JsonlSink(output / METRICS_NAME))), *sinks, *shown]
        recorder = Recorder(trainer, config, output, log, heldout, resume)
        trainer.add_callback(recorder)
        set_seed(seed)  # nothing of ours draws from the global generators, but a library may
        try:
            with recorder.stoppable(), explained_memory_errors(trainer, config, device):
                trainer.train()
        except Finished:
            pass  # an earlier attempt was stopped between its last step and the end
        except Stopped as stopped:
            if resume is not None:
                resume.save()
            raise SystemExit(128 + stopped.signum) from None

    source = f"{arm.name}, seed {seed}, {trainer.state.global_step} steps"
    policy = trained_policy(trainer, config, checkpoint)
    if not is_first:
        return Manifest(kind="training", inputs=inputs)
    policy.generation_config = generation_config  # whoever serves the checkpoint gets the settings it came with
    write_policy(policy, tokenizer, output, source=source, inputs=inputs)
    return write_manifest(
        output,
        "training",
        inputs=inputs,
        config={"arm": arm.model_dump(mode="json"), "seed": seed, "train": config.model_dump(mode="json")},
        metadata={
            "train_wall_time_s": round(time.monotonic() - started + (resume.previous_s if resume else 0.0), 2),
            "steps": trainer.state.global_step,
            **({"stopped": recorder.stopped} if recorder.stopped else {}),
            "num_processes": config.distributed.num_processes,
            **({"state_upload_failures": store.num_upload_failures} if store is not None else {}),
            "hardware": describe_hardware(device),
            "versions": library_versions(*VERSIONED),
        },
    )


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


def open_heldout(trainer: PolicyTrainer, config: TrainConfig, dataset: Path) -> Heldout | None:
    """Return what measures the held-out problems, if anything does."""
    if config.heldout is None:
        return None
    from progrpo.training.heldout import Heldout

    problems = load_problems(dataset, "eval")[: config.heldout.num_problems]
    return Heldout(trainer, config.heldout, problems, render_prompts(trainer.processing_class, problems))


def open_store(config: CheckpointingConfig, arm: Arm, seed: int, run_id: str) -> StateStore:
    """Open where the resume points of one run lie: the same place for every attempt at it."""
    from progrpo.training.state.store import StateStore

    place = f"{config.uri.rstrip('/')}/{config.name or run_id}/{arm.name}-seed{seed}"
    return StateStore(place, keep_last=config.keep_last, keep_best=config.keep_best)


def trained_policy(trainer: PolicyTrainer, config: TrainConfig, checkpoint: Path) -> Any:
    """Return the trained policy, whole, adapters not merged; every rank must call it, and the first one's counts."""
    policy = trainer.accelerator.unwrap_model(trainer.model)
    if not trainer.is_fsdp_enabled:
        return policy
    import torch

    weights = full_weights(trainer)
    if trainer.accelerator.is_main_process:
        policy = load_model(checkpoint, torch.float32)
        if config.lora is not None:
            from peft import get_peft_model

            from progrpo.training.build import lora_config

            policy = get_peft_model(policy, lora_config(config.lora))
        policy.load_state_dict(weights)
    return policy


def write_policy(
    policy: Any, tokenizer: PreTrainedTokenizerBase, output: Path, *, source: str, inputs: Mapping[str, str]
) -> None:
    """Write a policy as a checkpoint artifact; adapters are merged into it, and kept beside it."""
    if hasattr(policy, "merge_and_unload"):
        policy.peft_config["default"].base_model_name_or_path = ""  # a path of this machine
        policy.save_pretrained(output / "adapter")
        policy = policy.merge_and_unload()
    write_checkpoint(policy, tokenizer, output / "checkpoint", source=source, inputs=inputs)


@contextmanager
def explained_memory_errors(trainer: PolicyTrainer, config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Turn what torch raises when memory runs out into an error that says which knob to turn, and how far."""
    import torch

    try:
        yield
    except RuntimeError as error:
        # On a GPU torch.OutOfMemoryError, on a CPU a plain RuntimeError with these words.
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        rows = config.micro_batch_size or config.rows_per_rank
        engine = config.engine
        knobs = [f"train.micro_batch_size to {max(1, rows // 2)} (now {rows})"]
        if not config.gradient_checkpointing:
            knobs.append("train.gradient_checkpointing to true")
        if isinstance(engine, TransformersEngineConfig):
            at_once = engine.batch_size or config.rows_per_rank * config.updates_per_rollout
            knobs.append(f"train.engine.batch_size to {max(1, at_once // 2)} (now {at_once}) if it was sampling")
        else:
            knobs.append(f"train.engine.memory_frac to {engine.memory_frac / 2:g} (now {engine.memory_frac:g})")
        raise TrainingError(
            f"out of memory on {describe_hardware(device)} in step {trainer.state.global_step + 1}: {error}. "
            f"Set {', or '.join(knobs)}. `progrpo plan` shows what takes the memory."
        ) from None
