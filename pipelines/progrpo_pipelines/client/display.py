"""Show a run while it goes on: a live table on a terminal, a line for every change elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from progrpo_pipelines.client.waiting import TaskRow
from progrpo_pipelines.durations import duration

_COLOURS = {"SUCCEEDED": "green", "FAILED": "red", "CANCELED": "red", "RUNNING": "cyan"}
_SIGN_OF_LIFE_S = 600.0  # CI systems end a job that has printed nothing for some 10 to 60 minutes


class Display(Protocol):
    """Shows what was seen of a run."""

    def __enter__(self) -> Display:
        """Start showing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop showing; what was shown stays."""

    def show(self, run: Any, rows: list[TaskRow], total: int) -> None:
        """Show the run and its tasks; ``total`` is the number of tasks in the pipeline."""


def open_display(console: Console) -> Display:
    """Return a live table for a terminal, lines for a log, also for one that wants colours (FORCE_COLOR)."""
    return LiveDisplay(console) if console.file.isatty() else LineDisplay(console)


class LiveDisplay:
    """A table that is drawn again in place."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Display:
        """Start drawing."""
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last table on the screen."""
        self._live.stop()

    def show(self, run: Any, rows: list[TaskRow], total: int) -> None:
        """Draw the table."""
        table = Table(box=None, pad_edge=False, title=f"{escape(run.display_name or run.run_id)}: {run.state}")
        for heading in ("Task", "State", "Time"):
            table.add_column(heading, justify="right" if heading == "Time" else "left")
        for row in rows:
            colour = _COLOURS.get(row.state, "default")
            table.add_row(
                escape(row.title), f"[{colour}]{row.state}[/]", duration(row.elapsed_s) if row.elapsed_s else ""
            )
        self._live.update(table, refresh=True)


class LineDisplay:
    """One line for every change of state, and a sign of life now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._states: dict[str, str] = {}
        self._started = self._printed = time.monotonic()

    def __enter__(self) -> Display:
        """Nothing to start."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open."""

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
