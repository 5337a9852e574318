"""``progrpo upload``."""

from __future__ import annotations

from pathlib import Path
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
Exit codes: 0 uploaded or there already, 2 usage, 5 API or authentication.

Example:

  progrpo upload pipelines/compiled/*.yaml --endpoint https://kubeflow.example.com/pipeline --namespace team
"""


def upload(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Compiled pipelines.")],
    endpoint: EndpointOption = None,
    namespace: NamespaceOption = None,
    version: Annotated[
        str | None, typer.Option(help="Of every FILE. Default: the package's version and its content's digest.")
    ] = None,
    token_file: TokenFileOption = None,
    cookie_file: CookieFileOption = None,
    ca_file: CaFileOption = None,
    retry_for: Annotated[
        str, typer.Option(metavar="TIME", help="How long the API may fail before this gives up.")
    ] = "5m",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Upload compiled pipelines as named versions. What is there already with the same content stays as it is."""
    import json
    from dataclasses import asdict

    from progrpo.errors import ConfigError
    from progrpo_pipelines.client.api import Api
    from progrpo_pipelines.client.connection import connect
    from progrpo_pipelines.client.errors import ApiError, ExitCode
    from progrpo_pipelines.client.package import load_package
    from progrpo_pipelines.client.uploading import upload as upload_package
    from progrpo_pipelines.client.uploading import version_name
    from progrpo_pipelines.durations import parse_duration

    patience_s = parse_duration(retry_for, name="--retry-for")
    packages = [load_package(file) for file in files]  # all are read before one is sent
    targets: dict[tuple[str, str], Path] = {}
    for package in packages:
        target = (package.name, version_name(package, version))
        if (other := targets.setdefault(target, package.path)) != package.path:
            raise ConfigError(
                f"{other} and {package.path} are both pipeline {package.name}, version {target[1]}. Give them apart, "
                f"with another --version each."
            )
    connection = connect(endpoint, namespace=namespace, token_file=token_file, cookie_file=cookie_file, ca_file=ca_file)
    api = Api(connection, patience_s=patience_s, notify=lambda message: typer.echo(f"warning: {message}", err=True))
    done = []
    try:
        for package in packages:
            done.append(upload_package(api, package, version))
            if not as_json:
                typer.echo(f"{done[-1].pipeline} {done[-1].version}: {done[-1].action}")
    except ApiError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(int(ExitCode.API)) from None
    finally:
        if as_json:
            typer.echo(json.dumps([asdict(item) for item in done], indent=2))
