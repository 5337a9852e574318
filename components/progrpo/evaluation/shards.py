"""Completions on their way to ``samples.parquet``: shards of whole problems, so that a killed evaluation goes on.

A shard is written once and atomically. What is in it depends on the checkpoint, the problems and the protocol only,
not on which shards lie beside it, so any set of them can be completed.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from progrpo.evaluation.samples import SCHEMA
from progrpo.manifest import write_atomic

logger = logging.getLogger(__name__)

DIRECTORY = ".shards"
# Names start with a dot: a manifest leaves such files out, so the shards may outlive it by a moment.
_NAME = re.compile(r"\.(\d{8})-(\d{8})\.parquet")
_STATISTICS = b"problem_statistics"
_ROWS_A_GROUP = 8192  # of samples.parquet, at least one problem


@dataclass(frozen=True)
class ProblemStatistics:
    """What is measured on the completions of a problem together; a part of a row of ``problems.parquet``."""

    self_bleu: float | None
    distinct_ngram_frac: float | None


@dataclass(frozen=True)
class Shards:
    """The shards of one evaluation.

    Attributes:
        directory: where they lie; gone when the evaluation is whole.
        num_problems: P.
        num_samples: n, completions of each problem.
    """

    directory: Path
    num_problems: int
    num_samples: int

    def open(self, fingerprint: Mapping[str, Any]) -> None:
        """Keep the shards of an earlier attempt with the same fingerprint; start anew otherwise."""
        path = self.directory / ".fingerprint.json"
        text = json.dumps(fingerprint, sort_keys=True)
        if self.directory.exists() and (not path.is_file() or path.read_text(encoding="utf-8") != text):
            logger.warning("%s holds completions of another evaluation; they are sampled again", self.directory)
            shutil.rmtree(self.directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
        for leftover in self.directory.glob(".*.tmp"):
            leftover.unlink()
        for first, last in self.done():
            file = self._path(first, last)
            try:
                whole = pq.read_metadata(file).num_rows == (last - first) * self.num_samples
            except (OSError, pa.ArrowException):
                whole = False
            if not whole:
                logger.warning("%s is not whole; its completions are sampled again", file)
                file.unlink()

    def done(self) -> list[tuple[int, int]]:
        """Return (first, last + 1) of the problems of each shard, in order."""
        names = (_NAME.fullmatch(path.name) for path in self.directory.iterdir())
        return sorted((int(name[1]), int(name[2])) for name in names if name)

    def num_done(self) -> int:
        """Problems whose completions are there."""
        return sum(last - first for first, last in self.done())

    def missing(self, batch_size: int) -> list[tuple[int, int]]:
        """Return the ranges of problems that are still to be sampled, each of about ``batch_size`` completions."""
        step, ranges, start = max(1, batch_size // self.num_samples), [], 0
        for first, last in [*self.done(), (self.num_problems, self.num_problems)]:
            ranges += [(at, min(at + step, first)) for at in range(start, first, step)]
            start = last
        return ranges

    def write(self, first: int, samples: pa.Table, statistics: Sequence[ProblemStatistics]) -> None:
        """Write the completions of the problems from ``first`` on."""
        path = self._path(first, first + len(statistics))
        metadata = {_STATISTICS: json.dumps([vars(problem) for problem in statistics]).encode()}
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            pq.write_table(samples.replace_schema_metadata(metadata), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def merge(self, path: Path) -> list[ProblemStatistics]:
        """Write all completions to one file, the same bytes whatever the shards were, and return the statistics [P]."""
        step = max(1, _ROWS_A_GROUP // self.num_samples) * self.num_samples
        statistics: list[ProblemStatistics] = []
        temporary = path.with_name(f".{path.name}.tmp")
        with pq.ParquetWriter(temporary, SCHEMA) as writer:
            waiting = SCHEMA.empty_table()
            for table, of_problems in self._read():
                statistics += of_problems
                waiting = pa.concat_tables([waiting, table])
                while len(waiting) >= step:
                    writer.write_table(waiting.slice(0, step).combine_chunks())
                    waiting = waiting.slice(step)
            if len(waiting):
                writer.write_table(waiting.combine_chunks())
        temporary.replace(path)
        assert len(statistics) == self.num_problems
        return statistics

    def remove(self) -> None:
        """Delete the shards; their content is in ``samples.parquet``."""
        shutil.rmtree(self.directory)

    def _read(self) -> Iterator[tuple[pa.Table, list[ProblemStatistics]]]:
        for first, last in self.done():
            table = pq.read_table(self._path(first, last))
            rows = json.loads(table.schema.metadata[_STATISTICS])
            yield table.replace_schema_metadata(None), [ProblemStatistics(**row) for row in rows]

    def _path(self, first: int, last: int) -> Path:
        return self.directory / f".{first:08d}-{last:08d}.parquet"
