"""Find everything that cannot work before a GPU is held: all problems at once, and warnings beside them.

What is known decides what is checked. From the settings alone :func:`check_settings`, without torch, in the first step
of a pipeline; with a checkpoint's files its adapters and its memory; with tokenizer and dataset the lengths; on the
machine itself its GPUs and packages. :func:`preflight` does all of it.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from progrpo.checkpoints.architecture import Architecture, matches, read_architecture
from progrpo.config import Arm, TrainConfig, VLLMEngineConfig, method_of
from progrpo.errors import CheckpointError, ConfigError, DataError, ProGRPOError
from progrpo.training.advice import Run, advise, readable_size
from progrpo.training.devices import device_bytes as memory_of
from progrpo.training.estimate import MemoryEstimate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from progrpo.data.dataset import Problem

logger = logging.getLogger(__name__)


@dataclass
class Findings:
    """What a check found.

    Attributes:
        errors: what cannot work.
        warnings: what works, but hardly as meant.
        estimates: memory of each arm, by name, where the checkpoint is known.
    """

    errors: list[ProGRPOError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    estimates: dict[str, MemoryEstimate] = field(default_factory=dict)

    def error(self, text: str, kind: type[ProGRPOError] = ConfigError) -> None:
        """Take note of an error, once: arms share most settings."""
        if text not in map(str, self.errors):
            self.errors.append(kind(text))

    def warn(self, text: str) -> None:
        """Take note of a warning, once."""
        if text not in self.warnings:
            self.warnings.append(text)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Take note of what the block raises for the user, and go on behind it."""
        try:
            yield
        except ProGRPOError as error:
            self.error(str(error), type(error))

    def log_and_raise(self) -> None:
        """Log the warnings, and raise the errors as one of the first one's type, each on a line.

        Raises:
            ConfigError, DataError, CheckpointError: what was found.
        """
        for text in self.warnings:
            logger.warning("%s", text)
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            lines = [f"{len(self.errors)} problems:", *map(str, self.errors)]
            raise type(self.errors[0])("\n  ".join(lines))


def preflight(
    arms: Sequence[Arm],
    train: TrainConfig,
    *,
    dataset: Path,
    checkpoint: Path,
    device_bytes: int | None = None,
) -> Findings:
    """Check training runs on the machine that is to train them.

    Args:
        arms: what is trained.
        train: how.
        dataset: dataset artifact.
        checkpoint: checkpoint artifact to start from.
        device_bytes: memory of a rank's device; None: as found here.

    Returns:
        Everything that was found; nothing is raised.
    """
    from progrpo.checkpoints.loading import load_tokenizer
    from progrpo.data.dataset import load_problems
    from progrpo.environment import resolve_device

    findings = Findings()
    problems: list[Problem] = []
    heldout: list[Problem] = []
    with findings.collected():
        problems = load_problems(dataset, "train")
        heldout = load_problems(dataset, "eval") if train.heldout else []
        check_settings(arms, train, findings, num_problems=len(problems), num_heldout=len(heldout))
    check_machine(train, findings)
    longest = None
    with findings.collected():
        model = read_architecture(checkpoint)
        check_adapters(model, train, findings)
        with findings.collected():
            tokenizer = load_tokenizer(checkpoint)
            used = [*problems, *heldout[: train.heldout.num_problems if train.heldout else 0]]
            if used:
                longest = max(map(len, check_prompts(checkpoint, tokenizer, model, train, used)))
        with findings.collected():
            device = resolve_device(train.device)
            available = device_bytes or memory_of(device)
            check_memory(arms, train, model, findings, available, on_gpu=device.type == "cuda", prompt_tokens=longest)
    return findings


