"""``progrpo doctor``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from progrpo_pipelines.commands.submit import (
    CaFileOption,
    CookieFileOption,
    EndpointOption,
    NamespaceOption,
    TokenFileOption,
)

EPILOG = """
Exit codes: 0 all that is set up is well, 1 something is wrong or nothing is set up, 2 usage.

Examples:

  progrpo doctor

  progrpo doctor --endpoint https://kubeflow.example.com/pipeline --namespace team --s3 s3://models/team --write
"""
_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "dim"}


def doctor(
    namespace: NamespaceOption = None,
    endpoint: EndpointOption = None,
    token_file: TokenFileOption = None,
    cookie_file: CookieFileOption = None,
    ca_file: CaFileOption = None,
    s3: Annotated[
        str | None, typer.Option("--s3", metavar="URI", envvar="PROGRPO_S3_URI", help="s3://BUCKET/PREFIX to look at.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Also write, read and delete a small object below --s3.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find out what is wrong, and how to mend it: Kubeflow Pipelines, MLflow, S3, sandbox, Kubernetes, GPUs.

    Reads the environment that the pods get. What is not set up is skipped, and said.
    """
    import json
    from dataclasses import asdict

    from progrpo.errors import ConfigError
    from progrpo_pipelines.client.connection import Connection, connect
    from progrpo_pipelines.doctor.check import Check
    from progrpo_pipelines.doctor.cluster import check_kubernetes
    from progrpo_pipelines.doctor.services import check_mlflow, check_pipelines, check_s3, check_sandbox

    if write and s3 is None:
        raise ConfigError("--write needs a place to write to: give --s3 s3://BUCKET/PREFIX.")

    def connection() -> Connection:
        return connect(endpoint, namespace=namespace, token_file=token_file, cookie_file=cookie_file, ca_file=ca_file)

    checks: list[Check] = [
        *check_pipelines(connection),
        *check_mlflow(),
        *check_s3(s3, write=write),
        *check_sandbox(),
        *check_kubernetes(namespace),
    ]
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        _print(checks)
    looked_at = [check for check in checks if check.state != "skipped"]
    if not looked_at:
        typer.echo("error: nothing is set up here; give --endpoint, or run it where pods run.", err=True)
    raise typer.Exit(int(not looked_at or any(check.state == "failed" for check in looked_at)))


def _print(checks: list) -> None:  # type: ignore[type-arg]
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("", "State", "Found"):
        table.add_column(heading, overflow="fold")
    for check in checks:
        mend = f"\n[bold]To do:[/] {escape(check.mend)}" if check.mend else ""
        state = f"[{_COLOURS[check.state]}]{check.state}[/]"
        table.add_row(escape(check.name), state, escape(check.detail) + mend)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
