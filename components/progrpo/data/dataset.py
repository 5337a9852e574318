"""The dataset artifact as the other steps read it: problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from progrpo.errors import DataError
from progrpo.manifest import read_manifest

Split = Literal["train", "eval"]
Message = dict[str, str]

SCHEMA = pa.schema(
    [
        pa.field("problem_id", pa.string(), nullable=False),
        pa.field("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("difficulty", pa.float64()),
    ]
)
"""Columns of ``train.parquet`` and ``eval.parquet``."""


@dataclass(frozen=True)
class Problem:
    """One prompt with its right answer.

    Attributes:
        id: stable name, unique in the dataset.
        prompt: messages ``{"role", "content"}``, the last one the user's.
        answer: the right answer, in the form its task's verifier reads.
        task: which verifier; see :mod:`progrpo.rewards`.
        source: file or generator it came from.
        difficulty: if the source gives one.
    """

    id: str
    prompt: list[Message]
    answer: str
    task: str
    source: str
    difficulty: float | None = None


def problems_table(problems: Sequence[Problem]) -> pa.Table:
    """Return problems as rows of :data:`SCHEMA`."""
    rows = [
        {"problem_id": problem.id} | {name: getattr(problem, name) for name in SCHEMA.names[1:]} for problem in problems
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def load_problems(directory: Path, split: Split) -> list[Problem]:
    """Read one split of a dataset artifact, in its order.

    Raises:
        ManifestError: ``directory`` is no whole dataset artifact.
        DataError: a file that does not have the columns of :data:`SCHEMA`.
    """
    read_manifest(directory, "dataset")
    path = directory / f"{split}.parquet"
    try:
        rows = pq.read_table(path).cast(SCHEMA).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path} is not a split of a dataset artifact: {error}. Make it with prepare-dataset."
        ) from None
    return [Problem(id=row.pop("problem_id"), **row) for row in rows]
