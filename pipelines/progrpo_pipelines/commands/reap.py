"""``progrpo reap``: delete TrainJobs that no pipeline run waits for, and training runtimes that none uses."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Annotated

import typer

from progrpo.errors import ConfigError, ProGRPOError
from progrpo_pipelines.durations import parse_duration

EXIT_FAILED = 1
MIN_AGE = timedelta(minutes=2)


def reap(
    namespace: Annotated[str, typer.Option(metavar="NS", help="Namespace of the pipeline runs.")],
    max_heartbeat_age: Annotated[
        str, typer.Option(metavar="TIME", help="A launcher tells every minute that it runs: 90s, 15m, 2h.")
    ] = "15m",
    runtime: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The chart's training runtime now: delete earlier ones without a TrainJob."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted, and delete nothing.")] = False,
) -> None:
    """Delete TrainJobs of progrpo whose pipeline run has ended or vanished, or whose launcher gives no sign of life.

    Others' TrainJobs are not touched. Exits with 1 if one could not be looked at or deleted.

    Example: progrpo reap --namespace team-a --dry-run
    """
    age = _age(max_heartbeat_age)
    from progrpo_components.trainjob import reaper
    from progrpo_components.trainjob.cluster import Cluster

    try:
        cluster = Cluster.connect(namespace, patience_s=60)
        done = reaper.reap(cluster, max_heartbeat_age=age, dry_run=dry_run)
        runtimes = [] if runtime is None else reaper.reap_runtimes(cluster, runtime, dry_run=dry_run)
    except ProGRPOError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(EXIT_FAILED)
    for item in done + runtimes:
        typer.echo(f"{item.name}: {item.action}: {item.reason}", err=item.error)
    counts = ", ".join(f"{sum(item.action == action for item in done)} {action}" for action in _actions(dry_run))
    typer.echo(f"{len(done)} TrainJobs of progrpo in {namespace}: {counts}")
    if any(item.error for item in done):
        sys.exit(EXIT_FAILED)


def _actions(dry_run: bool) -> tuple[str, ...]:
    return ("would be deleted" if dry_run else "deleted", "kept", "not deleted")


def _age(text: str) -> timedelta:
    age = timedelta(seconds=parse_duration(text, name="--max-heartbeat-age"))
    if age < MIN_AGE:
        raise ConfigError(f"--max-heartbeat-age is {text!r}. Give at least 2m: launchers give a sign every minute.")
    return age
