"""Show rollouts and the difference of two arms' rollouts in a terminal, as JSON or as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from rich.markup import escape
from rich.table import Table

from progrpo.errors import ConfigError
from progrpo.training.rollout_table import (
    Difference,
    Row,
    Side,
    choose_steps,
    columns_of,
    compare,
    is_correct,
    is_scored,
    kept_steps,
    name_of,
    order,
    read_rollouts,
    select,
)

T = TypeVar("T")

DEFAULT_LIMIT = 20
_MIN_WIDTH = 5
_NUMBERS = {
    "reward": "reward",
    "overlong_penalty": "penalty",
    "advantage": "advantage",
    "advantage_shift": "ARM term",
    "prompt_confidence": "c(q)",
    "answer_confidence": "c(o|q)",
    "num_tokens": "tokens",
}


@dataclass(frozen=True)
class View:
    """How rollouts are shown.

    Attributes:
        form: a table for people, or JSON or CSV with every column.
        sort: column; None: as they were sampled.
        ascending: smallest first.
        limit: rows at most; None: :data:`DEFAULT_LIMIT` in a table, else all.
        width: characters of a text in a table.
    """

    form: Literal["table", "json", "csv"] = "table"
    sort: str | None = None
    ascending: bool = False
    limit: int | None = None
    width: int = 60

    def limited(self, items: Sequence[T]) -> Sequence[T]:
        """Return the items that are shown."""
        return items[: self.limit or (DEFAULT_LIMIT if self.form == "table" else None)]


def show(
    directories: Sequence[Path], *, step: str, problem: str | None, correct: bool | None, view: View
) -> Table | str:
    """Show the rollouts of one training run, or how those of two differ.

    Args:
        directories: one training run, or two.
        step: a number, ``first``, ``last`` or ``all``, of the steps that every run kept.
        problem: id of the only problem shown; None: all.
        correct: only right ones, only wrong ones, or all.
        view: how.

    Raises:
        ConfigError, DataError: what is not there, or options that do not go together.
    """
    if len(directories) > 2:
        raise ConfigError(f"{len(directories)} directories were given. Give one training run, or two to compare.")
    if view.sort is not None and len(directories) > 1:
        raise ConfigError("--sort orders the rollouts of one run; two runs are shown most different first.")
    if view.width < _MIN_WIDTH:
        raise ConfigError(f"--width {view.width}: at least {_MIN_WIDTH} characters are needed.")
    kept = [kept_steps(directory) for directory in directories]
    shared = [number for number in kept[0] if all(number in steps for steps in kept)]
    if not shared:
        raise ConfigError(
            f"the two runs kept no common step: {directories[0]} has {', '.join(map(str, kept[0]))}; "
            f"{directories[1]} has {', '.join(map(str, kept[1]))}."
        )
    steps = choose_steps(step, shared)
    tables = [select(read_rollouts(directory, steps), problem=problem, correct=correct) for directory in directories]
    names = [visible(name_of(directory)) for directory in directories]
    if len(tables) > 1:
        return _show_differences(compare(*tables), names, steps, view)
    rows = tables[0] if view.sort is None else order(tables[0], view.sort, ascending=view.ascending)
    return _show_rollouts(rows, names[0], steps, view)


def _show_rollouts(rows: Sequence[Row], name: str, steps: Sequence[int], view: View) -> Table | str:
    shown, names = view.limited(rows), columns_of(rows)
    if view.form != "table":
        finite = [{column: _finite(value) for column, value in row.items()} for row in shown]
        return json.dumps(finite, indent=2) if view.form == "json" else _csv(names, finite)
    title = f"{name}, {_steps(steps)}: {len(shown):,} of {len(rows):,} rollouts"
    table = Table(title=escape(title), show_lines=True)
    if len(steps) > 1:
        table.add_column("step", justify="right")
    for heading in ("problem", "completion"):
        table.add_column(heading, overflow="fold", min_width=16)
    table.add_column("right", no_wrap=True)
    numbers = [column for column in _NUMBERS if column in names and any(row.get(column) for row in shown)]
    for column in numbers:
        table.add_column(_NUMBERS[column], justify="right", no_wrap=True)
    for row in shown:
        cells = [str(row["step"])] if len(steps) > 1 else []
        cells += [_problem(row["problem_id"], row["prompt"], view), escape(cut(row["completion"], view.width))]
        cells.append(("yes" if is_correct(row) else "no") if is_scored(row) else "?")
        table.add_row(*cells, *(_number(row.get(column)) for column in numbers))
    return table


def _show_differences(
    differences: Sequence[Difference], names: Sequence[str], steps: Sequence[int], view: View
) -> Table | str:
    shown = view.limited(differences)
    if view.form == "json":
        return json.dumps([asdict(item) for item in shown], indent=2)
    if view.form == "csv":
        flat = [_flat(item) for item in shown]
        return _csv(columns_of(flat), flat)
    counts = f"{len(shown):,} of {len(differences):,} problems, most different first"
    table = Table(title=escape(f"{names[0]} | {names[1]}, {_steps(steps)}: {counts}"), show_lines=True)
    table.add_column("problem", overflow="fold")
    for heading in ("right", "distinct answers", "of them right", "mean advantage"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in names:
        table.add_column(escape(f"{name}, most often"), overflow="fold")
    for item in shown:
        sides = (item.left, item.right)
        table.add_row(
            _problem(item.problem_id, item.prompt, view),
            " | ".join(_share(side) for side in sides),
            " | ".join(str(side.num_distinct) for side in sides),
            " | ".join(str(side.num_distinct_correct) for side in sides),
            " | ".join(_number(side.mean_advantage) for side in sides),
            *(escape(cut(side.example, view.width)) for side in sides),
        )
    return table


def _problem(problem_id: str, prompt: str, view: View) -> str:
    return escape(f"{cut(problem_id, view.width)}\n{cut(prompt, view.width)}")


def _flat(item: Difference) -> Row:
    row: Row = {"problem_id": item.problem_id, "prompt": item.prompt}
    for name, side in (("left", item.left), ("right", item.right)):
        row |= {f"{name}_{column}": value for column, value in asdict(side).items()}
    return row


def visible(text: str, *, keep: str = "") -> str:
    r"""Return text that a terminal shows and does not obey: control and format characters as ``\x1b`` or ``\u202e``.

    Args:
        text: of a model or a dataset.
        keep: characters that are left as they are.
    """
    return "".join(
        character
        if character in keep or not unicodedata.category(character).startswith("C")
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def cut(text: str, width: int) -> str:
    """Return visible text of at most ``width`` characters, an ellipsis for what is left out."""
    shown = visible(text)
    return shown if len(shown) <= width else shown[: width - 1] + "…"


def _csv(names: Sequence[str], rows: Sequence[Row]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=names, restval="")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {name: visible(value, keep="\n\t") if isinstance(value, str) else value for name, value in row.items()}
        )
    return buffer.getvalue()


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _share(side: Side) -> str:
    return "" if side.correct_share is None else f"{side.correct_share:.0%}"


def _steps(steps: Sequence[int]) -> str:
    return f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
