"""What a pipeline run would take, before it is submitted: memory, work, what it writes, what cannot work."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from progrpo.checkpoints.architecture import Architecture, read_architecture
from progrpo.checkpoints.peek import peek
from progrpo.config import Arm, CountdownSource, EvaluateConfig, FileSource, TrainConfig, method_of
from progrpo.errors import ConfigError, StorageError
from progrpo.inputs import Prompts, measure_prompts
from progrpo.training.advice import readable_size
from progrpo.training.devices import gpu_bytes, host_bytes
from progrpo.training.estimate import FLOAT32, OPTIMIZER_BYTES, estimate_evaluation, num_adapter_parameters
from progrpo.training.preflight import Findings, check_adapters, check_memory, check_settings
from progrpo_components.settings import ComparePipeline, EvaluatePipeline, PreparePipeline, TrainAndEvaluatePipeline

if TYPE_CHECKING:
    from progrpo.data.dataset import Problem

EVALUATION = "evaluation"


@dataclass(frozen=True)
class Device:
    """What memory is compared with.

    Attributes:
        name: as shown.
        num_bytes: None: not known.
        is_gpu: a GPU, or the host.
    """

    name: str
    num_bytes: int | None
    is_gpu: bool


@dataclass
class Plan:
    """A pipeline run, looked at beforehand.

    Attributes:
        pipeline: its name.
        device: what memory is compared with.
        model: of the checkpoint; None: it could not be read, or was not.
        findings: errors, warnings, memory by arm.
        evaluation: bytes by part of the evaluate step.
        training: counts of one training run; see :func:`training_work`.
        num_runs: arms x seeds.
        evaluation_completions: sampled by all evaluate steps together.
        written: what a training run leaves behind: (what, how many, bytes of each or None).
        gpu_hours: of all training runs at most, if the throughput was given.
        notes: what was not looked at.
    """

    pipeline: str
    device: Device
    model: Architecture | None = None
    findings: Findings = field(default_factory=Findings)
    evaluation: dict[str, int] = field(default_factory=dict)
    training: dict[str, int] = field(default_factory=dict)
    num_runs: int = 0
    evaluation_completions: int | None = None
    written: list[tuple[str, int, int | None]] = field(default_factory=list)
    gpu_hours: float | None = None
    notes: list[str] = field(default_factory=list)


def make_plan(
    pipeline: str,
    parameters: PreparePipeline,
    *,
    gpu: str | None = None,
    tokens_per_second: float | None = None,
    read_dataset: bool = True,
) -> Plan:
    """Look at a pipeline run without starting it.

    Args:
        pipeline: its name.
        parameters: its checked parameters.
        gpu: name or memory of the GPU it is to run on; None: this machine.
        tokens_per_second: ``perf/tokens_per_s`` of an earlier run like it, for GPU-hours.
        read_dataset: render the prompts, if the dataset can be made here; else they are taken to be as long as allowed.

    Raises:
        ConfigError: a GPU that is not known, or one for a run on a CPU; a pipeline that uses neither.
    """
    if not isinstance(parameters, EvaluatePipeline):
        raise ConfigError(f"{pipeline} neither trains nor samples: there is nothing to plan. Plan what comes after it.")
    arms, num_seeds, train = _runs(parameters)
    plan = Plan(pipeline, _device(gpu, (train or parameters.evaluation).device))
    plan.num_runs = len(arms) * num_seeds
    findings = plan.findings
    source = parameters.dataset.source
    countdown = source if isinstance(source, CountdownSource) else None
    num_heldout = countdown.num_eval if countdown else None
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = _look_at_checkpoint(parameters, Path(temporary) / "checkpoint", plan)
        splits = _problems(parameters, Path(temporary) / "dataset", plan) if read_dataset else None
        if splits is not None:
            num_heldout = len(splits[1])
        elif not read_dataset:
            plan.notes.append("the dataset was not read: prompts are taken to have max_prompt_tokens")
        num_problems = len(splits[0]) if splits else countdown.num_train if countdown else None
        if train is not None:
            check_settings(arms, train, findings, num_problems=num_problems, num_heldout=num_heldout)
        prompts = {EVALUATION: Prompts(), "train": Prompts()}
        if splits is not None and checkpoint is not None and plan.model is not None:
            with findings.collected():
                prompts = measure_prompts(
                    checkpoint, plan.model, parameters.evaluation, train, problems=splits[0], heldout=splits[1]
                )
    device = plan.device
    if plan.model is not None:
        prompt_tokens = prompts[EVALUATION].longest
        if prompt_tokens is None and train is not None:
            prompt_tokens = train.max_prompt_tokens
        if prompt_tokens is not None:
            _check_evaluation(plan, parameters.evaluation, prompt_tokens)
        if train is not None:
            check_adapters(plan.model, train, findings)
            longest = prompts["train"].longest
            check_memory(
                arms, train, plan.model, findings, device.num_bytes, on_gpu=device.is_gpu, prompt_tokens=longest
            )
    if num_heldout is not None:
        measured = min(num_heldout, parameters.evaluation.max_problems or num_heldout)
        plan.evaluation_completions = measured * parameters.evaluation.num_samples * (plan.num_runs + 1)
    if train is not None:
        plan.training = training_work(train, prompts["train"].mean or train.max_prompt_tokens)
        plan.written = _written(train, plan.model, parameters.checkpoint.uri)
        for arm in arms:
            sampling = method_of(arm.algorithm, train).dynamic_sampling
            if sampling is not None:
                plan.notes.append(
                    f"arm {arm.name}: dynamic sampling may sample up to {1 + sampling.max_rounds} times as much"
                )
        if tokens_per_second is not None:
            seconds = plan.training["tokens"] * plan.num_runs / tokens_per_second
            plan.gpu_hours = seconds / 3600 * train.distributed.num_processes
    return plan


def training_work(train: TrainConfig, prompt_tokens: float) -> dict[str, int]:
    """Count the work of one training run, if no completion ends before its limit.

    Args:
        train: the settings.
        prompt_tokens: mean length of a prompt.

    Returns:
        rollouts_per_step, tokens_per_step (prompts and completions), rollouts, tokens; measured_completions on held-out
        problems.
    """
    per_step = train.rows_per_step
    steps_per_batch = train.updates_per_rollout * train.num_iterations
    rollouts = math.ceil(train.steps / steps_per_batch) * per_step * train.updates_per_rollout
    tokens = prompt_tokens + train.max_completion_tokens
    measured = 0
    if (heldout := train.heldout) is not None:
        times = 1 + math.ceil(train.steps / heldout.every)  # the start, every n-th step and the last
        measured = times * heldout.num_problems * heldout.num_samples
    return {
        "rollouts_per_step": per_step,
        "tokens_per_step": round(per_step * tokens),
        "rollouts": rollouts,
        "tokens": round(rollouts * tokens),
        "measured_completions": measured,
    }


def as_json(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON values."""
    memory = {
        name: {
            "parts": estimate.parts,
            "generating": estimate.generating,
            "updating": estimate.updating,
            "stepping": estimate.stepping,
            "peak": estimate.peak,
        }
        for name, estimate in plan.findings.estimates.items()
    }
    if plan.evaluation:
        memory[EVALUATION] = {"parts": plan.evaluation, "peak": sum(plan.evaluation.values())}
    model = plan.model
    return {
        "pipeline": plan.pipeline,
        "checkpoint": None
        if model is None
        else {
            "architecture": model.name,
            "num_parameters": model.num_parameters,
            "context_length": model.context_length,
        },
        "device": {"name": plan.device.name, "bytes": plan.device.num_bytes},
        "memory_bytes": memory,
        "num_runs": plan.num_runs,
        "training": plan.training,
        "evaluation_completions": plan.evaluation_completions,
        "written": [{"what": what, "count": count, "bytes": size} for what, count, size in plan.written],
        "gpu_hours": plan.gpu_hours,
        "notes": plan.notes,
        "warnings": plan.findings.warnings,
        "errors": [str(error) for error in plan.findings.errors],
    }


