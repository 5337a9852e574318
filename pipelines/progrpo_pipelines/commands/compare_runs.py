"""``progrpo compare-runs``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from progrpo.errors import ConfigError

_EPILOG = """
Examples:

  progrpo compare-runs 4f1c...e2 9ab0...77 --baseline grpo

  progrpo compare-runs --experiment progrpo --filter "tags.`progrpo.run_name` IN ('monday', 'friday')"
"""


def compare_runs(
    runs: Annotated[list[str] | None, typer.Argument(metavar="[RUN_ID]...", help="Summary runs of MLflow.")] = None,
    experiment: Annotated[
        str | None, typer.Option(help="Take the runs of this experiment that --filter finds; with RUN_IDs: log there.")
    ] = None,
    query: Annotated[str, typer.Option("--filter", metavar="QUERY", help="MLflow's search syntax.")] = "",
    baseline: Annotated[str, typer.Option(help="Arm the others are subtracted from, or start.")] = "grpo",
    names: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="RUN_ID=ARM", help="Another name of a run's arm, if two arms had the same."),
    ] = None,
    unlike: Annotated[
        bool, typer.Option("--unlike", help="Compare although the evaluations differ in protocol; the report warns.")
    ] = False,
    log: Annotated[bool, typer.Option("--log/--no-log", help="Log the comparison to MLflow as well.")] = True,
    output: Annotated[Path, typer.Option(help="Directory to make; it must not hold anything yet.")] = Path(
        "runs/comparison"
    ),
) -> None:
    """Compare runs of MLflow, also of different pipeline runs, from the completions that they logged.

    MLFLOW_TRACKING_URI names the server. Runs measured on other problems are refused, and so are unlike protocols.
    """
    import hashlib
    import tempfile

    from progrpo.config import CompareConfig, parse
    from progrpo.storage import make_directory
    from progrpo_components import compare_runs as library
    from progrpo_components.steps import Tracking

    if not runs and experiment is None:
        raise ConfigError("give the ids of runs, or --experiment with --filter.")
    if runs and query:
        raise ConfigError("give either the ids of runs or --filter.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"--output {output} exists already; give another directory.")
    renamed = {}
    for text in names or []:
        run_id, equals, name = text.partition("=")
        if not equals:
            raise ConfigError(f"--name {text}: expected RUN_ID=ARM.")
        renamed[run_id] = name
    config = parse(CompareConfig, {"baseline": baseline}, source="--baseline")
    client = library.connect()
    run_ids = list(dict.fromkeys(runs)) if runs else library.find_runs(client, str(experiment), query)
    with tempfile.TemporaryDirectory(prefix="progrpo-runs-") as scratch:
        with typer.progressbar(run_ids, label="Fetching evaluations", file=sys.stderr) as bar:
            fetched = [library.fetch(client, run_id, Path(scratch)) for run_id in bar]
        tracking = None
        if log:
            key = hashlib.sha256("\n".join(sorted(run_ids)).encode()).hexdigest()[:12]
            tracking = Tracking(
                experiment=experiment or library.experiment_of(client, run_ids[0]),
                run_id=f"compare-runs-{key}",
                run_name=f"compare-runs {key}",
            )
        make_directory(output, name=f"--output {output}")
        library.compare_fetched(config, fetched, output, names=renamed, unlike=unlike, tracking=tracking)
    typer.echo((output / "summary.md").read_text(encoding="utf-8"))
    typer.echo(f"Report: {output / 'report.html'}")
