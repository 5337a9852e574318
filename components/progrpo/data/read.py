"""Rows of a JSONL, parquet or CSV file, each with the place it came from."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from progrpo.errors import DataError

Row = tuple[str, dict[str, Any]]
"""(place named in messages, column -> value)."""


class BadLine(dict[str, Any]):
    """Stands for a line that could not be read; ``reason`` and ``detail`` say why."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__()
        self.reason, self.detail = reason, detail


def read_rows(path: Path, *, name: str, columns: tuple[str, ...]) -> Iterator[Row]:
    """Read a file by its extension.

    Args:
        path: the local file.
        name: what messages call it.
        columns: those that must be there.

    Yields:
        Rows with their place. A JSONL line that is no JSON object comes as :class:`BadLine`.

    Raises:
        DataError: an unknown extension, an unreadable file, or a missing column.
    """
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet, ".csv": _read_csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{name}: unknown kind of file {path.suffix!r}. Allowed: {', '.join(readers)}.")
    if not path.is_file():
        raise DataError(f"{name} is a directory. Give one {', '.join(readers)} file.")
    try:
        yield from reader(path, name, columns)
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}. Check its rights and the disk.") from None


def check_columns(present: list[str], columns: tuple[str, ...], name: str) -> None:
    """Raise DataError if one of ``columns`` is not ``present``."""
    missing = [column for column in columns if column not in present]
    if missing:
        raise DataError(
            f"{name} has no column {missing[0]!r}. Its columns: {', '.join(map(repr, present[:50])) or 'none'}. "
            f"Set prompt_column and answer_column."
        )


def _read_jsonl(path: Path, name: str, columns: tuple[str, ...]) -> Iterator[Row]:
    present: dict[str, None] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{name} line {number}"
            try:
                content = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield place, BadLine("malformed JSON", str(error)[:200])
                continue
            if not isinstance(content, dict):
                yield place, BadLine("not a JSON object", type(content).__name__)
                continue
            present.update(dict.fromkeys(content))
            yield place, content
    if present:  # a column that no row has is a wrong name, not a bad row
        check_columns(list(present), columns, name)


def _read_parquet(path: Path, name: str, columns: tuple[str, ...]) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            check_columns(file.schema_arrow.names, columns, name)
            number = 0
            for batch in file.iter_batches(columns=_wanted(file.schema_arrow.names, columns)):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{name} row {number}", row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name} is not a readable parquet file: {error}. Write or copy it again.") from None


def _read_csv(path: Path, name: str, columns: tuple[str, ...]) -> Iterator[Row]:
    # The csv module, not pyarrow: a bad row has a line number, and an answer of 007 stays what was written.
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            check_columns(header, columns, name)
            for cells in reader:
                place = f"{name} line {reader.line_num}"
                if not cells:
                    continue
                if len(cells) != len(header):
                    yield place, BadLine("wrong number of cells", f"{len(cells)}, the header has {len(header)}")
                else:
                    yield place, dict(zip(header, cells, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(
                f"{name} line {reader.line_num} cannot be read as CSV: {error}. Correct it; the encoding must be UTF-8."
            ) from None


def _wanted(present: list[str], columns: tuple[str, ...]) -> list[str]:
    return [*columns, *(name for name in ("difficulty",) if name in present and name not in columns)]