def _runs(parameters: EvaluatePipeline) -> tuple[Sequence[Arm], int, TrainConfig | None]:
    if isinstance(parameters, ComparePipeline):
        return parameters.arms, len(parameters.seeds), parameters.train
    if isinstance(parameters, TrainAndEvaluatePipeline):
        return [parameters.arm], 1, parameters.train
    return [], 0, None


def _device(gpu: str | None, device: Literal["auto", "cpu", "cuda"]) -> Device:
    if gpu is not None:
        if device == "cpu":
            raise ConfigError(f"--gpu {gpu}, but the device is set to cpu. Leave --gpu out, or set it to auto.")
        return Device(gpu, gpu_bytes(gpu), is_gpu=True)
    if device != "cpu" and Path("/proc/driver/nvidia/gpus").is_dir():
        import torch

        if torch.cuda.is_available():
            found = torch.cuda.get_device_properties(0)
            return Device(found.name, found.total_memory, is_gpu=True)
    if device == "cuda":
        return Device("a GPU, of which nothing is known here; give --gpu", None, is_gpu=True)
    return Device("free memory of this machine", host_bytes(), is_gpu=False)


def _look_at_checkpoint(parameters: EvaluatePipeline, directory: Path, plan: Plan) -> Path | None:
    uri = parameters.checkpoint.uri
    try:
        checkpoint = peek(uri, directory)
    except StorageError as error:
        if uri.startswith("s3://"):  # what submits a run need not be able to read its bucket
            plan.notes.append(f"only settings were checked, as the checkpoint could not be read: {error}")
        else:
            plan.findings.error(f"checkpoint.uri: {error}", StorageError)
        return None
    with plan.findings.collected():
        plan.model = read_architecture(checkpoint)
    return checkpoint


