"""Show a run while it goes on: a live table on a terminal, a line for every change elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from progrpo_pipelines.client.waiting import TaskRow
from progrpo_pipelines.durations import duration

_COLOURS = {"SUCCEEDED": "green", "FAILED": "red", "CANCELED": "red", "RUNNING": "cyan"}
_SIGN_OF_LIFE_S = 600.0  # CI systems end a job that has printed nothing for some 10 to 60 minutes


Show = Callable[[Any, list[TaskRow], int], None]
"""Shows the run and its tasks; the last argument is the number of tasks in the pipeline."""


@contextmanager
def open_display(console: Console) -> Iterator[Show]:
    """Yield a live table for a terminal, lines for a log, also for one that wants colours (FORCE_COLOR)."""
    if not console.file.isatty():
        yield LineDisplay(console).show
        return
    with Live(console=console, auto_refresh=False) as live:
        yield lambda run, rows, total: live.update(_table(run, rows), refresh=True)


def _table(run: Any, rows: list[TaskRow]) -> Table:
    table = Table(box=None, pad_edge=False, title=f"{escape(run.display_name or run.run_id)}: {run.state}")
    for heading in ("Task", "State", "Time"):
        table.add_column(heading, justify="right" if heading == "Time" else "left")
    for row in rows:
        colour = _COLOURS.get(row.state, "default")
        elapsed = duration(row.elapsed_s) if row.elapsed_s else ""
        table.add_row(escape(row.title), f"[{colour}]{row.state}[/]", elapsed)
    return table


class LineDisplay:
    """One line for every change of state, and a sign of life now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._states: dict[str, str] = {}
        self._started = self._printed = time.monotonic()

    def show(self, run: Any, rows: list[TaskRow], total: int) -> None:
        """Print what has changed."""
        changes = [("run", run.state or "PENDING", 0.0), *((row.title, row.state, row.elapsed_s) for row in rows)]
        for name, state, elapsed_s in changes:
            if self._states.get(name) != state:
                self._states[name] = state
                self._print(f"{name}: {state}" + (f" after {duration(elapsed_s)}" if elapsed_s else ""))
        if time.monotonic() - self._printed >= _SIGN_OF_LIFE_S:
            ended = sum(row.state in ("SUCCEEDED", "SKIPPED") for row in rows)
            self._print(f"run: {run.state}, {ended} of {max(total, len(rows))} tasks have ended")

    def _print(self, text: str) -> None:
        self._printed = time.monotonic()
        seconds = self._printed - self._started
        self._console.print(f"[{seconds:7.1f} s] {text}", markup=False, highlight=False, soft_wrap=True)
