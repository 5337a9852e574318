"""``progrpo track``: what steps had to say to MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="What steps had to say to MLflow.", no_args_is_help=True)

_EXAMPLE = """
Example:

  MLFLOW_TRACKING_URI=https://mlflow.example progrpo track sync runs/
"""


@app.callback()
def _group() -> None:
    pass


@app.command(epilog=_EXAMPLE)
def sync(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Output of a step or of a run; all below it is.")],
) -> None:
    """Deliver what MLflow did not take while the steps ran. Nothing arrives twice.

    Goes to MLFLOW_TRACKING_URI, by default to where the step would have logged. Exits with 1 if something is left.
    """
    import logging

    from progrpo_components.tracking.sync import sync as deliver

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    results = list(deliver(directory))
    for result in results:
        run = f"{result.name} ({result.run_id})" if result.run_id else result.name
        if result.problem is None:
            typer.echo(f"{result.path}: {result.num_lines} entries delivered to run {run}")
        else:
            typer.echo(f"{result.path}: kept; {run}: {result.problem}", err=True)
    if not results:
        typer.echo(f"{directory}: nothing is left to deliver")
    if any(result.problem is not None for result in results):
        raise typer.Exit(1)
