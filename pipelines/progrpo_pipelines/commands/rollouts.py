"""``progrpo rollouts``: read what a training run sampled."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from progrpo.errors import ConfigError
from progrpo_pipelines.commands.options import (
    LOG_WIDTH,
    JsonOption,
)


def rollouts(
    directories: Annotated[
        list[Path], typer.Argument(metavar="DIR [DIR2]", help="A training run; a second one to compare it with.")
    ],
    step: Annotated[str, typer.Option(metavar="N|first|last|all", help="Of those whose rollouts were kept.")] = "last",
    problem: Annotated[str | None, typer.Option(metavar="ID", help="Only this problem.")] = None,
    correct: Annotated[
        bool | None, typer.Option("--correct/--incorrect", help="Only right or only wrong ones.")
    ] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Largest first; by default as they were sampled.")
    ] = None,
    ascending: Annotated[bool, typer.Option("--ascending", help="Smallest first.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Rows that are shown; 20 in a table, all in JSON and CSV.")
    ] = None,
    width: Annotated[int, typer.Option(help="Characters of a prompt or completion that the table shows.")] = 60,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Show the rollouts a training run kept, or how those of two arms differ, problem by problem."""
    from rich.console import Console
    from rich.table import Table

    from progrpo_pipelines.local.rollouts import View, show

    if as_json and as_csv:
        raise ConfigError("give --json or --csv, not both.")
    form: Literal["table", "json", "csv"] = "json" if as_json else "csv" if as_csv else "table"
    view = View(form=form, sort=sort, ascending=ascending, limit=limit, width=width)
    shown = show(directories, step=step, problem=problem, correct=correct, view=view)
    if isinstance(shown, Table):
        Console(width=None if sys.stdout.isatty() else LOG_WIDTH).print(shown)
    else:
        typer.echo(shown)
