"""Load what evaluation samples and scores with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from progrpo.checkpoints.loading import eos_token_ids, load_model
from progrpo.config import EvaluateConfig, VLLMEngineConfig
from progrpo.generation.engine import Engine

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_engine(
    config: EvaluateConfig, checkpoint: Path, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> tuple[Engine, PreTrainedModel]:
    """Return the engine that samples from a checkpoint and the model that scores its completions.

    Raises:
        CheckpointError: weights that cannot be loaded or are not finite, or no EOS token.
        ConfigError: an engine that is not installed, does not start, or cannot be used here.
    """
    import torch

    model = load_model(checkpoint, getattr(torch, config.dtype)).eval().to(device)
    eos = eos_token_ids(checkpoint, model, tokenizer)
    if isinstance(config.engine, VLLMEngineConfig):
        from progrpo.generation.vllm_engine import VLLMEngine

        return VLLMEngine(checkpoint, config.engine, dtype=config.dtype, eos_token_ids=eos), model
    from progrpo.generation.transformers_engine import TransformersEngine

    pad = eos[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return TransformersEngine(model, eos_token_ids=eos, pad_token_id=pad, batch_size=config.batch_size), model
