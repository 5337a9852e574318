"""The prepare-dataset step: from files or the countdown generator to the dataset artifact."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from progrpo.config import CountdownSource, DatasetConfig, FileSource
from progrpo.data import countdown
from progrpo.data.dataset import Message, Problem, problems_table
from progrpo.data.read import BadLine, read_rows
from progrpo.errors import DataError
from progrpo.manifest import Manifest, write_manifest
from progrpo.metrics import Progress
from progrpo.rewards import task_of
from progrpo.storage import finished_directory, localize

MAX_EXAMPLES = 20
ROLES = ("system", "user", "assistant")


def prepare_dataset(config: DatasetConfig, output: Path, *, progress: Progress | None = None) -> Manifest:
    """Make the dataset artifact.

    A prompt that occurs twice stays once; one in both splits stays in the held-out split only. What was left out, and
    why, is in ``report.json``.

    Args:
        config: where the problems come from and how strict to be.
        output: directory to make; may exist if empty.
        progress: told how many problems are done.

    Raises:
        DataError: unreadable file, missing column, too many unusable rows, or nothing left.
        StorageError: a file that cannot be reached, an output that is not empty.
    """
    report = Report()
    if isinstance(config.source, CountdownSource):
        train, evaluation = _from_countdown(config.source, config.system_prompt, report)
    else:
        train, evaluation = _from_files(config, config.source, report)
    with finished_directory(output) as directory:
        pq.write_table(problems_table(train), directory / "train.parquet")
        pq.write_table(problems_table(evaluation), directory / "eval.parquet")
        summary = report.summary(len(train), len(evaluation))
        (directory / "report.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False), encoding="utf-8")
        manifest = write_manifest(
            directory,
            "dataset",
            config=config.model_dump(mode="json"),
            metadata={
                "num_train": len(train),
                "num_eval": len(evaluation),
                "tasks": sorted({problem.task for problem in (*train, *evaluation)}),
            },
        )
    if progress is not None:
        progress.update(len(train) + len(evaluation), len(train) + len(evaluation))
    return manifest


@dataclass
class Report:
    """What was read and what was left out.

    Attributes:
        rows_read: rows of all files.
        dropped: reason -> number of rows.
        examples: the first rows left out, with place, column and reason.
    """

    rows_read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, str]] = field(default_factory=list)

    def drop(self, place: str, column: str, reason: str, detail: str = "") -> None:
        """Count a row that is left out; ``detail`` is shown, but does not make another reason."""
        self.dropped[f"{column}: {reason}"] += 1
        if len(self.examples) < MAX_EXAMPLES:
            shown = f"{reason} ({detail})" if detail else reason
            self.examples.append({"place": place, "column": column, "reason": shown})

    def add(self, other: Report) -> None:
        """Add what was counted in another file."""
        self.rows_read += other.rows_read
        self.dropped += other.dropped
        self.examples = [*self.examples, *other.examples][:MAX_EXAMPLES]

    def summary(self, num_train: int, num_eval: int) -> dict[str, Any]:
        """Return the contents of ``report.json``."""
        return {
            "rows_read": self.rows_read,
            "rows_kept": num_train + num_eval,
            "num_train": num_train,
            "num_eval": num_eval,
            "dropped": dict(self.dropped.most_common()),
            "examples": self.examples,
        }


class _RowError(Exception):
    """Why a row cannot be used: column, reason and, where there is more to say, detail."""


# --- countdown -------------------------------------------------------------------------------------------------------


def _from_countdown(
    source: CountdownSource, system_prompt: str | None, report: Report
) -> tuple[list[Problem], list[Problem]]:
    splits = countdown.generate(source.num_train, source.num_eval, source.seed)
    report.rows_read = sum(map(len, splits))
    train, evaluation = (
        [
            _problem(
                _with_system([{"role": "user", "content": prompt}], system_prompt), answer, "countdown", "countdown"
            )
            for prompt, answer in split
        ]
        for split in splits
    )
    return train, evaluation


# --- files -----------------------------------------------------------------------------------------------------------


def _from_files(config: DatasetConfig, source: FileSource, report: Report) -> tuple[list[Problem], list[Problem]]:
    with tempfile.TemporaryDirectory(prefix="progrpo-") as scratch:
        train, evaluation = (
            _read_file(uri, config, source, report, Path(scratch) / name) if uri is not None else []
            for name, uri in (("train", source.train_uri), ("eval", source.eval_uri))
        )
    evaluation = _without_duplicates(evaluation, {}, report)
    train = _without_duplicates(train, {_prompt_key(problem): problem for _, problem in evaluation}, report)
    if source.eval_uri is not None:
        splits = [problem for _, problem in train], [problem for _, problem in evaluation]
    else:
        splits = _split([problem for _, problem in train], source)
    for name, problems in zip(("training", "held-out"), splits, strict=True):
        if not problems and (name == "held-out" or source.train_uri is not None):
            raise DataError(f"no {name} problem is left: {_counts(report)}. Give more rows, or other ones.")
    return splits


def _read_file(
    uri: str, config: DatasetConfig, source: FileSource, report: Report, scratch: Path
) -> list[tuple[str, Problem]]:
    """Return the usable rows of a file with their places."""
    problems, dropped = usable_rows(localize(uri, scratch), uri, config, source)
    report.add(dropped)
    read, unusable = dropped.rows_read, dropped.rows_read - len(problems)
    if not read:
        raise DataError(f"{uri} has no rows. Give a file with at least one problem.")
    if unusable > config.max_dropped_frac * read or not problems:
        shown = "".join(f"\n  {row['place']}, {row['column']}: {row['reason']}" for row in dropped.examples[:5])
        raise DataError(
            f"{uri}: {unusable} of {read} rows cannot be used, more than max_dropped_frac "
            f"{config.max_dropped_frac:g} allows. The first:{shown}\nCorrect them, or raise max_dropped_frac."
        )
    return problems


def usable_rows(
    path: Path, uri: str, config: DatasetConfig, source: FileSource
) -> tuple[list[tuple[str, Problem]], Report]:
    """Return the usable rows of a local file with their places, and what was left out.

    Args:
        path: the file.
        uri: what messages call it.
        config: the dataset's settings.
        source: those of its files.

    Raises:
        DataError: an unreadable file or a missing column.
    """
    name = PurePosixPath(uri).name
    problems: list[tuple[str, Problem]] = []
    dropped = Report()
    rows = read_rows(path, name=uri, columns=(source.prompt_column, source.answer_column))
    for place, row in islice(rows, source.max_rows):
        dropped.rows_read += 1
        try:
            problems.append((place, _row_problem(row, config, source, name)))
        except _RowError as error:
            dropped.drop(place, *error.args)
    return _with_readable_answers(problems, source, dropped), dropped


def _row_problem(row: dict[str, Any], config: DatasetConfig, source: FileSource, name: str) -> Problem:
    if isinstance(row, BadLine):
        raise _RowError("line", row.reason, row.detail)
    prompt = _messages(row.get(source.prompt_column), source.prompt_column)
    if config.system_prompt is not None and prompt[0]["role"] == "system":
        raise _RowError(source.prompt_column, "has a system message of its own, and system_prompt is set")
    answer = row.get(source.answer_column)
    if _is_number(answer):
        answer = str(answer)
    if task_of(source.task).json_answers and isinstance(answer, dict | list):
        answer = json.dumps(answer)
    answer = _text(answer, source.answer_column).strip()
    difficulty = _difficulty(row.get("difficulty"))
    return _problem(_with_system(prompt, config.system_prompt), answer, source.task, name, difficulty)


def _is_number(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and math.isfinite(value)
    )


def _difficulty(value: Any) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = float(value) if isinstance(value, str) or _is_number(value) else math.nan  # CSV knows only texts
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise _RowError("difficulty", "is not a number")
    return number


def _messages(value: Any, column: str) -> list[Message]:
    if isinstance(value, str) or value is None:
        return [{"role": "user", "content": _text(value, column)}]
    if not isinstance(value, list):
        raise _RowError(column, f"must be a text or a list of messages, not {type(value).__name__}")
    if not value:
        raise _RowError(column, "is empty")
    for message in value:
        if not isinstance(message, dict) or set(message) != {"role", "content"} or message["role"] not in ROLES:
            raise _RowError(column, f"each message must be {{role, content}} with a role of {', '.join(ROLES)}")
        _text(message["content"], column)
    if value[-1]["role"] != "user":
        raise _RowError(column, f"the last message must be the user's, not the {value[-1]['role']}'s")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _text(value: Any, column: str) -> str:
    if value is None:
        raise _RowError(column, "is missing")
    if not isinstance(value, str):
        raise _RowError(column, f"must be a text, not {type(value).__name__}")
    if not value.strip():
        raise _RowError(column, "is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _RowError(column, "is not valid Unicode (a lone surrogate)") from None
    return value


def _with_readable_answers(
    problems: list[tuple[str, Problem]], source: FileSource, report: Report
) -> list[tuple[str, Problem]]:
    """Leave out answers the verifier cannot read: no completion could ever be verified against them."""
    reasons = task_of(source.task).unreadable({problem.answer for _, problem in problems})
    for place, problem in problems:
        if (reason := reasons.get(problem.answer)) is not None:
            report.drop(place, source.answer_column, f"is not an answer of the {source.task} task", reason)
    return [(place, problem) for place, problem in problems if problem.answer not in reasons]


# --- both ------------------------------------------------------------------------------------------------------------


def _problem(prompt: list[Message], answer: str, task: str, source: str, difficulty: float | None = None) -> Problem:
    digest = hashlib.sha256(json.dumps([prompt, answer]).encode()).hexdigest()[:16]
    return Problem(digest, prompt, answer, task, source, difficulty)


def _with_system(prompt: list[Message], system_prompt: str | None) -> list[Message]:
    return prompt if system_prompt is None else [{"role": "system", "content": system_prompt}, *prompt]


def _prompt_key(problem: Problem) -> str:
    return json.dumps([[message["role"], message["content"]] for message in problem.prompt])


def _without_duplicates(
    rows: list[tuple[str, Problem]], held_out: dict[str, Problem], report: Report
) -> list[tuple[str, Problem]]:
    """Keep the first row of each prompt that is not among ``held_out`` (prompt -> problem)."""
    seen: dict[str, Problem] = {}
    kept = []
    for place, problem in rows:
        key = _prompt_key(problem)
        if key in held_out:
            report.drop(place, "prompt", "also in the held-out file")
        elif key in seen:
            same = seen[key].answer == problem.answer
            report.drop(place, "prompt", "duplicate" if same else "duplicate with another answer; the first one stays")
        else:
            seen[key] = problem
            kept.append((place, problem))
    return kept


def _split(problems: list[Problem], source: FileSource) -> tuple[list[Problem], list[Problem]]:
    """Hold out ``eval_frac`` of the problems: chosen by seed and content, so that the order of rows has no effect."""
    if len(problems) < 2:
        raise DataError(
            f"{source.train_uri} has one usable problem, but two splits are needed. Give more, or eval_uri."
        )
    num_eval = min(max(1, round(source.eval_frac * len(problems))), len(problems) - 1)

    def rank(problem: Problem) -> bytes:
        return hashlib.sha256(f"{source.seed}:{problem.id}".encode()).digest()

    held_out = {problem.id for problem in sorted(problems, key=rank)[:num_eval]}
    return (
        [problem for problem in problems if problem.id not in held_out],
        [problem for problem in problems if problem.id in held_out],
    )


def _counts(report: Report) -> str:
    reasons = ", ".join(f"{count} x {reason}" for reason, count in report.dropped.most_common())
    return f"{report.rows_read} rows read, dropped: {reasons or 'none'}"
