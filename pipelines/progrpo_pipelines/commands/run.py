"""``progrpo run``: run a pipeline on this machine."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from progrpo.errors import ConfigError
from progrpo_pipelines.commands.options import (
    EXIT_INTERRUPTED,
    LOG_WIDTH,
    ParamsFileOption,
    PipelineArgument,
    PresetOption,
    SetOption,
)
from progrpo_pipelines.extras import need


def run(
    pipeline: PipelineArgument,
    preset: PresetOption = None,
    settings: SetOption = None,
    params_file: ParamsFileOption = None,
    output: Annotated[Path | None, typer.Option(help="Default: runs/PIPELINE-TIME.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Delete an earlier run in --output first.")] = False,
    runner: Annotated[
        Literal["process", "docker"], typer.Option(help="What a step is: a process of this Python, or a container.")
    ] = "process",
    image_registry: Annotated[
        str | None,
        typer.Option(
            metavar="REGISTRY", help="With docker: registry and folder of the images.", envvar="PROGRPO_IMAGE_REGISTRY"
        ),
    ] = None,
    network: Annotated[
        Literal["host", "none"] | None,
        typer.Option(help="With docker: what the containers reach, host by default.", show_default=False),
    ] = None,
) -> None:
    """Run a pipeline on this machine, without a cluster.

    Later sources win: defaults, --preset, --params-file, --set.
    """
    need("compile", "mlflow", "steps", "train")
    if runner == "process" and network is not None:
        raise ConfigError("--network is of containers; give it with --runner docker.")
    if runner == "docker":
        network = network or "host"
    if image_registry is not None:
        os.environ["PROGRPO_IMAGE_REGISTRY"] = image_registry  # progrpo_components.images reads it when imported
    from rich.console import Console

    from progrpo_pipelines.local.running import run_pipeline
    from progrpo_pipelines.local.summary import print_summary
    from progrpo_pipelines.packaging.presets import request

    asked = request(pipeline, preset=preset, params_file=params_file, settings=settings or ())
    directory = output or Path("runs") / f"{pipeline}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)
    try:
        result = run_pipeline(asked, directory, console=console, replace=replace, network=network)
    except KeyboardInterrupt:
        typer.echo("interrupted; every step was stopped.", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    print_summary(result, console)
