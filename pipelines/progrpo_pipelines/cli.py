"""The ``progrpo`` command. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from progrpo import __version__
from progrpo.errors import ProGRPOError
from progrpo_components.errors import PipelineError
from progrpo_pipelines.commands import track
from progrpo_pipelines.commands.catalogue import algorithms, tasks
from progrpo_pipelines.commands.compare_runs import compare_runs
from progrpo_pipelines.commands.compile import compile_
from progrpo_pipelines.commands.doctor import EPILOG as DOCTOR_EPILOG
from progrpo_pipelines.commands.doctor import doctor
from progrpo_pipelines.commands.options import EXIT_FAILED, EXIT_USAGE
from progrpo_pipelines.commands.plan import plan
from progrpo_pipelines.commands.presets import presets
from progrpo_pipelines.commands.reap import reap
from progrpo_pipelines.commands.rollouts import rollouts
from progrpo_pipelines.commands.run import run
from progrpo_pipelines.commands.step import step
from progrpo_pipelines.commands.submit import EPILOG as SUBMIT_EPILOG
from progrpo_pipelines.commands.submit import submit
from progrpo_pipelines.commands.upload import EPILOG as UPLOAD_EPILOG
from progrpo_pipelines.commands.upload import upload
from progrpo_pipelines.extras import explain

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


app.command()(run)
app.command()(plan)
app.command()(step)
app.command("compile")(compile_)
app.command()(rollouts)
app.command("submit", epilog=SUBMIT_EPILOG)(submit)
app.command("upload", epilog=UPLOAD_EPILOG)(upload)
app.command("doctor", epilog=DOCTOR_EPILOG)(doctor)
app.command("compare-runs")(compare_runs)
app.command()(presets)
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
