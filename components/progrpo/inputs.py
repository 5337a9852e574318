"""Look at what a pipeline run is to start from: whether it is there, can be used, and fits together; without torch.

Nothing large is fetched: of a checkpoint its small files and the headers of its weights, of a dataset above
:data:`MAX_READ` bytes its first rows.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from progrpo.checkpoints.architecture import Architecture, read_architecture
from progrpo.checkpoints.importer import check_importable
from progrpo.checkpoints.peek import peek
from progrpo.config import (
    CheckpointConfig,
    CountdownSource,
    DatasetConfig,
    EvaluateConfig,
    FileSource,
    TrainConfig,
)
from progrpo.errors import DataError, ProGRPOError
from progrpo.identity import Identity, identify
from progrpo.storage import s3_client, split_s3_uri
from progrpo.training.preflight import check_prompts

if TYPE_CHECKING:
    from progrpo.data.dataset import Problem

MAX_READ = 4 << 20
_SAMPLED = 64  # problems of a generator, whose prompts are all alike


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was looked at.

    Attributes:
        identity: of what lies at its URI.
        directory: with everything but, if it lies in S3, its tensors.
        model: its shape; None: a GGUF file, of which nothing is known before it is converted.
    """

    identity: str
    directory: Path
    model: Architecture | None


@dataclass(frozen=True)
class Dataset:
    """A dataset that was looked at.

    Attributes:
        identity: of what lies at its URIs.
        train, heldout: problems; not all of them where ``num_train`` and ``num_heldout`` are None.
        num_train, num_heldout: how many there are.
    """

    identity: str
    train: Sequence[Problem]
    heldout: Sequence[Problem]
    num_train: int | None
    num_heldout: int | None


@dataclass(frozen=True)
class Prompts:
    """Lengths of rendered prompts in tokens; as far as they are known."""

    longest: int | None = None
    mean: float | None = None


def look_at_checkpoint(config: CheckpointConfig, scratch: Path) -> Checkpoint:
    """Look at a checkpoint as import-checkpoint will find it.

    Args:
        config: where it lies.
        scratch: directory for what must be fetched.

    Raises:
        CheckpointError, ManifestError: incomplete, unsafe or unusable.
        StorageError: not found, not reachable, not allowed.
    """
    identity = identify(config.uri).digest
    if config.uri.endswith(".gguf") and config.uri.startswith("s3://"):
        return Checkpoint(identity, scratch, None)
    source = peek(config.uri, scratch)
    try:
        check_importable(source, config)
        is_directory = source.is_dir() and any(source.glob("*.safetensors"))
        model = read_architecture(source) if is_directory else None
    except ProGRPOError as error:  # the user gave the URI, and knows nothing of the directory
        raise type(error)(str(error).replace(str(source), config.uri)) from None
    return Checkpoint(identity, source, model)


def look_at_dataset(config: DatasetConfig, scratch: Path) -> Dataset:
    """Look at a dataset as prepare-dataset will find it.

    Up to :data:`MAX_READ` bytes it is prepared; of a larger one the first rows are read, of which one must be usable.

    Args:
        config: where it lies.
        scratch: directory for what must be fetched.

    Raises:
        DataError: unreadable, a missing column, too many unusable rows, or nothing left.
        StorageError: not found, not reachable, not allowed.
    """
    source = config.source
    if isinstance(source, CountdownSource):
        few = source.model_copy(
            update={"num_train": min(source.num_train, _SAMPLED), "num_eval": min(source.num_eval, _SAMPLED)}
        )
        train, heldout = _prepared(config.model_copy(update={"source": few}), scratch)
        return Dataset("generated", train, heldout, source.num_train, source.num_eval)
    found = _identities(source)
    identity = "-".join(entry.digest for entry in found.values())
    if sum(entry.num_bytes for entry in found.values()) <= MAX_READ:
        train, heldout = _prepared(config, scratch)
        return Dataset(identity, train, heldout, len(train), len(heldout))
    uris = {"train": source.train_uri, "eval": source.eval_uri}
    heads = {name: _head(str(uris[name]), config, source, scratch / name) for name in found}
    first = heads.get("train", [])
    return Dataset(identity, first, heads.get("eval", first), None, None)  # without a file of their own, split off it


def dataset_identity(config: DatasetConfig) -> str:
    """Return the identity of what a dataset is made from right now, as :func:`look_at_dataset` does."""
    source = config.source
    if isinstance(source, CountdownSource):
        return "generated"
    return "-".join(entry.digest for entry in _identities(source).values())


def _identities(source: FileSource) -> dict[str, Identity]:
    uris = {"train": source.train_uri, "eval": source.eval_uri}
    return {name: identify(uri) for name, uri in uris.items() if uri is not None}


def _prepared(config: DatasetConfig, scratch: Path) -> tuple[list[Problem], list[Problem]]:
    from progrpo.data.dataset import load_problems
    from progrpo.data.prepare import prepare_dataset

    prepare_dataset(config, scratch / "dataset")
    return load_problems(scratch / "dataset", "train"), load_problems(scratch / "dataset", "eval")


def _head(uri: str, config: DatasetConfig, source: FileSource, scratch: Path) -> list[Problem]:
    from progrpo.data.head import read_head
    from progrpo.data.prepare import usable_rows

    head = read_head(uri, scratch, columns=(source.prompt_column, source.answer_column))
    few = source.model_copy(update={"max_rows": min(source.max_rows or _SAMPLED, _SAMPLED)})
    problems, dropped = usable_rows(head, uri, config, few)
    if not problems:
        shown = "".join(f"\n  {row['place']}, {row['column']}: {row['reason']}" for row in dropped.examples[:5])
        raise DataError(f"{uri}: none of its first {dropped.rows_read} rows can be used:{shown or ' there are none'}")
    return [problem for _, problem in problems]


def measure_prompts(
    checkpoint: Path,
    model: Architecture,
    evaluation: EvaluateConfig,
    train: TrainConfig | None,
    *,
    problems: Sequence[Problem],
    heldout: Sequence[Problem],
) -> dict[str, Prompts]:
    """Render the prompts and check their lengths; the keys are ``evaluation`` and ``train``.

    Raises:
        CheckpointError, ConfigError, DataError: prompts that do not fit.
    """
    from progrpo.checkpoints.loading import check_room, context_length, load_tokenizer, render_prompts

    tokenizer = load_tokenizer(checkpoint)
    measured = heldout[: evaluation.max_problems]
    rendered = {"evaluation": render_prompts(tokenizer, measured)}
    check_room(measured, rendered["evaluation"], evaluation.max_completion_tokens, context_length(checkpoint))
    if train is not None and problems:
        rendered["train"] = check_prompts(checkpoint, tokenizer, model, train, problems)
    lengths = {name: list(map(len, prompts)) for name, prompts in rendered.items()}
    return {"train": Prompts()} | {
        name: Prompts(max(counts, default=None), sum(counts) / len(counts) if counts else None)
        for name, counts in lengths.items()
    }


def check_writable(uri: str) -> None:
    """See that objects can be made and removed below an ``s3://`` prefix.

    Raises:
        StorageError: they cannot.
    """
    bucket, key = split_s3_uri(uri)
    probe = f"{key.rstrip('/')}/.progrpo-probe-{uuid.uuid4().hex}".lstrip("/")
    with s3_client(uri) as client:
        client.put_object(Bucket=bucket, Key=probe, Body=b"")
        client.delete_object(Bucket=bucket, Key=probe)
