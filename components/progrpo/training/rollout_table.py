"""Read the rollouts that a training run kept, select among them, and compare those of two arms."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from progrpo.errors import ConfigError, DataError

Row = dict[str, Any]
"""One rollout, by column. Runs of other versions may lack columns, or have more."""

_NEEDED = ("problem_id", "prompt", "completion", "reward", "advantage")
_FILE = re.compile(r"step_(\d+)\.parquet")
_MAX_LISTED = 20


def kept_steps(directory: Path) -> dict[int, Path]:
    """Return the file of each step whose rollouts were kept, in order.

    Args:
        directory: a training run, or its ``rollouts/``.

    Raises:
        DataError: none were kept there; names the training runs below it, if there are any.
    """
    for folder in (directory / "rollouts", directory):
        if folder.is_dir():
            found = {int(match[1]): path for path in folder.iterdir() if (match := _FILE.fullmatch(path.name))}
            if found:
                return dict(sorted(found.items()))
    if not directory.is_dir():
        raise DataError(f"{directory} is not a directory. Give a training run, which has rollouts/step_00001.parquet.")
    below = sorted({path.parent.parent for path in directory.glob("**/rollouts/step_*.parquet")})
    hint = f" Below it are: {_listed(below)}." if below else " train.log_rollouts_every says which steps are kept."
    raise DataError(f"{directory} has no rollouts/step_….parquet: it is not a training run, or kept none.{hint}")


def choose_steps(wanted: str, available: Sequence[int]) -> list[int]:
    """Return the steps meant by ``first``, ``last``, ``all`` or a number.

    Raises:
        ConfigError: another word, or a step that is not available.
    """
    if wanted == "all":
        return list(available)
    if wanted in ("first", "last"):
        return [available[0 if wanted == "first" else -1]]
    if not wanted.isdecimal():
        raise ConfigError(f"--step {wanted!r}: allowed are first, last, all or a number of {_listed(available)}.")
    if int(wanted) not in available:
        raise ConfigError(f"--step {wanted}: the rollouts of that step were not kept. There are {_listed(available)}.")
    return [int(wanted)]


def read_rollouts(directory: Path, steps: Iterable[int]) -> list[Row]:
    """Read the rollouts of steps, in their order; each row has its ``step``.

    Raises:
        DataError: a file that cannot be read or lacks what every such file has.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = kept_steps(directory)
    rows: list[Row] = []
    for step in steps:
        try:
            # Not read_table: it takes a folder named like key=value for a partition.
            table = pq.ParquetFile(files[step]).read()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{files[step]} cannot be read: {str(error).splitlines()[0]}. Copy it again.") from None
        if missing := [name for name in _NEEDED if name not in table.column_names]:
            raise DataError(
                f"{files[step]} has no column {missing[0]!r}: it does not hold rollouts. "
                f"Its columns: {', '.join(table.column_names)}."
            )
        rows += [{"step": step, **row} for row in table.to_pylist()]
    return rows


def name_of(directory: Path) -> str:
    """Return arm and seed of a training run, as its manifest names them; else the directory's name."""
    for folder in (directory, directory.parent):
        try:
            config = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["config"]
            return f"{config['arm']['name']}, seed {config['seed']}"
        except (OSError, ValueError, KeyError, TypeError):  # a run that is still going has none
            continue
    return directory.resolve().name


def is_scored(row: Row) -> bool:
    """Whether the verifier could tell if the completion is right."""
    scored = row.get("scored")
    return bool(scored) if scored is not None else not _is_missing(row["reward"])


def is_correct(row: Row) -> bool:
    """Whether the completion was verified as right."""
    correct = row.get("correct")
    return is_scored(row) and (bool(correct) if correct is not None else row["reward"] > 0)


def select(rows: Sequence[Row], *, problem: str | None = None, correct: bool | None = None) -> list[Row]:
    """Return the rollouts of one problem, and of them the right or the wrong ones.

    Args:
        rows: rollouts.
        problem: id of the problem; None: all.
        correct: True: right ones; False: those verified as wrong; None: all.

    Raises:
        ConfigError: no rollout of that problem.
    """
    if problem is not None:
        ids = list(dict.fromkeys(row["problem_id"] for row in rows))
        if problem not in ids:
            close = difflib.get_close_matches(problem, ids, n=3) or ids[:3]
            raise ConfigError(
                f"--problem {problem!r} is not among the {len(ids)} problems there, such as {', '.join(close)}."
            )
        rows = [row for row in rows if row["problem_id"] == problem]
    if correct is not None:
        rows = [row for row in rows if is_scored(row) and is_correct(row) is correct]
    return list(rows)


