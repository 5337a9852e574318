"""``progrpo plan``: what a run would take."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from progrpo_pipelines.commands.options import (
    EXIT_USAGE,
    LOG_WIDTH,
    JsonOption,
    ParamsFileOption,
    PipelineArgument,
    PresetOption,
    SetOption,
)
from progrpo_pipelines.extras import need


def plan(
    pipeline: PipelineArgument,
    preset: PresetOption = None,
    settings: SetOption = None,
    params_file: ParamsFileOption = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="NAME", help="GPU it is to run on: h100-80g, a100-40g, ..., or its memory.")
    ] = None,
    tokens_per_second: Annotated[
        float | None,
        typer.Option(min=0.001, help="perf/tokens_per_s of an earlier run like it, for GPU-hours; none are invented."),
    ] = None,
    read_dataset: Annotated[
        bool, typer.Option("--dataset/--no-dataset", help="Make the dataset and render its prompts, or do not.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Show what a run would take, and what cannot work, without running it.

    Parameters are given as for run. Exits with 2 if something cannot work.
    """
    need("steps", "train")
    from rich.console import Console

    from progrpo_pipelines.packaging.presets import resolve
    from progrpo_pipelines.planning import plan as planning

    parameters = resolve(pipeline, preset=preset, params_file=params_file, settings=settings or ())
    made = planning.make_plan(
        pipeline, parameters, gpu=gpu, tokens_per_second=tokens_per_second, read_dataset=read_dataset
    )
    if as_json:
        typer.echo(json.dumps(planning.as_json(made), indent=2))
    else:
        from progrpo_pipelines.planning.tables import print_plan

        print_plan(made, Console(width=None if sys.stdout.isatty() else LOG_WIDTH))
    if made.findings.errors:
        raise typer.Exit(EXIT_USAGE)
