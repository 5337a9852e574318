"""Every setting of every step: closed, frozen pydantic models, readable without torch.

The source of each default is named: *paper* (arXiv:2602.05281, as far as docs/paper.md could recover it), *FlowRL*
(the paper's public proxy) or *ours*. An unknown key is an error that lists the keys allowed there; see
:func:`parse`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from progrpo.errors import ConfigError

ARM_NAME = r"^[a-z][a-z0-9_.-]{0,39}$"
START = "start"
"""Stands for the checkpoint before training where otherwise an arm is named."""
MIN_TEMPERATURE = 0.01  # below it, logits / temperature can overflow
MAX_SEED = 2**32 - 1  # of numpy; KFP, whose numbers are doubles, would round one above 2**53


class Config(BaseModel):
    """Base of all settings: unknown keys are refused, values cannot change after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


# --- data ------------------------------------------------------------------------------------------------------------


class CountdownSource(Config):
    """Generate the phrased three-number task: reach a target with three numbers, each used once."""

    type: Literal["countdown"] = "countdown"
    num_train: int = Field(2048, ge=1, le=100_000, description="training problems; ours")
    num_eval: int = Field(256, ge=1, le=100_000, description="held-out problems; ours")
    seed: int = Field(0, ge=0, le=MAX_SEED)


class FileSource(Config):
    """Read problems from a JSONL, parquet or CSV file, local or ``s3://``."""

    type: Literal["file"] = "file"
    train_uri: str = Field(min_length=1, description="file with the training problems")
    eval_uri: str | None = Field(None, description="file with the held-out problems; absent: split off the first file")
    eval_frac: float = Field(0.1, gt=0, lt=1, description="fraction held out if eval_uri is absent; ours")
    prompt_column: str = Field("prompt", min_length=1, description="a text, or a list of {role, content} messages")
    answer_column: str = Field("answer", min_length=1)
    task: Literal["math", "exact", "countdown"] = Field(
        "math", description="how an answer is verified; see progrpo.rewards"
    )
    max_rows: int | None = Field(None, ge=2, description="use at most this many rows of each file")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="of the split")


class DatasetConfig(Config):
    """What prepare-dataset makes."""

    source: Annotated[CountdownSource | FileSource, Field(discriminator="type")] = CountdownSource()
    system_prompt: str | None = Field(None, description="put before every prompt as a system message")
    max_dropped_frac: float = Field(0.05, ge=0, le=1, description="more unusable rows than this is an error; ours")


class CheckpointConfig(Config):
    """What import-checkpoint brings in."""

    uri: str = Field("embedded://countdown-sft", min_length=1, description="a directory, s3:// or embedded://NAME")
    dtype: Literal["keep", "float32", "bfloat16"] = Field("keep", description="of the stored weights")
    require_chat_template: bool = Field(True, description="prompts are messages, so the tokenizer needs a template")


# --- algorithms ------------------------------------------------------------------------------------------------------


class GRPO(Config):
    """The group-relative advantage alone (DeepSeekMath, arXiv:2402.03300)."""

    type: Literal["grpo"] = "grpo"


class ProGRPO(Config):
    """GRPO with the Advantage Re-weighting Mechanism: ``A' = A + alpha (c(q) - c(o|q))`` (arXiv:2602.05281)."""

    type: Literal["progrpo"] = "progrpo"
    alpha: float = Field(0.3, ge=0, le=10, description="weight of the confidence term; ours, the paper's is not known")
    tail_frac: float = Field(0.2, gt=0, le=1, description="fraction of least likely tokens in c(o|q); paper")
    prompt_confidence: Literal["inverse_perplexity", "low_prob", "group_mean", "none"] = Field(
        "inverse_perplexity", description="reading of c(q); inverse_perplexity and low_prob inferred, group_mean ours"
    )
    apply_to: Literal["all", "correct"] = Field("all", description="completions that are re-weighted; all: paper")


Algorithm = Annotated[GRPO | ProGRPO, Field(discriminator="type")]


class Arm(Config):
    """One side of a comparison: an algorithm under a name."""

    name: str = Field(pattern=ARM_NAME, description="shown in tables and MLflow")
    algorithm: Algorithm

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, name: str) -> str:
        if name == START:
            raise ValueError(f"{START!r} names the checkpoint before training; call the arm something else")
        return name


