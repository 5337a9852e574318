"""Settings of the train step, the same for every arm."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from progrpo.algorithms.base import DynamicSampling, LossConfig, OverlongPenalty
from progrpo.config.engine import Engine, TransformersEngineConfig
from progrpo.settings import MIN_TEMPERATURE, Config


class LoRAConfig(Config):
    """Train low-rank adapters (arXiv:2106.09685), which are merged into the weights at the end."""

    rank: int = Field(16, ge=1, le=1024, description="ours")
    alpha: float = Field(32, gt=0, description="the update is scaled by alpha / rank; ours")
    target_modules: tuple[str, ...] | None = Field(
        None, min_length=1, description="names of the layers that get one; absent: every linear layer but the LM head"
    )


class CheckpointingConfig(Config):
    """Where a run keeps what it needs to go on exactly where it was killed."""

    uri: str = Field(min_length=1, description="a directory or s3:// prefix that outlives the step")
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$",
        description="folder there; absent: the pipeline run's id. Give one to go on in another pipeline run",
    )
    every: int = Field(50, ge=1, description="steps between two checkpoints; ours")
    keep_last: int = Field(2, ge=1, le=100, description="newest checkpoints that are kept; ours")
    keep_best: bool = Field(False, description="also keep the one with the best held-out pass@1; needs heldout")


class HeldoutConfig(Config):
    """Measure the policy on held-out problems while it trains."""

    every: int = Field(50, ge=1, description="steps between two measurements; ours")
    num_problems: int = Field(64, ge=1, description="the first n held-out problems; ours")
    num_samples: int = Field(8, ge=1, le=1024, description="completions a problem, n; Pass@1 and Pass@n are measured")
    min_entropy_frac: float | None = Field(
        None, gt=0, lt=1, description="stop when entropy falls below this fraction of the start's; absent: never"
    )
    patience: int | None = Field(
        None, ge=1, description="stop after this many measurements without a better pass@1; absent: never"
    )


class DistributedConfig(Config):
    """How many processes train together, one a GPU: on this machine, or over all nodes of a TrainJob."""

    num_processes: int = Field(1, ge=1, le=1024, description="ranks; groups are never split over ranks")
    strategy: Literal["ddp", "fsdp2"] = Field(
        "ddp", description="a copy of the model on each rank, or its parameters sharded over them"
    )


class TrainConfig(Config):
    """How a policy is trained, the same for every arm."""

    steps: int = Field(100, ge=1, le=1_000_000, description="optimizer steps")
    prompts_per_step: int = Field(16, ge=1, description="groups a step; ours (FlowRL: 32 of 512 a batch of rollouts)")
    group_size: int = Field(16, ge=2, description="completions a prompt, G; ours (FlowRL: 8)")
    updates_per_rollout: int = Field(
        1,
        ge=1,
        le=1024,
        description="steps made of one batch of rollouts, each of its own prompts; ours (FlowRL: 16)",
    )
    num_iterations: int = Field(1, ge=1, le=64, description="passes over a batch of rollouts, mu; GRPO")
    micro_batch_size: int | None = Field(
        None, ge=1, description="completions a forward, on each rank; absent: all of a step"
    )
    learning_rate: float = Field(1e-6, gt=0, le=1, description="FlowRL")
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        "adamw", description="adamw_8bit keeps its state in 8 bits: a GPU and bitsandbytes"
    )
    max_prompt_tokens: int = Field(2048, ge=1, description="longer prompts are refused before training; FlowRL")
    max_completion_tokens: int = Field(8192, ge=1, description="FlowRL")
    temperature: float = Field(
        1.0, ge=MIN_TEMPERATURE, le=10, description="of the rollouts, and of every log-probability"
    )
    engine: Engine = TransformersEngineConfig()
    loss: LossConfig = LossConfig()
    dynamic_sampling: DynamicSampling | None = Field(None, description="absent: every group is trained on")
    overlong_penalty: OverlongPenalty | None = Field(None, description="absent: length does not count")
    lora: LoRAConfig | None = Field(None, description="absent: every weight is trained")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of the arithmetic; weights stay float32")
    gradient_checkpointing: bool = False
    distributed: DistributedConfig = DistributedConfig()
    num_threads: int = Field(1, ge=1, le=1024, description="CPU threads; two one-thread workers beat one with two")
    checkpointing: CheckpointingConfig | None = Field(None, description="absent: a killed run starts again")
    heldout: HeldoutConfig | None = Field(None, description="absent: measured by the evaluate step only")
    log_rollouts_every: int = Field(10, ge=0, description="keep the rollouts of every n-th step; 0: none")
    max_steps_without_signal: int = Field(
        50, ge=1, description="fail after this many steps in a row whose groups all have equal rewards; ours"
    )

    @property
    def rows_per_step(self) -> int:
        """Completions a step, over all ranks."""
        return self.prompts_per_step * self.group_size

    @property
    def rows_per_rank(self) -> int:
        """Completions a step on one rank."""
        return self.rows_per_step // self.distributed.num_processes

    @model_validator(mode="after")
    def _batches_fit(self) -> TrainConfig:
        ranks = self.distributed.num_processes
        if self.prompts_per_step % ranks:
            raise ValueError(
                f"prompts_per_step {self.prompts_per_step} does not divide among {ranks} processes "
                f"(distributed.num_processes): a group is never split over ranks"
            )
        if self.micro_batch_size is not None and self.rows_per_rank % self.micro_batch_size:
            each = f" on each of {ranks} ranks" if ranks > 1 else ""
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} does not divide the {self.rows_per_rank} completions of a "
                f"step{each} (prompts_per_step {self.prompts_per_step} x group_size {self.group_size})"
            )
        if self.checkpointing is not None and self.checkpointing.keep_best and self.heldout is None:
            raise ValueError("checkpointing.keep_best needs heldout, whose pass@1 tells which checkpoint is best")
        return self