def _problems(parameters: EvaluatePipeline, directory: Path, plan: Plan) -> tuple[list[Problem], list[Problem]] | None:
    source = parameters.dataset.source
    if isinstance(source, FileSource) and any(
        uri is not None and uri.startswith("s3://") for uri in (source.train_uri, source.eval_uri)
    ):
        plan.notes.append("the dataset lies in S3 and was not read: prompts are taken to have max_prompt_tokens")
        return None
    from progrpo.data.dataset import load_problems
    from progrpo.data.prepare import prepare_dataset

    with plan.findings.collected():
        prepare_dataset(parameters.dataset, directory)
        return load_problems(directory, "train"), load_problems(directory, "eval")
    return None


def _check_evaluation(plan: Plan, evaluation: EvaluateConfig, prompt_tokens: int) -> None:
    assert plan.model is not None  # noqa: S101
    device = plan.device
    plan.evaluation = estimate_evaluation(
        plan.model,
        evaluation,
        on_gpu=device.is_gpu,
        prompt_tokens=prompt_tokens,
        device_bytes=device.num_bytes,
    )
    if device.num_bytes is not None and (peak := sum(plan.evaluation.values())) > device.num_bytes:
        plan.findings.warn(
            f"evaluation: about {readable_size(peak)} are needed, and the device has "
            f"{readable_size(device.num_bytes)}. Lower evaluation.batch_size (now {evaluation.batch_size}) or "
            f"evaluation.max_completion_tokens"
        )


def _written(train: TrainConfig, model: Architecture | None, uri: str) -> list[tuple[str, int, int | None]]:
    trained, adapters = None, None
    if model is not None:
        adapters = num_adapter_parameters(model, train)
        trained = adapters if train.lora else model.num_parameters
    written: list[tuple[str, int, int | None]] = [
        ("checkpoint/, float32", 1, FLOAT32 * model.num_parameters if model else None)
    ]
    if train.lora is not None:
        written.append(("adapter/", 1, FLOAT32 * adapters if adapters else None))
    if train.log_rollouts_every:
        every = train.log_rollouts_every
        files = train.steps // every + (1 if every > 1 else 0)
        written.append(
            (f"rollouts/*.parquet, {train.rows_per_step * train.updates_per_rollout} rows each", files, None)
        )
    if (kept := train.checkpointing) is not None:
        points = min(kept.keep_last + (1 if kept.keep_best else 0), (train.steps - 1) // kept.every)
        size = None if trained is None else (FLOAT32 + OPTIMIZER_BYTES[train.optimizer]) * trained
        written.append((f"resume points in {kept.uri}, kept at a time", points, size))
    return written