def check_settings(
    arms: Sequence[Arm],
    train: TrainConfig,
    findings: Findings,
    *,
    num_problems: int | None = None,
    num_heldout: int | None = None,
) -> None:
    """Check settings against each other.

    Args:
        arms: what is trained.
        train: how.
        findings: gets what is found.
        num_problems: of the training split; None if that is not known yet.
        num_heldout: held-out problems; None if that is not known yet.
    """
    for arm in arms:
        _check_arm(arm, train, findings)
    if num_problems is not None and num_problems < train.prompts_per_step:
        findings.error(
            f"the training split holds {num_problems} problems, but train.prompts_per_step is "
            f"{train.prompts_per_step}. Lower it, or give more problems.",
            DataError,
        )
    if train.heldout is not None and num_heldout is not None and num_heldout < train.heldout.num_problems:
        findings.error(
            f"train.heldout.num_problems is {train.heldout.num_problems}, but the dataset has {num_heldout} "
            f"held-out problems. Lower it, or hold out more.",
            DataError,
        )
    if train.device == "cpu":
        if isinstance(train.engine, VLLMEngineConfig):
            findings.error(
                "train.engine is vllm, which needs a GPU, but train.device is cpu. Use engine transformers.",
            )
        if train.optimizer == "adamw_8bit":
            findings.error("train.optimizer is adamw_8bit, which needs a GPU, but train.device is cpu. Use adamw.")
    ranks = train.distributed.num_processes
    if isinstance(train.engine, VLLMEngineConfig) and ranks % train.engine.tensor_parallel:
        findings.error(
            f"train.engine.tensor_parallel {train.engine.tensor_parallel} does not divide the {ranks} processes of "
            f"train.distributed.num_processes, which share vLLM's copies.",
        )
    if train.lora is not None and any(matches(t, "lm_head") for t in train.lora.target_modules or ()):
        findings.error(
            "train.lora.target_modules names lm_head, which cannot have an adapter: log-probabilities are computed "
            "from its weight directly. Leave it out.",
        )
    if train.optimizer == "adamw_8bit" and train.distributed.strategy == "fsdp2" and ranks > 1:
        findings.error(
            "train.optimizer is adamw_8bit, whose state cannot be sharded by fsdp2. Use adamw, or strategy ddp.",
        )
    if train.distributed.strategy == "fsdp2" and ranks == 1:
        findings.warn("train.distributed.strategy is fsdp2, but with one process nothing is sharded")
    if train.checkpointing is not None and train.checkpointing.every >= train.steps:
        findings.warn(
            f"train.checkpointing.every is {train.checkpointing.every}, but training has {train.steps} steps: a killed "
            f"run would start again"
        )
    if train.warmup_steps >= train.steps:
        findings.warn(
            f"train.warmup_steps is {train.warmup_steps}, but training has {train.steps} steps: the learning rate "
            f"never reaches {train.learning_rate:g}"
        )


def _check_arm(arm: Arm, train: TrainConfig, findings: Findings) -> None:
    method = method_of(arm.algorithm, train)
    for text in arm.algorithm.errors(method, group_size=train.group_size, micro_batch_size=train.micro_batch_size):
        findings.error(f"arm {arm.name}: {text}")
    if train.updates_per_rollout == 1 and train.num_iterations == 1:
        same = arm.algorithm.idle_on_policy
        if same is None and method.loss.ratio == "sequence":
            same = "a completion's ratio has the gradient of its tokens' mean"
        if same is not None:
            findings.warn(
                f"arm {arm.name}: with one update a batch of rollouts every ratio is 1, so {same}, and it trains as "
                f"grpo with the same loss does. For a difference raise train.updates_per_rollout or num_iterations"
            )


def check_machine(train: TrainConfig, findings: Findings) -> None:
    """Check GPUs and packages of this machine, which is to train; imports torch."""
    import torch

    from progrpo.environment import resolve_device

    try:
        on_gpu = resolve_device(train.device).type == "cuda"
    except ConfigError as error:
        findings.error(str(error))
        return
    ranks, visible = train.distributed.num_processes, torch.cuda.device_count()
    if on_gpu and ranks > visible:
        findings.error(
            f"train.distributed.num_processes is {ranks}, one a GPU, but {visible} GPUs are visible here. Lower it, "
            f"or ask for more.",
        )
    if on_gpu and ranks == 1 and visible > 1:
        findings.error(
            f"{visible} GPUs are visible, but training uses one. Set CUDA_VISIBLE_DEVICES to it, or "
            f"train.distributed.num_processes to {visible}.",
        )
    packages = {}
    if train.device != "cpu":  # for that, the settings are refused already
        packages["vllm"] = isinstance(train.engine, VLLMEngineConfig) and "train.engine is vllm"
        packages["bitsandbytes"] = train.optimizer == "adamw_8bit" and "train.optimizer is adamw_8bit"
    packages["peft"] = train.lora is not None and "train.lora is set"
    for package, reason in packages.items():
        if not reason:
            continue
        if package != "peft" and not on_gpu:
            findings.error(f"{reason}, which needs a GPU, but torch sees none here. Run on a GPU node.")
        elif importlib.util.find_spec(package) is None:
            findings.error(f"{reason}, but the package {package} is not installed: pip install {package}")


def check_adapters(model: Architecture, train: TrainConfig, findings: Findings) -> None:
    """Check that every module named for an adapter exists; peft passes over a name that matches nothing."""
    if train.lora is None:
        return
    for target in train.lora.target_modules or ():
        if not model.adapted([target]) and not matches(target, "lm_head"):
            names = sorted({linear.name.rsplit(".", 1)[-1] for linear in model.linears})
            findings.error(
                f"train.lora.target_modules: {target!r} matches no linear layer of this {model.name}. There are: "
                f"{', '.join(names)}.",
            )


