"""Bring a checkpoint in: from a Hugging Face directory or a GGUF file to a checkpoint artifact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from progrpo.checkpoints.preflight import checkpoint_metadata
from progrpo.manifest import Manifest, write_manifest
from progrpo.storage import finished_directory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def write_checkpoint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output: Path,
    *,
    source: str,
    inputs: Mapping[str, str] | None = None,
) -> Manifest:
    """Save a model and its tokenizer as a checkpoint artifact.

    Args:
        model: the weights, saved as safetensors in the dtype they have.
        tokenizer: saved beside them.
        output: directory to make; may exist if empty.
        source: what made this checkpoint.
        inputs: digests of the artifacts it was made from, by name.

    Raises:
        StorageError: ``output`` holds files already.
    """
    with finished_directory(output) as directory:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return write_manifest(
            directory, "checkpoint", inputs=inputs, metadata=checkpoint_metadata(directory, source=source)
        )