# --- training --------------------------------------------------------------------------------------------------------


class LossConfig(Config):
    """The policy loss, the same for every arm."""

    aggregation: Literal["token_mean", "sequence_mean"] = Field("token_mean", description="paper: token mean")
    clip_low: float = Field(0.2, gt=0, lt=1, description="paper")
    clip_high: float = Field(0.28, gt=0, description="paper")
    kl_beta: float = Field(0.0, ge=0, description="weight of the KL to the start checkpoint; paper: none")
    normalize_std: bool = Field(True, description="divide the centred reward by the group's std; paper")


class TrainConfig(Config):
    """How a policy is trained, the same for every arm."""

    steps: int = Field(100, ge=1, le=1_000_000, description="optimizer steps")
    prompts_per_step: int = Field(16, ge=1, description="groups a step; ours (FlowRL: 512)")
    group_size: int = Field(16, ge=2, description="completions a prompt, G; ours (FlowRL: 8)")
    micro_batch_size: int | None = Field(None, ge=1, description="completions a forward; absent: the whole step")
    learning_rate: float = Field(1e-6, gt=0, le=1, description="FlowRL")
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    max_prompt_tokens: int = Field(2048, ge=1, description="longer prompts are refused before training; FlowRL")
    max_completion_tokens: int = Field(8192, ge=1, description="FlowRL")
    temperature: float = Field(
        1.0, ge=MIN_TEMPERATURE, le=10, description="of the rollouts, and of every log-probability"
    )
    loss: LossConfig = LossConfig()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of the arithmetic; weights stay float32")
    gradient_checkpointing: bool = False
    num_threads: int = Field(1, ge=1, le=1024, description="CPU threads; two one-thread workers beat one with two")
    log_rollouts_every: int = Field(10, ge=0, description="keep the rollouts of every n-th step; 0: none")

    @model_validator(mode="after")
    def _batches_fit(self) -> TrainConfig:
        rows = self.prompts_per_step * self.group_size
        if self.micro_batch_size is not None and rows % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} does not divide the {rows} completions of a step "
                f"(prompts_per_step {self.prompts_per_step} x group_size {self.group_size})"
            )
        return self


# --- evaluation and comparison ---------------------------------------------------------------------------------------


class EvaluateConfig(Config):
    """How a checkpoint is measured on the held-out problems."""

    num_samples: int = Field(32, ge=1, le=100_000, description="completions a problem, n; paper: 32 math, 16 code")
    ks: tuple[int, ...] | None = Field(
        None, min_length=1, description="k of Pass@k; absent: 1, 2, 4, ... up to num_samples"
    )
    temperature: float = Field(0.6, ge=MIN_TEMPERATURE, le=10, description="FlowRL")
    top_p: float = Field(0.95, gt=0, le=1, description="FlowRL")
    max_completion_tokens: int = Field(8192, ge=1)
    max_problems: int | None = Field(None, ge=1, description="use the first n held-out problems")
    batch_size: int = Field(256, ge=1, description="completions generated at a time")
    seed: int = Field(0, ge=0, le=MAX_SEED)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    num_threads: int = Field(1, ge=1, le=1024)

    @model_validator(mode="after")
    def _ks_fit(self) -> EvaluateConfig:
        for k in self.ks or ():
            if not 1 <= k <= self.num_samples:
                raise ValueError(
                    f"k = {k} is not between 1 and num_samples = {self.num_samples}: Pass@k needs n >= k "
                    f"completions a problem. Raise num_samples or leave k = {k} out of ks"
                )
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


# --- pipelines: the fields are the parameters of the KFP pipeline of the same name ------------------------------------


class EvaluatePipeline(Config):
    """Parameters of the ``evaluate`` pipeline."""

    checkpoint: CheckpointConfig = CheckpointConfig()
    dataset: DatasetConfig = DatasetConfig()
    evaluation: EvaluateConfig = EvaluateConfig()
    experiment: str = Field("progrpo", min_length=1, max_length=200, description="MLflow experiment")