def order(rows: Sequence[Row], column: str, *, ascending: bool = False) -> list[Row]:
    """Return the rows sorted by a column, largest first; rows without a value come last.

    Raises:
        ConfigError: a column that is not there, or holds what has no order.
    """
    names = columns_of(rows)
    if column not in names:
        close = difflib.get_close_matches(column, names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"--sort {column!r}: no such column. There are: {', '.join(names)}.{hint}")
    present = [row for row in rows if not _is_missing(row.get(column))]
    try:
        present.sort(key=lambda row: row[column], reverse=not ascending)
    except TypeError:
        raise ConfigError(f"--sort {column!r}: its values have no order. Take another column.") from None
    return present + [row for row in rows if _is_missing(row.get(column))]


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Return every column of the rows, in order."""
    return list(dict.fromkeys(name for row in rows for name in row))


@dataclass(frozen=True)
class Side:
    """The rollouts of one problem under one arm.

    Attributes:
        num_rollouts: how many there are.
        correct_share: of those that could be verified; None if none could.
        num_distinct: different answers, or different completions where no answer was kept.
        num_distinct_correct: the same among right ones.
        mean_advantage: ARM's term included, where there is one.
        example: the most frequent completion.
    """

    num_rollouts: int
    correct_share: float | None
    num_distinct: int
    num_distinct_correct: int
    mean_advantage: float | None
    example: str


@dataclass(frozen=True)
class Difference:
    """One problem under two arms."""

    problem_id: str
    prompt: str
    left: Side
    right: Side


def compare(left: Sequence[Row], right: Sequence[Row]) -> list[Difference]:
    """Compare two arms on the problems both have rollouts of, most different first.

    By the difference of the share of right completions, then of distinct answers, then of mean advantage.

    Raises:
        DataError: they share no problem.
    """
    groups = [_by_problem(rows) for rows in (left, right)]
    shared = [problem for problem in groups[0] if problem in groups[1]]
    if not shared:
        raise DataError(
            "the two runs have rollouts of no common problem at these steps. Runs of one seed see the same problems in "
            "a step; else give --step all."
        )
    found = [
        Difference(problem, groups[0][problem][0]["prompt"], _side(groups[0][problem]), _side(groups[1][problem]))
        for problem in shared
    ]
    return sorted(found, key=_distance, reverse=True)


def _distance(item: Difference) -> tuple[float, float, float]:
    left, right = item.left, item.right
    return (
        abs((left.correct_share or 0.0) - (right.correct_share or 0.0)),
        abs(left.num_distinct - right.num_distinct),
        abs((left.mean_advantage or 0.0) - (right.mean_advantage or 0.0)),
    )


def _by_problem(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["problem_id"], []).append(row)
    return groups


def _side(rows: Sequence[Row]) -> Side:
    scored = [row for row in rows if is_scored(row)]
    right = [row for row in scored if is_correct(row)]
    advantages = [
        row["advantage"] + (0.0 if _is_missing(shift := row.get("advantage_shift")) else shift)
        for row in rows
        if not _is_missing(row["advantage"])
    ]
    return Side(
        num_rollouts=len(rows),
        correct_share=len(right) / len(scored) if scored else None,
        num_distinct=len({_answer(row) for row in rows}),
        num_distinct_correct=len({_answer(row) for row in right}),
        mean_advantage=sum(advantages) / len(advantages) if advantages else None,
        example=Counter(row["completion"] for row in rows).most_common(1)[0][0],
    )


def _answer(row: Row) -> str:
    answer = row.get("answer")
    return str(row["completion"] if answer is None else answer).strip()


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _listed(items: Sequence[Any]) -> str:
    shown = ", ".join(map(str, items[:_MAX_LISTED]))
    return shown if len(items) <= _MAX_LISTED else f"{shown}, … ({len(items)})"
