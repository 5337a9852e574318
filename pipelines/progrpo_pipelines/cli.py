"""The ``progrpo`` command. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from progrpo import __version__
from progrpo.errors import ConfigError, ProGRPOError
from progrpo_components.errors import PipelineError
from progrpo_components.settings import PIPELINES
from progrpo_pipelines.commands import track
from progrpo_pipelines.commands.catalogue import algorithms, tasks
from progrpo_pipelines.commands.compare_runs import compare_runs
from progrpo_pipelines.commands.doctor import EPILOG as DOCTOR_EPILOG
from progrpo_pipelines.commands.doctor import doctor
from progrpo_pipelines.commands.reap import reap
from progrpo_pipelines.commands.submit import EPILOG as SUBMIT_EPILOG
from progrpo_pipelines.commands.submit import submit
from progrpo_pipelines.commands.upload import EPILOG as UPLOAD_EPILOG
from progrpo_pipelines.commands.upload import upload
from progrpo_pipelines.extras import explain, need

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

_LOG_WIDTH = 120  # of the table where there is no terminal

_EXAMPLES = """
Examples:

  progrpo run compare --preset smoke

  progrpo run compare --preset smoke --set train.steps=20 --set 'seeds=[0]'

  progrpo run compare --preset smoke --runner docker

  progrpo plan compare --set checkpoint.uri=/models/qwen --gpu h100-80g

  progrpo run evaluate --set checkpoint.uri=/models/qwen --set dataset.source='{type: file, train_uri: math.jsonl}'

  progrpo step train --config train.yaml --output runs/grpo-0

  progrpo rollouts runs/grpo-0 runs/progrpo-0

  progrpo compile --all
"""

app = typer.Typer(
    help="Train reasoning LLMs with ProGRPO and prove whether it beat GRPO.",
    epilog=_EXAMPLES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(track.app, name="track")

PresetOption = Annotated[str | None, typer.Option("--preset", help="Defaults for a purpose; see: progrpo presets.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Field of the form, or a dotted setting; the value is YAML."),
]
ParamsFileOption = Annotated[Path | None, typer.Option(help="YAML or JSON file with parameters.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PipelineArgument = Annotated[str, typer.Argument(metavar="PIPELINE", help=f"One of {', '.join(sorted(PIPELINES))}.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"progrpo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
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
    console = Console(width=None if sys.stdout.isatty() else _LOG_WIDTH)
    try:
        result = run_pipeline(asked, directory, console=console, replace=replace, network=network)
    except KeyboardInterrupt:
        typer.echo("interrupted; every step was stopped.", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    print_summary(result, console)


@app.command()
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

        print_plan(made, Console(width=None if sys.stdout.isatty() else _LOG_WIDTH))
    if made.findings.errors:
        raise typer.Exit(EXIT_USAGE)


@app.command()
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


@app.command("compile")
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
        check_name("pipeline", pipeline, PIPELINES)
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


@app.command()
def rollouts(
    directories: Annotated[
        list[Path], typer.Argument(metavar="DIR [DIR2]", help="A training run; a second one to compare it with.")
    ],
    step: Annotated[str, typer.Option(metavar="N|first|last|all", help="Of those whose rollouts were kept.")] = "last",
    problem: Annotated[str | None, typer.Option(metavar="ID", help="Only this problem.")] = None,
    correct: Annotated[
        bool | None, typer.Option("--correct/--incorrect", help="Only right or only wrong ones.")
    ] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Largest first; by default as they were sampled.")
    ] = None,
    ascending: Annotated[bool, typer.Option("--ascending", help="Smallest first.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Rows that are shown; 20 in a table, all in JSON and CSV.")
    ] = None,
    width: Annotated[int, typer.Option(help="Characters of a prompt or completion that the table shows.")] = 60,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Show the rollouts a training run kept, or how those of two arms differ, problem by problem."""
    from rich.console import Console
    from rich.table import Table

    from progrpo_pipelines.rollouts import View, show

    if as_json and as_csv:
        raise ConfigError("give --json or --csv, not both.")
    form: Literal["table", "json", "csv"] = "json" if as_json else "csv" if as_csv else "table"
    view = View(form=form, sort=sort, ascending=ascending, limit=limit, width=width)
    shown = show(directories, step=step, problem=problem, correct=correct, view=view)
    if isinstance(shown, Table):
        Console(width=None if sys.stdout.isatty() else _LOG_WIDTH).print(shown)
    else:
        typer.echo(shown)


app.command("submit", epilog=SUBMIT_EPILOG)(submit)
app.command("upload", epilog=UPLOAD_EPILOG)(upload)
app.command("doctor", epilog=DOCTOR_EPILOG)(doctor)
app.command("compare-runs")(compare_runs)


@app.command()
def presets() -> None:
    """List the presets."""
    from progrpo_pipelines.packaging.presets import describe_preset, preset_names

    for name in preset_names():
        typer.echo(f"{name:<16} {describe_preset(name)}")


app.command()(algorithms)
app.command()(tasks)
app.command()(reap)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a mistake of the user's becomes one message and exit code 2, never a traceback."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="progrpo")
    except ModuleNotFoundError as error:
        if (text := explain(error)) is None:
            raise
        typer.echo(f"error: {text}", err=True)
        sys.exit(EXIT_USAGE)
    except ProGRPOError as error:
        typer.echo(f"error: {error}", err=True)
        users = not isinstance(error, PipelineError) or getattr(error, "user_error", False)
        sys.exit(EXIT_USAGE if users else EXIT_FAILED)


if __name__ == "__main__":
    main()
