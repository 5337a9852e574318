"""``progrpo submit``."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from progrpo.errors import ConfigError
from progrpo_pipelines.pipelines import NAMES

if TYPE_CHECKING:
    from progrpo_pipelines.client.package import Package
    from progrpo_pipelines.client.submitting import Ending

EndpointOption = Annotated[
    str | None,
    typer.Option(metavar="URL", envvar="KFP_ENDPOINT", help="Of Kubeflow Pipelines; a UI has the path /pipeline."),
]
NamespaceOption = Annotated[
    str | None,
    typer.Option("--namespace", "-n", envvar="KFP_NAMESPACE", help="Of the user, where Kubeflow has several."),
]
TokenFileOption = Annotated[
    Path | None, typer.Option(envvar="KFP_TOKEN_FILE", help="File with a bearer token; read again for every request.")
]
CookieFileOption = Annotated[
    Path | None, typer.Option(envvar="KFP_COOKIE_FILE", help="File with name=value of a logged-in session (Dex).")
]
CaFileOption = Annotated[Path | None, typer.Option(envvar="KFP_CA_FILE", help="PEM file of a CA of your own.")]

EPILOG = """
Exit codes: 0 succeeded, 1 failed, 2 usage, 3 time-out, 4 cancelled, 5 API or authentication, 130 interrupted and left.

Examples:

  progrpo submit compare --preset smoke --experiment nightly --wait --timeout 2h

  progrpo submit compare-smoke.yaml --experiment nightly --set experiment=nightly --wait --junit result.xml
