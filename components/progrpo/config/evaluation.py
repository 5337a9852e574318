"""Settings of evaluate and compare."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from progrpo.config.engine import Engine, TransformersEngineConfig
from progrpo.config.gate import GateConfig
from progrpo.settings import ARM_NAME, MAX_SEED, MIN_TEMPERATURE, Config


class AbilityConfig(Config):
    """What the general-ability guard asks lm-eval for, before training and after."""

    tasks: tuple[str, ...] = Field(
        ("arc_easy", "hellaswag", "winogrande"), min_length=1, description="tasks or groups of lm-eval; ours"
    )
    include_path: str | None = Field(None, min_length=1, description="directory with task YAML of your own")
    num_fewshot: int | None = Field(None, ge=0, description="examples in the prompt; absent: the task's own")
    limit: int | None = Field(None, ge=1, description="documents of each task, at most")
    chat_template: bool = Field(True, description="ask in the checkpoint's chat template")
    batch_size: int = Field(16, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"


class EvaluateConfig(Config):
    """How a checkpoint is measured on the held-out problems."""

    num_samples: int = Field(32, ge=1, le=100_000, description="completions a problem, n; paper: 32 math, 16 code")
    ks: tuple[int, ...] | None = Field(
        None, min_length=1, description="k of Pass@k; absent: 1, 2, 4, ... up to num_samples"
    )
    temperature: float = Field(0.6, ge=MIN_TEMPERATURE, le=10, description="FlowRL")
    top_p: float = Field(0.95, gt=0, le=1, description="FlowRL")
    top_k: int = Field(0, ge=0, description="draw from this many likeliest tokens; 0: all; FlowRL")
    max_completion_tokens: int = Field(8192, ge=1)
    max_problems: int | None = Field(None, ge=1, description="use the first n held-out problems")
    benchmark: str | None = Field(
        None, max_length=200, description="name and edition of what the problems are, kept in the protocol record"
    )
    batch_size: int = Field(
        256, ge=1, description="completions generated at a time; what is done of them survives a kill"
    )
    engine: Engine = TransformersEngineConfig()
    num_processes: int = Field(1, ge=1, le=1024, description="that sample, each with a GPU of its own if there are any")
    score_temperature: float = Field(
        1.0, ge=MIN_TEMPERATURE, le=10, description="of entropy, sampled_nll and answer confidence"
    )
    seed: int = Field(0, ge=0, le=MAX_SEED)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    num_threads: int = Field(1, ge=1, le=1024)
    ability: AbilityConfig | None = Field(
        None, description="also measure general ability with lm-eval, the extra progrpo[ability]; absent: not"
    )

    @model_validator(mode="after")
    def _ks_fit(self) -> EvaluateConfig:
        for k in self.ks or ():
            if not 1 <= k <= self.num_samples:
                raise ValueError(
                    f"k = {k} is not between 1 and num_samples = {self.num_samples}: Pass@k needs n >= k "
                    f"completions a problem. Raise num_samples or leave k = {k} out of ks"
                )
        return self

    @model_validator(mode="after")
    def _engine_fits(self) -> EvaluateConfig:
        if isinstance(self.engine, TransformersEngineConfig) and self.engine.batch_size is not None:
            raise ValueError("engine.batch_size is of training; set batch_size of the evaluation instead")
        return self

    @property
    def pass_at_ks(self) -> tuple[int, ...]:
        """The k that are reported: ``ks`` sorted, else 1, 2, 4, ... and n itself."""
        if self.ks is not None:
            return tuple(sorted(set(self.ks)))
        powers = {1 << i for i in range(self.num_samples.bit_length()) if 1 << i <= self.num_samples}
        return tuple(sorted(powers | {self.num_samples}))


class CompareConfig(Config):
    """How arms are compared."""

    baseline: str = Field("grpo", pattern=ARM_NAME, description="arm the others are subtracted from, or 'start'")
    num_resamples: int = Field(2000, ge=100, le=1_000_000, description="bootstrap resamples; ours")
    level: float = Field(0.95, gt=0.5, lt=1, description="of the intervals")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="of the bootstrap")
    gate: GateConfig | None = Field(None, description="rules for promoting an arm; absent: nothing is promoted")
