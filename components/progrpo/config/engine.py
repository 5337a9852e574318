"""Settings of the engines that sample completions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from progrpo.settings import Config


class TransformersEngineConfig(Config):
    """Sample with transformers: anywhere torch runs, the engine of choice on a CPU."""

    type: Literal["transformers"] = "transformers"
    batch_size: int | None = Field(
        None, ge=1, description="completions generated at a time; absent: all of a batch of rollouts or measurement"
    )


class VLLMEngineConfig(Config):
    """Sample with vLLM: the engine of choice on a GPU."""

    type: Literal["vllm"] = "vllm"
    mode: Literal["colocate", "server"] = Field("colocate", description="on the training GPU, or a server of its own")
    sleep: bool = Field(True, description="colocate: give the GPU's memory back while training")
    memory_frac: float = Field(0.3, gt=0, lt=1, description="colocate: share of the GPU's memory; TRL")
    tensor_parallel: int = Field(1, ge=1, description="colocate: GPUs that hold one copy")
    server_url: str | None = Field(None, min_length=1, description="server: where it listens, such as http://vllm:8000")
    correction: Literal["sequence_mask", "sequence_truncate", "token_mask", "token_truncate", "none"] = Field(
        "sequence_mask",
        description="importance sampling against the mismatch between vLLM's and the trainer's probabilities; TRL",
    )
    max_ratio: float = Field(3.0, gt=1, description="bound of the correction's ratio; TRL")

    @model_validator(mode="after")
    def _is_complete(self) -> VLLMEngineConfig:
        if (self.mode == "server") != (self.server_url is not None):
            raise ValueError("server_url goes with mode server, and mode server needs it")
        return self


Engine = Annotated[TransformersEngineConfig | VLLMEngineConfig, Field(discriminator="type")]
