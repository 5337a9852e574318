"""Bring a checkpoint in: from a Hugging Face directory or a GGUF file to a checkpoint artifact."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progrpo.checkpoints.preflight import checkpoint_metadata
from progrpo.errors import CheckpointError
from progrpo.manifest import Manifest, write_manifest

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
        CheckpointError: ``output`` holds files already.
    """
    with finished_directory(output) as directory:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return write_manifest(
            directory, "checkpoint", inputs=inputs, metadata=checkpoint_metadata(directory, source=source)
        )


@contextmanager
def finished_directory(output: Path) -> Iterator[Path]:
    """Give a temporary directory beside ``output`` that takes its place if, and only if, the block ends well.

    Raises:
        CheckpointError: ``output`` holds files already.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(f"{output} exists and is not empty. Give another output, or remove it.")
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        temporary.replace(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
