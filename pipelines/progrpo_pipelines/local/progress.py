"""Read the progress files of a run's steps and show them: a live table on a terminal, lines elsewhere."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from progrpo_pipelines.durations import duration

_LINE_EVERY_S = 15.0
_TENTH_EVERY_S = 3.0  # tenths that pass faster are not worth a line each


@dataclass
class StepRow:
    """What is known of one step; see :func:`progrpo_components.reporting.reported` for the lines it is read from."""

    step: str
    arm: str | None = None
    seed: int | None = None
    state: str = "running"
    pid: int | None = None
    done: int = 0
    total: int = 0
    elapsed_s: float = 0.0
    numbers: dict[str, float] = field(default_factory=dict)
    error: str = ""
    user_error: bool = False
    output: Path | None = None

    @property
    def label(self) -> str:
        """Step, arm and seed, as named in messages."""
        details = [self.arm or "", "" if self.seed is None else f"seed {self.seed}"]
        joined = ", ".join(part for part in details if part)
        return f"{self.step} ({joined})" if joined else self.step

    @property
    def left_s(self) -> float | None:
        """Seconds left at the pace so far; None if that is not known yet."""
        if self.state != "running" or not self.done:
            return None
        return self.elapsed_s / self.done * (self.total - self.done)

    def update(self, line: dict[str, Any]) -> None:
        """Take one line of the step's file."""
        fixed = {"step", "arm", "seed", "state", "pid", "done", "total", "elapsed_s", "error", "user_error", "output"}
        for key in ("state", "pid", "done", "total", "elapsed_s", "error", "user_error"):
            if key in line:
                setattr(self, key, line[key])
        if line.get("output"):
            self.output = Path(line["output"])
        self.numbers.update({key: value for key, value in line.items() if key not in fixed})


class ProgressReader:
    """Follow every progress file of a directory.

    Args:
        directory: of the run's progress.
        in_containers: each step has a folder of its own there, and its process no id that is known here.
    """

    def __init__(self, directory: Path, *, in_containers: bool = False) -> None:
        self._directory, self._in_containers = directory, in_containers
        self._rows: dict[Path, StepRow] = {}
        self._read: dict[Path, int] = {}

    def rows(self) -> list[StepRow]:
        """Read what was written since the last call; the steps in the order in which they started."""
        for path in sorted(self._directory.glob("*/*.jsonl" if self._in_containers else "*.jsonl")):
            for line in self._new_lines(path):
                if path not in self._rows:
                    self._rows[path] = StepRow(line["step"], line.get("arm"), line.get("seed"))
                self._rows[path].update(line)
        return list(self._rows.values())

    def _new_lines(self, path: Path) -> Iterator[dict[str, Any]]:
        with path.open("rb") as file:
            file.seek(self._read.get(path, 0))
            block = file.read()
        whole = block[: block.rfind(b"\n") + 1]  # the writer may be in the middle of a line
        self._read[path] = self._read.get(path, 0) + len(whole)
        yield from map(json.loads, whole.splitlines())

    def killed(self) -> list[StepRow]:
        """The steps whose process is gone although they never reported an end."""
        if self._in_containers:
            return []  # docker_runner reports their end
        suspects = [row for row in self.rows() if row.state == "running" and row.pid and not _is_alive(row.pid)]
        self.rows()  # a step may report its end and exit between the two looks
        return [row for row in suspects if row.state == "running"]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def open_display(console: Console) -> Iterator[Callable[[list[StepRow]], None]]:
    """Yield what shows the state of every step: a table drawn in place on a terminal, lines in a log."""
    if not console.is_terminal:
        yield LineDisplay(console).show
        return
    with Live(console=console, refresh_per_second=4) as live:
        yield lambda rows: live.update(_table(rows))


def _table(rows: list[StepRow]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("Step", "Arm", "Seed", "", "Done", "Reward", "Entropy", "Time", "Left"):
        table.add_column(heading, justify="left" if heading in ("Step", "Arm", "") else "right")
    for row in rows:
        bar: Any = ProgressBar(total=row.total or 1, completed=row.done, width=24, pulse=not row.total)
        if row.state != "running":
            bar = {"finished": "[green]finished[/]", "failed": "[red]failed[/]"}.get(row.state, row.state)
        table.add_row(
            row.step,
            escape(row.arm or ""),
            "" if row.seed is None else str(row.seed),
            bar,
            f"{row.done}/{row.total}" if row.total else "",
            *(f"{row.numbers[key]:.3f}" if key in row.numbers else "" for key in ("reward", "entropy")),
            duration(row.elapsed_s) if row.elapsed_s else "",
            "" if row.left_s is None else duration(row.left_s),
        )
    return table


class LineDisplay:
    """One line when a step starts or ends, and while it moves at every tenth of it or every few seconds."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock, self._started = console, clock, clock()
        self._shown: dict[str, tuple[str, int, int, float]] = {}  # label -> state, tenth, done, when

    def show(self, rows: list[StepRow]) -> None:
        """Print a line for every step of which there is something new."""
        now = self._clock()
        for row in rows:
            tenth = 10 * row.done // row.total if row.total else 0
            state, last_tenth, last_done, when = self._shown.get(row.label, ("", 0, 0, now))
            moved = row.done > last_done and now - when >= (_LINE_EVERY_S if tenth == last_tenth else _TENTH_EVERY_S)
            if row.state == state and not moved:
                continue
            self._shown[row.label] = (row.state, tenth, row.done, now)
            self._console.print(self._line(row, now), markup=False, highlight=False, soft_wrap=True)

    def _line(self, row: StepRow, now: float) -> str:
        text = f"[{now - self._started:6.1f} s] {row.label}: "
        if not row.total:
            return text + ("started" if row.state == "running" else row.state)
        text += "" if row.state == "running" else f"{row.state}, "
        text += f"{row.done}/{row.total}"
        text += "".join(f", {key} {row.numbers[key]:.3f}" for key in ("reward", "entropy") if key in row.numbers)
        return text if row.left_s is None else f"{text}, {duration(row.left_s)} left"
