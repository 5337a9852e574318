"""What is known about a checkpoint before anything is trained: the metadata of its manifest."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progrpo.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WEIGHTS_INDEX = "model.safetensors.index.json"
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
MAX_HEADER = 100 << 20


def checkpoint_metadata(directory: Path, *, source: str | None = None) -> dict[str, Any]:
    """Describe the checkpoint in ``directory``; its weights are not loaded.

    Args:
        directory: a Hugging Face directory with safetensors weights.
        source: where it came from; ``directory`` if absent.

    Returns:
        source_uri, architecture, num_parameters (stored, tied ones once), dtype (of most parameters),
        tokenizer_digest, chat_template_digest, context_length in tokens, eos_token, pad_token. None where the
        checkpoint does not say.

    Raises:
        CheckpointError: missing, cut off or contradictory files.
    """
    config = read_config(directory)
    sizes: Counter[str] = Counter()
    for tensor in read_tensors(directory).values():
        sizes[tensor["dtype"]] += math.prod(tensor["shape"])
    tokenizer = load_tokenizer(directory)
    text_config = config.get("text_config") or config
    stored = sizes.most_common(1)[0][0]
    return {
        "source_uri": source or str(directory),
        "architecture": config["architectures"][0],
        "num_parameters": sizes.total(),
        "dtype": _DTYPES.get(stored, stored),
        "tokenizer_digest": tokenizer_digest(tokenizer),
        "chat_template_digest": chat_template_digest(tokenizer),
        "context_length": text_config.get("max_position_embeddings"),
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
    }


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the sha256 of vocabulary and special tokens: equal digests give token ids the same meaning."""
    content = [sorted(tokenizer.get_vocab().items()), sorted(map(str, tokenizer.all_special_tokens))]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def chat_template_digest(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the sha256 of the chat template; None if there is none."""
    template = tokenizer.chat_template
    return hashlib.sha256(json.dumps(template).encode()).hexdigest() if template else None


def read_config(directory: Path) -> dict[str, Any]:
    """Read ``config.json`` and check that it names a causal language model without code of its own.

    Raises:
        CheckpointError: missing, not JSON, another kind of model, or code that would have to be executed.
    """
    path = directory / "config.json"
    config = read_json(path)
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON object: it is no model configuration.")
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise CheckpointError(f"{path} names no architecture. Save the model with transformers' save_pretrained.")
    if not str(architectures[0]).endswith("ForCausalLM"):
        raise CheckpointError(f"{path} is a {architectures[0]}, but a causal language model (…ForCausalLM) is needed.")
    return config


def read_json(path: Path) -> Any:
    """Read a JSON file of a checkpoint.

    Raises:
        CheckpointError: missing, not JSON, or with ``auto_map``, which asks for the checkpoint's own code to be run.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} has no {path.name}. "
            f"Give a Hugging Face directory: config.json, safetensors weights, tokenizer."
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}). Copy the checkpoint again.") from None
    if isinstance(content, dict) and content.get("auto_map"):
        raise CheckpointError(
            f"{path} has auto_map: it asks for code of the checkpoint to be run, which is never done. "
            f"Give a model that transformers itself supports."
        )
    return content


def read_tensors(directory: Path) -> dict[str, dict[str, Any]]:
    """Return name -> {dtype, shape, ...} of all stored tensors, from the headers of the safetensors files.

    Raises:
        CheckpointError: no weights, a missing shard, a file cut off, or an index that does not match the shards.
    """
    index = directory / WEIGHTS_INDEX
    if index.is_file():
        listing = read_json(index)
        listed = listing.get("weight_map") if isinstance(listing, dict) else None
        if not isinstance(listed, dict) or not listed:
            raise CheckpointError(f"{index} has no weight_map. Copy the checkpoint again.")
        names = sorted(set(map(str, listed.values())))
        missing = [name for name in names if Path(name).name != name or not (directory / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{index} lists {len(names)} files, but these are missing: {', '.join(missing)}. "
                f"Copy the checkpoint again."
            )
    else:
        listed = None
        names = ["model.safetensors"]
        if not (directory / names[0]).is_file():
            raise CheckpointError(
                f"{directory} has neither model.safetensors nor {WEIGHTS_INDEX}. {_other_weights(directory)}"
            )
    tensors: dict[str, dict[str, Any]] = {}
    for name in names:
        header = read_header(directory / name)
        wrong = [tensor for tensor in header if listed is not None and listed.get(tensor) != name]
        if wrong:
            raise CheckpointError(f"{directory / name} holds {wrong[0]}, which {WEIGHTS_INDEX} does not list there.")
        tensors.update(header)
    absent = sorted(set(listed or ()) - set(tensors))
    if absent:
        raise CheckpointError(
            f"{index} lists {absent[0]} ({len(absent)} such tensors), but {listed and listed[absent[0]]} lacks it. "
            f"Copy the checkpoint again."
        )
    if not tensors:
        raise CheckpointError(f"{directory} holds no tensors.")
    return tensors


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Read the header of one safetensors file and check that the file is as long as it says.

    Raises:
        CheckpointError: not a safetensors file, or cut off.
    """
    broken = CheckpointError(f"{path} is cut off or not a safetensors file. Copy it again.")
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise broken
        try:
            header = json.loads(file.read(length))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise broken from None
    if size != 8 + length + end:
        raise broken
    return tensors


def load_tokenizer(directory: Path, *, name: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint, which messages call ``name``.

    Raises:
        CheckpointError: there is none, or it cannot be loaded without code of its own.
    """
    from transformers import AutoTokenizer

    files: Sequence[str] = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
    if not any((directory / name).is_file() for name in files):
        raise CheckpointError(
            f"{name or directory} has no tokenizer: none of {', '.join(files)}. "
            f"Save it there with tokenizer.save_pretrained."
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers and tokenizers raise plain Exception, OSError, ValueError, TypeError, …
        raise CheckpointError(f"{name or directory}: the tokenizer cannot be loaded: {first_line(error)}") from None
    return tokenizer


def first_line(error: Exception) -> str:
    """Return what another library's error says, short enough for a message of ours; its type if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _other_weights(directory: Path) -> str:
    names = sorted(path.name for path in directory.iterdir() if path.suffix in UNSAFE_SUFFIXES)
    if names:
        return (
            f"It has {', '.join(names[:3])}, but loading pickled weights can run code, so only safetensors is read. "
            f"Convert it where you trust it: load the model there and save_pretrained(…) writes safetensors."
        )
    return "Give a Hugging Face directory with safetensors weights."


UNSAFE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack"})