"""


class OnInterrupt(StrEnum):
    """What happens to the run when the command is interrupted."""

    ask = "ask"
    terminate = "terminate"
    leave = "leave"


class OnTimeout(StrEnum):
    """What happens to the run when the time is over."""

    terminate = "terminate"
    leave = "leave"


def submit(
    target: Annotated[str, typer.Argument(metavar="PIPELINE|FILE", help=f"{', '.join(NAMES)}, or a compiled package.")],
    experiment: Annotated[str, typer.Option("--experiment", "-e", help="KFP experiment; made if there is none.")],
    run_name: Annotated[str | None, typer.Option("--run-name", "-r", help="Default: PIPELINE-TIME-RANDOM.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Of a PIPELINE: defaults for a purpose; see: progrpo presets.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Field of the form; PIPELINE: or a dotted key."),
    ] = None,
    params_file: Annotated[Path | None, typer.Option(help="YAML or JSON file with parameters.")] = None,
    backend: Annotated[
        str | None, typer.Option(metavar="2.15|2.16|2.17", help="Of a PIPELINE: what must accept it. [default: 2.17]")
    ] = None,
    queue: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of a PIPELINE: Kueue's local queue for every pod.")
    ] = None,
    priority_class: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of a PIPELINE: Kueue's workload priority class; needs --queue.")
    ] = None,
    train_retries: Annotated[
        int | None, typer.Option(min=0, max=10, help="Of a PIPELINE: times a failed training is tried again.")
    ] = None,
    endpoint: EndpointOption = None,
    namespace: NamespaceOption = None,
    token_file: TokenFileOption = None,
    cookie_file: CookieFileOption = None,
    ca_file: CaFileOption = None,
    upload: Annotated[
        bool, typer.Option("--upload", help="Run an uploaded version of the pipeline; it is uploaded if need be.")
    ] = False,
    version: Annotated[
        str | None, typer.Option("--pipeline-version", help="Name of that version. Default: after its content.")
    ] = None,
    pipeline_root: Annotated[str | None, typer.Option(metavar="URI", help="Where the run's artifacts go.")] = None,
    service_account: Annotated[str | None, typer.Option(help="That the run's pods run as.")] = None,
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Let tasks take results of earlier runs.")] = True,
    mlflow_experiment: Annotated[
        str | None, typer.Option(metavar="NAME", help="For the MLflow plugin of Kubeflow Pipelines 2.17 or later.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--idempotency-key", metavar="KEY|git", help="Same key and request: take up that run again."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Follow the run; the exit code is its verdict.")] = False,
    timeout: Annotated[
        str | None, typer.Option("--timeout", "-t", metavar="TIME", help="How long to wait: 90s, 15m, 36h.")
    ] = None,
    poll: Annotated[str, typer.Option(metavar="TIME", help="Between looks at the run.")] = "10s",
    retry_for: Annotated[
        str, typer.Option(metavar="TIME", help="How long the API may fail before this gives up.")
    ] = "5m",
    on_interrupt: Annotated[
        OnInterrupt,
        typer.Option(
            "--exit-on-interrupt",
            help="What becomes of the run at Ctrl-C or SIGTERM; ask: left where there is no terminal.",
        ),
    ] = OnInterrupt.ask,
    on_timeout: Annotated[
        OnTimeout, typer.Option("--exit-on-timeout", help="What becomes of the run when the time is over.")
    ] = OnTimeout.leave,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON; progress goes to stderr.")] = False,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a JUnit file.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the run to create; send nothing.")] = False,
) -> None:
    """Submit a pipeline to Kubeflow and, with --wait, give its verdict by exit code.

    The server is found and told who you are by options or variables: KFP_ENDPOINT, KFP_NAMESPACE, KFP_TOKEN_FILE or
    KFP_EXISTING_TOKEN, KFP_COOKIE_FILE or KFP_COOKIE, KFP_CA_FILE; in a cluster by the pod's service account.
    """
    from rich.console import Console

    from progrpo.storage import make_directory
    from progrpo_pipelines.client.api import Api
    from progrpo_pipelines.client.connection import connect
    from progrpo_pipelines.client.interrupts import Interrupts
    from progrpo_pipelines.client.starting import Request, idempotency_key
    from progrpo_pipelines.client.submitting import Submission, Waiting
    from progrpo_pipelines.durations import parse_duration

    if version is not None and not upload:
        raise ConfigError("--pipeline-version names an uploaded version: give --upload as well.")
    if upload and not cache:
        raise ConfigError("--no-cache changes the package, but --upload runs an uploaded one: give one of the two.")
    if (timeout is not None or junit is not None or on_timeout == OnTimeout.terminate) and not wait:
        raise ConfigError("--timeout, --exit-on-timeout and --junit are about the end of the run: give --wait as well.")
    limit_s = float("inf") if timeout is None else parse_duration(timeout, name="--timeout")
    poll_s, patience_s = parse_duration(poll, name="--poll"), parse_duration(retry_for, name="--retry-for")
    compiling = {
        "backend": backend,
        "queue": queue,
        "priority_class": priority_class,
        "train_retries": train_retries,
    }
    given = {name: value for name, value in compiling.items() if value is not None}
    package, arguments = _read(target, preset, settings or [], params_file, given)
    request = Request(
        package if cache else package.without_cache(),
        arguments,
        experiment,
        name=run_name,
        upload=upload,
        version=version,
        pipeline_root=pipeline_root,
        service_account=service_account,
        mlflow_experiment=mlflow_experiment,
        idempotency_key=None if key is None else idempotency_key(key),
    )
    if dry_run:
        typer.echo(_as_text(request.body("<experiment id>", run_name or "<generated>")))
        return
    connection = connect(endpoint, namespace=namespace, token_file=token_file, cookie_file=cookie_file, ca_file=ca_file)
    # Where there is no terminal, nothing is folded: CI logs wrap by themselves.
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 1000)

    def notify(message: str) -> None:
        console.print(f"warning: {message}", markup=False, highlight=False, soft_wrap=True)

    if local := sorted(image for image in package.images if image.startswith("localhost/")):
        notify(f"a cluster cannot pull {local[0]}: compile with --registry, or set PROGRPO_IMAGE_REGISTRY.")
    if junit is not None:
        make_directory(junit.absolute().parent, name="the folder of --junit")
    with Interrupts() as interrupts:
        api = Api(connection, patience_s=patience_s, notify=notify, shield=interrupts.shield, check=interrupts.check)
        waiting = Waiting(wait, limit_s, poll_s, on_timeout.value, lambda: _ask(on_interrupt))
        submission = Submission(api, request, waiting, console, interrupts)
        result = submission()
        cards: list[str] = []
        summary = os.environ.get("GITHUB_STEP_SUMMARY")
        if summary and submission.run is not None and wait:
            from progrpo_pipelines.client.artifacts import read_cards

            cards = read_cards(submission.run, package, pipeline_root, notify)
    _report(result, cards, as_json=as_json, junit=junit, summary=summary)
    raise typer.Exit(int(result.exit_code))


def _read(
    target: str, preset: str | None, settings: list[str], params_file: Path | None, compiling: dict[str, Any]
) -> tuple[Package, dict[str, Any]]:
    """Return the package and its checked arguments; ``target`` is a file, or the name of a pipeline to compile."""
    from progrpo_pipelines.client.package import load_package

    path = Path(target)
    if target not in NAMES and (path.suffix or len(path.parts) > 1 or path.is_file()):
        if preset is not None:
            raise ConfigError("--preset belongs to the name of a pipeline; a package has its defaults compiled in.")
        if compiling:
            option = next(iter(compiling)).replace("_", "-")
            raise ConfigError(f"--{option} belongs to the name of a pipeline; a package is compiled already.")
        package = load_package(path)
        return package, package.arguments(settings, params_file)

    import tempfile

    from progrpo_pipelines.packaging.compiling import compile_pipeline
    from progrpo_pipelines.packaging.presets import check_name, request
    from progrpo_pipelines.packaging.target import Target

    check_name("pipeline", target, NAMES)
    asked = request(target, preset=preset, params_file=params_file, settings=settings)
    with tempfile.TemporaryDirectory(prefix="progrpo-submit-") as directory:
        package = load_package(compile_pipeline(target, Path(directory), preset=preset, target=Target(**compiling)))
    return package, package.check_arguments(asked.arguments)


def _as_text(body: Any) -> str:
    import json

    import kfp_server_api

    return json.dumps(kfp_server_api.ApiClient().sanitize_for_serialization(body), indent=2)


def _ask(choice: OnInterrupt) -> Ending | None:
    if choice is OnInterrupt.terminate:
        return "terminate"
    if choice is OnInterrupt.leave or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return "leave"
    try:
        answer = typer.prompt("Terminate the run, leave it going, or continue to wait? [t/l/c]", default="c", err=True)
    except (KeyboardInterrupt, typer.Abort):
        return "leave"
    return {"t": "terminate", "l": "leave"}.get(answer.strip().lower()[:1])  # type: ignore[return-value]


def _report(result: Any, cards: list[str], *, as_json: bool, junit: Path | None, summary: str | None) -> None:
    from progrpo_pipelines.client.result import step_summary, write_junit

    typer.echo(f"{result.exit_code.name.lower()}: {result.message}", err=True)
    try:
        if junit is not None:
            write_junit(result, junit)
        if summary:
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(step_summary(result, cards))
    except OSError as error:  # the verdict stands, whatever becomes of its reports
        typer.echo(f"warning: a report was not written: {error}", err=True)
    if as_json:
        typer.echo(result.as_json())
    elif result.url:
        typer.echo(result.url)
