"""Bring a checkpoint in: from a Hugging Face directory or a GGUF file to a checkpoint artifact."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progrpo.checkpoints.casting import cast_file
from progrpo.checkpoints.preflight import (
    WEIGHTS_INDEX,
    checkpoint_metadata,
    first_line,
    load_tokenizer,
    read_config,
    read_json,
    read_tensors,
)
from progrpo.config import CheckpointConfig
from progrpo.errors import CheckpointError
from progrpo.manifest import MANIFEST_NAME, Manifest, read_manifest, write_manifest
from progrpo.metrics import Progress
from progrpo.storage import finished_directory, localize

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    WEIGHTS_INDEX,
)
"""Files taken over beside the weights. Nothing else is, above all no code."""


def import_checkpoint(config: CheckpointConfig, output: Path, *, progress: Progress | None = None) -> Manifest:
    """Copy a checkpoint into an artifact, after checking that it is whole, safe and usable.

    Args:
        config: where it lies, the dtype to store and whether a chat template is needed. A directory without
            safetensors but with one GGUF file, or that file itself, is converted: to float32 if dtype is ``keep``.
        output: directory to make; may exist if empty.
        progress: told when each of the two stages (fetch, check and copy) is done.

    Raises:
        CheckpointError: incomplete, unsafe or unusable.
        ManifestError: a checkpoint artifact that differs from its manifest.
        StorageError: not found or not reachable, or an output that is not empty.
    """
    with tempfile.TemporaryDirectory(prefix="progrpo-") as scratch:
        source = localize(config.uri, Path(scratch))
        if progress is not None:
            progress.update(1, 2)
        with finished_directory(output) as directory:
            gguf = _gguf_file(source, config.uri)
            if gguf is not None:
                _convert_gguf(gguf, directory, config)
            else:
                _copy(source, directory, config)
            _check_usable(directory, config)
            manifest = write_manifest(
                directory,
                "checkpoint",
                config=config.model_dump(mode="json"),
                metadata=checkpoint_metadata(directory, source=config.uri),
            )
    if progress is not None:
        progress.update(2, 2)
    return manifest


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


def _copy(source: Path, directory: Path, config: CheckpointConfig) -> None:
    settings = _check_copyable(source, config, verify=True)
    names = [name for name in COPIED if (source / name).is_file()]
    for name in names:
        shutil.copyfile(source / name, directory / name)
    for name in _shards(source):
        if config.dtype == "keep":
            shutil.copyfile(source / name, directory / name)
        else:
            cast_file(source / name, directory / name, config.dtype)
    if config.dtype != "keep":
        _record_dtype(directory, settings, config.dtype)


def check_importable(source: Path, config: CheckpointConfig) -> None:
    """Check everything of a checkpoint that :func:`import_checkpoint` would refuse, without reading its tensors.

    Args:
        source: directory as :func:`progrpo.checkpoints.peek.peek` gives it, or a file.
        config: what it is to be imported as. Of a GGUF file nothing is known before it is converted.

    Raises:
        CheckpointError: incomplete, unsafe or unusable.
        ManifestError: its manifest is of something else.
    """
    if _gguf_file(source, config.uri) is None:
        _check_copyable(source, config, verify=False)
        _check_usable(source, config)


def _check_copyable(source: Path, config: CheckpointConfig, *, verify: bool) -> dict[str, Any]:
    """Check the files that are copied, and return ``config.json``; ``verify`` compares them with a manifest."""
    if not source.is_dir():
        raise CheckpointError(
            f"{config.uri} is a file. Give a Hugging Face directory (config.json, safetensors weights, tokenizer) "
            f"or a .gguf file."
        )
    if (source / MANIFEST_NAME).is_file():
        read_manifest(source, "checkpoint", verify=verify)
    settings = read_config(source)
    if settings.get("quantization_config"):
        raise CheckpointError(f"{config.uri} is quantized and cannot be trained. Give the unquantized checkpoint.")
    for name in COPIED:
        if name.endswith(".json") and (source / name).is_file():
            read_json(source / name)
    read_tensors(source)
    return settings


def _shards(source: Path) -> list[str]:
    index = source / WEIGHTS_INDEX
    if not index.is_file():
        return ["model.safetensors"]
    return sorted(set(read_json(index)["weight_map"].values()))


def _record_dtype(directory: Path, settings: dict[str, Any], dtype: str) -> None:
    """Say the stored dtype in config.json, and the new size in the index."""
    settings = {key: value for key, value in settings.items() if key != "torch_dtype"} | {"dtype": dtype}
    (directory / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")
    index = directory / WEIGHTS_INDEX
    if index.is_file():
        listing = read_json(index)
        spans = [tensor["data_offsets"] for tensor in read_tensors(directory).values()]
        listing["metadata"] = {
            **(listing.get("metadata") or {}),
            "total_size": sum(end - start for start, end in spans),
        }
        index.write_text(json.dumps(listing, indent=2, sort_keys=True), encoding="utf-8")


def _check_usable(directory: Path, config: CheckpointConfig) -> None:
    from transformers import AutoConfig

    settings = read_config(directory)
    try:
        AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises KeyError, ValueError, OSError, … for a configuration it refuses
        raise CheckpointError(
            f"{config.uri}: transformers cannot use config.json (model_type {settings.get('model_type')!r}): "
            f"{first_line(error)}"
        ) from None
    tokenizer = load_tokenizer(directory, name=config.uri)
    vocab_size = (settings.get("text_config") or settings).get("vocab_size")
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if isinstance(vocab_size, int) and highest >= vocab_size:
        raise CheckpointError(
            f"{config.uri}: the tokenizer has token id {highest}, but the model has {vocab_size} embeddings. "
            f"Tokenizer and model do not belong together."
        )
    if config.require_chat_template and not tokenizer.chat_template:
        raise CheckpointError(
            f"{config.uri}: the tokenizer has no chat template, but prompts are messages. Put a chat_template.jinja "
            f"beside tokenizer_config.json (that of the model's instruct version, say), or take that version."
        )


# --- GGUF ------------------------------------------------------------------------------------------------------------


def _gguf_file(source: Path, uri: str) -> Path | None:
    """Return the GGUF file to convert, if the source is one or has one and no safetensors."""
    if source.is_file():
        return source if source.suffix == ".gguf" else None
    if any(source.glob("*.safetensors")):
        return None
    files = sorted(source.glob("*.gguf"))
    if len(files) > 1:
        raise CheckpointError(
            f"{uri} has {len(files)} GGUF files: {', '.join(f.name for f in files)}. Give one of them."
        )
    return files[0] if files else None


def _convert_gguf(file: Path, directory: Path, config: CheckpointConfig) -> None:
    """Dequantize a GGUF file and save it as an ordinary Hugging Face directory."""
    if missing := [name for name in ("gguf", "torch") if util.find_spec(name) is None]:
        raise CheckpointError(
            f"{config.uri} is GGUF, which needs {' and '.join(missing)}. Convert it where progrpo[train,smollm2] is "
            f"installed (progrpo step import-checkpoint), and give the directory made there."
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    place = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **place)
        loaded = AutoModelForCausalLM.from_pretrained(file.parent, dtype=dtype, **place)
    except Exception as error:  # the GGUF reader raises anything from ValueError to IndexError on a broken file
        raise CheckpointError(
            f"{config.uri}: transformers cannot read this GGUF file: {first_line(error)}. "
            f"Give the Hugging Face directory of the model instead."
        ) from None
    # A model from GGUF counts as quantized and refuses to be saved; one built from its configuration does not.
    settings = loaded.config
    if hasattr(settings, "quantization_config"):
        del settings.quantization_config
    model = AutoModelForCausalLM.from_config(settings, dtype=dtype)
    model.load_state_dict(loaded.state_dict())
    _repair_tokenizer(tokenizer, settings)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _repair_tokenizer(tokenizer: PreTrainedTokenizerBase, settings: Any) -> None:
    """Undo what transformers 5.17.0 gets wrong in a gpt2-style tokenizer from GGUF.

    The end-of-sequence token is the beginning's (integrations/ggml.py reads bos_token_id for both), so that no
    completion would ever end; the model's configuration has the right ones, from the same file. The tokenizer
    returns token_type_ids, which causal language models refuse, and drops spaces when decoding.
    """
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token_id = getattr(settings, f"{name}_id", None)
        if isinstance(token_id, int):
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(token_id))
        tokenizer.init_kwargs.pop(f"{name}_id", None)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.init_kwargs.update(model_input_names=tokenizer.model_input_names, clean_up_tokenization_spaces=False)