def check_memory(
    arms: Sequence[Arm],
    train: TrainConfig,
    model: Architecture,
    findings: Findings,
    device_bytes: int | None,
    *,
    on_gpu: bool,
    prompt_tokens: int | None = None,
) -> None:
    """Estimate each arm's memory and compare it with the device's.

    Args:
        arms: what is trained.
        train: how.
        model: from what.
        findings: gets the estimates; an error if weights, gradients and optimizer alone do not fit, a warning if the
            peak does not.
        device_bytes: of a GPU, or of the machine that all ranks share; None: not known, nothing is compared.
        on_gpu: whether the device is one.
        prompt_tokens: of the longest prompt; None: ``max_prompt_tokens``.
    """
    if device_bytes is not None and not on_gpu:
        device_bytes //= train.distributed.num_processes  # the ranks share the machine
    for arm in arms:
        run = Run(model, train, arm, on_gpu, prompt_tokens, device_bytes or 0)
        findings.estimates[arm.name] = estimate = run.estimate()
        if device_bytes is None:
            continue
        _check_vllm_share(model, train, findings, device_bytes)
        if estimate.certain > device_bytes:
            findings.error(
                f"arm {arm.name}: weights, gradients and optimizer alone take {readable_size(estimate.certain)} on "
                f"each rank, and its device has {readable_size(device_bytes)}. {_advice(run)}",
            )
        elif estimate.peak > device_bytes:
            part, size = next(iter(estimate.parts.items()))
            findings.warn(
                f"arm {arm.name}: about {readable_size(estimate.peak)} are needed on each rank, most for {part} "
                f"({readable_size(size)}), and its device has {readable_size(device_bytes)}. {_advice(run)}"
            )


def _advice(run: Run) -> str:
    return "Any one of these: " + "; ".join(lines) if len(lines := advise(run)) > 1 else "".join(lines)


def _check_vllm_share(model: Architecture, train: TrainConfig, findings: Findings, device_bytes: int) -> None:
    engine = train.engine
    if not isinstance(engine, VLLMEngineConfig) or engine.mode != "colocate":
        return
    share, weights = engine.memory_frac * device_bytes, 2 * model.num_parameters / engine.tensor_parallel
    if weights > share:
        findings.error(
            f"train.engine.memory_frac {engine.memory_frac:g} gives vLLM {readable_size(int(share))} of each device, "
            f"but its copy of the weights alone takes {readable_size(int(weights))} in 16 bits. Raise it above "
            f"{weights / device_bytes:.2f}, or tensor_parallel.",
        )


def check_prompts(
    checkpoint: Path,
    tokenizer: PreTrainedTokenizerBase,
    model: Architecture,
    train: TrainConfig,
    problems: Sequence[Problem],
) -> list[list[int]]:
    """Render the prompts; check their lengths and token ids, and that a completion can end.

    Raises:
        DataError, ConfigError, CheckpointError: what does not fit.
    """
    from progrpo.checkpoints.loading import stored_eos_token_ids

    prompts = check_lengths(checkpoint, tokenizer, train, problems)
    ends = stored_eos_token_ids(checkpoint, tokenizer)
    largest = max(*(max(ids, default=0) for ids in prompts), *ends, tokenizer.pad_token_id or 0)
    if largest >= model.vocab_size:
        raise CheckpointError(
            f"{checkpoint}: its tokenizer gives token {largest}, but the embedding has {model.vocab_size} rows. "
            f"Tokenizer and weights are of different models: save both from one."
        )
    return prompts


def check_lengths(
    checkpoint: Path, tokenizer: PreTrainedTokenizerBase, config: TrainConfig, problems: Sequence[Problem]
) -> list[list[int]]:
    """Render the prompts; refuse those too long for the limit or, with a completion, for the model's context.

    Raises:
        DataError, ConfigError: naming the longest problem and what would fit.
    """
    from progrpo.checkpoints.loading import check_room, context_length, render_prompts

    prompts = render_prompts(tokenizer, problems)
    length, problem = max((len(ids), problem.id) for ids, problem in zip(prompts, problems, strict=True))
    if length > config.max_prompt_tokens:
        raise DataError(
            f"problem {problem!r} has {length} prompt tokens, train.max_prompt_tokens is {config.max_prompt_tokens}. "
            f"Raise it or drop the problem."
        )
    check_room(problems, prompts, config.max_completion_tokens, context_length(checkpoint))
    return prompts
