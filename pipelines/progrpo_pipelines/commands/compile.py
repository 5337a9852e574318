"""``progrpo compile``: packages for a cluster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from progrpo.errors import ConfigError
from progrpo_pipelines.commands.options import (
    PresetOption,
)
from progrpo_pipelines.pipelines import NAMES


def compile_(
    pipeline: Annotated[str | None, typer.Argument(metavar="[PIPELINE]", help="Default with --all: every one.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every pipeline, and each with every preset.")] = False,
    preset: PresetOption = None,
    output: Annotated[Path, typer.Option(help="Directory to write into.")] = Path("pipelines/compiled"),
    registry: Annotated[
        str | None, typer.Option(help="Registry and folder of the images.", envvar="PROGRPO_IMAGE_REGISTRY")
    ] = None,
    backend: Annotated[
        str, typer.Option(metavar="2.15|2.16|2.17", help="Kubeflow Pipelines that it must be accepted by.")
    ] = "2.17",
    kubernetes_manifests: Annotated[
        bool, typer.Option("--kubernetes-manifests", help="Write Pipeline and PipelineVersion to apply, for GitOps.")
    ] = False,
    queue: Annotated[str | None, typer.Option(metavar="NAME", help="Kueue's local queue for every pod.")] = None,
    priority_class: Annotated[
        str | None, typer.Option(metavar="NAME", help="Kueue's workload priority class; needs --queue.")
    ] = None,
    train_retries: Annotated[
        int, typer.Option(min=0, max=10, help="Times a failed training is tried again; needs train.checkpointing.")
    ] = 0,
) -> None:
    """Compile pipelines to the YAML that Kubeflow takes.

    Example: progrpo compile compare --preset single-gpu --backend 2.16 --queue research --output packages
    """
    from progrpo_pipelines.packaging.presets import check_name

    if every == (pipeline is not None):
        raise ConfigError("give either the name of a pipeline or --all.")
    if every and preset is not None:
        raise ConfigError("--all compiles every preset; give --preset with the name of a pipeline.")
    if pipeline is not None:
        check_name("pipeline", pipeline, NAMES)
    if registry is not None:
        os.environ["PROGRPO_IMAGE_REGISTRY"] = registry  # progrpo_components.images reads it when imported
    from progrpo_pipelines.packaging.compiling import compile_all, compile_pipeline
    from progrpo_pipelines.packaging.target import Target

    target = Target(backend=backend, queue=queue, priority_class=priority_class, train_retries=train_retries)
    if pipeline is None:
        paths = compile_all(output, target, kubernetes_manifests=kubernetes_manifests)
    else:
        paths = [
            compile_pipeline(pipeline, output, preset=preset, target=target, kubernetes_manifests=kubernetes_manifests)
        ]
    for path in paths:
        typer.echo(str(path))
