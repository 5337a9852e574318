"""Options, exit codes and widths that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from progrpo_pipelines.pipelines import NAMES

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

LOG_WIDTH = 120  # of the table where there is no terminal

PresetOption = Annotated[str | None, typer.Option("--preset", help="Defaults for a purpose; see: progrpo presets.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Field of the form, or a dotted setting; the value is YAML."),
]
ParamsFileOption = Annotated[Path | None, typer.Option(help="YAML or JSON file with parameters.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PipelineArgument = Annotated[str, typer.Argument(metavar="PIPELINE", help=f"One of {', '.join(NAMES)}.")]