class TrainAndEvaluatePipeline(EvaluatePipeline):
    """Parameters of the ``train-and-evaluate`` pipeline: one arm, one seed."""

    arm: Arm = Arm(name="progrpo", algorithm=ProGRPO())
    comparison: CompareConfig = CompareConfig(baseline=START)
    seed: int = Field(0, ge=0, le=MAX_SEED)
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _baseline_exists(self) -> TrainAndEvaluatePipeline:
        _check_baseline(self.comparison.baseline, (self.arm.name,))
        return self


class ComparePipeline(EvaluatePipeline):
    """Parameters of the ``compare`` pipeline: arms x seeds, the main job."""

    arms: tuple[Arm, ...] = Field(
        (Arm(name="grpo", algorithm=GRPO()), Arm(name="progrpo", algorithm=ProGRPO())), min_length=1
    )
    comparison: CompareConfig = CompareConfig()
    seeds: tuple[Annotated[int, Field(ge=0, le=MAX_SEED)], ...] = Field((0, 1), min_length=1)
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _unique(self) -> ComparePipeline:
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names):
            raise ValueError(f"arm names must differ, got {names}")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must differ, got {list(self.seeds)}")
        _check_baseline(self.comparison.baseline, tuple(names))
        return self


def _check_baseline(baseline: str, names: tuple[str, ...]) -> None:
    if baseline not in (*names, START):
        raise ValueError(f"comparison.baseline is {baseline!r}, allowed are {', '.join((*names, START))}")


PIPELINES: dict[str, type[EvaluatePipeline]] = {
    "compare": ComparePipeline,
    "evaluate": EvaluatePipeline,
    "train-and-evaluate": TrainAndEvaluatePipeline,
}

# --- reading ---------------------------------------------------------------------------------------------------------

Model = TypeVar("Model", bound=Config)

_UNION_TAGS = ("countdown", "file", "grpo", "progrpo")
"""pydantic puts the tag of a union into the path of an error; the user never wrote it there."""


def parse(model: type[Model], values: Mapping[str, Any], *, source: str) -> Model:
    """Check ``values`` against ``model``.

    KFP turns integers inside lists and structs into floats; an integral float is taken for the integer it was.

    Args:
        model: the settings expected.
        values: what was read from a file, a command line or a pipeline parameter.
        source: where it came from, named in the error.

    Raises:
        ConfigError: every offending key with what was given and what is allowed.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        # A tuple whose item failed also counts as too short: say only what the user got wrong.
        errors = [item for item in error.errors() if item["type"] != "too_short" or not item["input"]]
        lines = [_explain(model, item) for item in errors]
        raise ConfigError(f"{source}: " + ("\n  ".join(["", *lines]) if len(lines) > 1 else lines[0])) from None


def _explain(model: type[BaseModel], item: Mapping[str, Any]) -> str:
    path = [part for part in item["loc"] if part not in _UNION_TAGS]
    key = ".".join(map(str, path)) or "(the whole)"
    if item["type"] == "extra_forbidden":
        allowed = sorted(_fields_at(model, list(item["loc"][:-1])))
        close = difflib.get_close_matches(str(item["loc"][-1]), allowed, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return f"{key}: unknown key. Allowed here: {', '.join(allowed) or 'none'}.{hint}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"{key}: required, but not given."
    given = "" if item["type"] == "value_error" and isinstance(item["input"], dict) else f" Given: {item['input']!r}."
    return f"{key}: {message}.{given}"


def _fields_at(model: type[BaseModel], path: list[Any]) -> set[str]:
    """Names of the fields at ``path``, through unions (whose tag pydantic puts into the path), tuples and models."""
    annotation: Any = model
    for part in path:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            field = annotation.model_fields.get(str(part))
            annotation = field.annotation if field else None
        elif isinstance(part, int):
            annotation = next((arg for arg in getattr(annotation, "__args__", ()) if arg is not Ellipsis), None)
        else:  # the tag of a discriminated union
            options = getattr(getattr(annotation, "__origin__", annotation), "__args__", ())
            annotation = next((o for o in options if o.model_fields["type"].default == part), None)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return set(annotation.model_fields)
    return set()
