"""``progrpo step``: one step, without Kubeflow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def step(
    name: Annotated[str, typer.Argument(metavar="NAME", help="prepare-dataset, import-checkpoint, train, ...")],
    config: Annotated[Path, typer.Option(help="YAML or JSON file with the step's settings and inputs.")],
    output: Annotated[Path, typer.Option(help="Directory to make; it must not hold anything yet.")],
) -> None:
    """Run one step, without Kubeflow."""
    import logging

    from progrpo_components.standalone import STEPS, run_step
    from progrpo_pipelines.packaging.presets import check_name, read_mapping

    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for package in ("progrpo", "progrpo_components"):  # not the libraries' own: boto3 says where it found credentials
        logging.getLogger(package).setLevel(logging.INFO)
    check_name("step", name, STEPS)
    manifest = run_step(name, read_mapping(config), output, source=str(config))
    typer.echo(f"{output}: {manifest.kind} {manifest.digest[:12]}")
