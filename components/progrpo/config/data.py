"""Settings of prepare-dataset and import-checkpoint."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from progrpo.settings import MAX_SEED, Config


def _known_task(value: Any) -> str:
    from progrpo.rewards import task_text  # verifiers bring along what starts processes

    return task_text(value)


class CountdownSource(Config):
    """Generate the phrased three-number task: reach a target with three numbers, each used once."""

    type: Literal["countdown"] = "countdown"
    num_train: int = Field(2048, ge=1, le=100_000, description="training problems; ours")
    num_eval: int = Field(256, ge=1, le=100_000, description="held-out problems; ours")
    seed: int = Field(0, ge=0, le=MAX_SEED)


class FileSource(Config):
    """Read problems from a JSONL, parquet or CSV file, local or ``s3://``."""

    type: Literal["file"] = "file"
    train_uri: str | None = Field(
        None, min_length=1, description="file with the training problems; absent: there are none, only evaluation"
    )
    eval_uri: str | None = Field(
        None, min_length=1, description="file with the held-out problems; absent: split off the first file"
    )
    eval_frac: float = Field(0.1, gt=0, lt=1, description="fraction held out if eval_uri is absent; ours")
    prompt_column: str = Field("prompt", min_length=1, description="a text, or a list of {role, content} messages")
    answer_column: str = Field("answer", min_length=1)
    task: Annotated[str, BeforeValidator(_known_task)] = Field(
        "math", description="how an answer is verified: a name that `progrpo tasks` lists, or its settings"
    )
    max_rows: int | None = Field(None, ge=2, description="use at most this many rows of each file")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="of the split")

    @model_validator(mode="after")
    def _names_a_file(self) -> FileSource:
        if self.train_uri is None and self.eval_uri is None:
            raise ValueError("neither train_uri nor eval_uri is given; name the file with the problems")
        return self


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
