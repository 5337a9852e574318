"""Run a pipeline on this machine, in processes of this Python or in containers: what ``progrpo run`` does."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from progrpo.config import FileSource
from progrpo.errors import ConfigError, StorageError
from progrpo.manifest import write_atomic
from progrpo.redaction import redact
from progrpo.storage import localize, make_directory
from progrpo_components import images
from progrpo_components.errors import PipelineError
from progrpo_components.reporting import PROGRESS_DIR
from progrpo_components.settings import PreparePipeline
from progrpo_components.steps import RUN_ID_VARIABLE, RUN_NAME_VARIABLE
from progrpo_components.tracking import SWITCH
from progrpo_components.tracking.server import server_uri
from progrpo_pipelines.local.docker_runner import ContainerSettings, Network, check_images, inputs_of, stop_containers
from progrpo_pipelines.local.progress import ProgressReader, StepRow, open_display
from progrpo_pipelines.local.tracking_server import artifacts_of, is_tracked, needs_server
from progrpo_pipelines.local.worker import PARAMETERS_NAME
from progrpo_pipelines.packaging.presets import Request

LOG_NAME = "pipeline.log"
_POLL_S = 0.2
_GRACE_S = 5.0
_ERROR_LINES = 12


class StepFailedError(PipelineError):
    """A step failed; ``user_error`` tells a mistake in the input from a fault of ours or of the machine."""

    def __init__(self, message: str, user_error: bool = False) -> None:
        super().__init__(message, user_error)
        self.user_error = user_error

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class RunResult:
    """A pipeline run that ended well."""

    directory: Path
    tracking_uri: str
    wall_time_s: float
    steps: tuple[StepRow, ...]

    def output_of(self, step: str) -> Path | None:
        """The directory that the last step of this name wrote."""
        return next((row.output for row in reversed(self.steps) if row.step == step), None)


def run_pipeline(
    request: Request,
    directory: Path,
    *,
    console: Console,
    replace: bool = False,
    network: Network | None = None,
) -> RunResult:
    """Run a pipeline with kfp.local and show its progress.

    Args:
        request: the pipeline and its settings.
        directory: where everything the run writes goes; must be absent or empty.
        console: where progress is shown.
        replace: delete an earlier run that lies in ``directory``.
        network: of the containers that the steps run in; None: they are processes of this Python.

    Raises:
        ConfigError: ``directory`` holds something else, or Docker or an image is missing.
        StorageError: an input that is not there, or a ``directory`` that cannot be written.
        StepFailedError: a step failed, with that step's own message; the steps still running are ended.
        KeyboardInterrupt: interrupted; every process that was started is gone.
    """
    directory = directory.resolve()
    _check_inputs(request.settings)
    if network is not None:
        check_images((images.CPU, images.GPU))
    _prepare_directory(directory, replace=replace)
    environment = _environment(directory)
    arguments = request.arguments
    containers = None
    if network is not None:
        arguments, readable = inputs_of(arguments)
        containers = _containers(environment, network, readable, console, _written_by(request.settings))
        containers.write(directory)
    asked = {"pipeline": request.pipeline, "preset": request.preset, "parameters": arguments}
    write_atomic(directory / PARAMETERS_NAME, json.dumps(asked, indent=2))
    where = "" if containers is None else f", in containers of {images.CPU} and {images.GPU}"
    console.print(f"Running {request.pipeline} in {directory}{where}", markup=False, highlight=False, soft_wrap=True)
    started = time.monotonic()
    reader = ProgressReader(Path(environment[PROGRESS_DIR]), in_containers=containers is not None)
    try:
        with _worker(directory, environment, containers) as worker, open_display(console) as show:
            while worker.poll() is None:
                show(reader.rows())
                _raise_failure(reader, directory)
                time.sleep(_POLL_S)
            show(reader.rows())
            _raise_failure(reader, directory)
            if worker.returncode:
                raise _failure_in_log(directory / LOG_NAME)
    finally:
        shutil.rmtree(environment["TMPDIR"], ignore_errors=True)  # downloads of a step that was stopped lie there too
    return RunResult(directory, environment["MLFLOW_TRACKING_URI"], time.monotonic() - started, tuple(reader.rows()))


def _containers(
    environment: dict[str, str],
    network: Network,
    readable: tuple[str, ...],
    console: Console,
    writable: tuple[str, ...] = (),
) -> ContainerSettings:
    """Settle how containers reach MLflow: over the network, and its local artifacts through a mount."""
    if needs_server(environment) and network == "none":
        environment[SWITCH] = "off"
        console.print("Without a network nothing is logged to MLflow; every number is in the artifacts.")
    elif needs_server(environment):
        artifacts = artifacts_of(environment["MLFLOW_TRACKING_URI"])
        make_directory(artifacts)
        writable = (*writable, str(artifacts))
    elif is_tracked(environment) and not (uri := environment["MLFLOW_TRACKING_URI"]).startswith("http"):
        raise ConfigError(
            f"containers reach MLflow over HTTP, and MLFLOW_TRACKING_URI is {redact(uri)}. Give the URL of an MLflow "
            f"server on that database, leave it out, or set {SWITCH}=off."
        )
    return ContainerSettings(environment[RUN_ID_VARIABLE], network, readable, writable)


def _written_by(parameters: PreparePipeline) -> tuple[str, ...]:
    """The directories that a run writes to beside its artifacts, made if need be: Docker would make them as root."""
    train = getattr(parameters, "train", None)
    if train is None or train.checkpointing is None or train.checkpointing.uri.startswith("s3://"):
        return ()
    (path,) = inputs_of({"uri": train.checkpointing.uri})[1][:1]
    make_directory(Path(path), name=f"train.checkpointing.uri {path}")
    return (path,)


def _check_inputs(parameters: PreparePipeline) -> None:
    """Find what is missing on this machine before anything starts; S3 is asked by the step that reads from it."""
    if getattr(parameters, "trainjob", None) is not None:
        raise ConfigError(
            "trainjob is set: several nodes train on a cluster. On this machine train.distributed.num_processes is all "
            "there is; give --set trainjob=null and as many as fit."
        )
    uris: dict[str, str | None] = {"checkpoint.uri": parameters.checkpoint.uri}
    if isinstance(source := parameters.dataset.source, FileSource):
        uris |= {"dataset.source.train_uri": source.train_uri, "dataset.source.eval_uri": source.eval_uri}
    for key, uri in uris.items():
        if uri is not None and not uri.startswith("s3://"):
            try:
                localize(uri, Path())  # takes it where it lies
            except StorageError as error:
                raise StorageError(f"{key}: {error}") from None


def _is_run(directory: Path) -> bool:
    """Tell a run of ours from a folder of the user's, which --replace must never delete."""
    try:
        asked = json.loads((directory / PARAMETERS_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(asked, dict) and {"pipeline", "parameters"} <= set(asked) <= {"pipeline", "preset", "parameters"}


def _prepare_directory(directory: Path, *, replace: bool) -> None:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        if not _is_run(directory):
            raise ConfigError(f"--output {directory} exists and is not a run of progrpo; give another directory.")
        if not replace:
            raise ConfigError(f"--output {directory} holds an earlier run; give another directory, or --replace.")
        shutil.rmtree(directory)
    make_directory(directory, name=f"--output {directory}")


def _environment(directory: Path) -> dict[str, str]:
    """What the tasks of a local run find in their environment; they share one machine and this Python."""
    server_uri()  # where it is named by a variable of ours, the one below has it then
    defaults = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{directory.parent / 'mlflow.db'}",
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",  # kfp.local starts independent tasks in the order of a set of names
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    temporary = directory / "tmp"  # kfp leaves a folder there for every task
    programs = temporary / "bin"
    programs.mkdir(parents=True)
    python = programs / "python3"  # what the worker has tasks started with; a link would lose the virtual environment
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    return {
        **defaults,
        **os.environ,
        PROGRESS_DIR: str(directory / "progress"),
        RUN_ID_VARIABLE: f"{directory.name}-{time.time_ns():x}",
        RUN_NAME_VARIABLE: directory.name,
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(temporary),
    }


@contextmanager
def _worker(
    directory: Path, environment: Mapping[str, str], containers: ContainerSettings | None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start the worker in a process group of its own; on the way out it and its tasks are gone, whatever happened."""
    command = [sys.executable, "-m", "progrpo_pipelines.local.worker", str(directory)]
    with (directory / LOG_NAME).open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield process
    finally:
        signal.signal(signal.SIGTERM, previous)
        interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave half of it running
        try:
            if containers is not None:
                stop_containers(containers.run)
            _end_group(process)
            if containers is not None:
                stop_containers(containers.run)  # the worker may have started one more
        finally:
            signal.signal(signal.SIGINT, interrupted)


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for sent in (signal.SIGTERM, signal.SIGKILL):
        if _group_exists(process):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, sent)
        deadline = time.monotonic() + _GRACE_S
        while _group_exists(process) and time.monotonic() < deadline:
            time.sleep(0.05)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _group_exists(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # reaps the worker, which would keep its group alive as a zombie
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _raise_failure(reader: ProgressReader, directory: Path) -> None:
    for row in reader.rows():
        if row.state == "failed":
            raise StepFailedError(f"{row.label} failed: {row.error}", row.user_error)
    for row in reader.killed():
        raise StepFailedError(
            f"{row.label} failed: its process ended without an error of its own, so something killed it; most often "
            f"that is the system, out of memory. Make the step smaller, or see {directory / LOG_NAME}."
        )


def _failure_in_log(log: Path) -> StepFailedError:
    """The last traceback of the log, for a task that failed before it could report."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    starts = [i for i, line in enumerate(lines) if line.strip() == "Traceback (most recent call last):"]
    if not starts:
        return StepFailedError("\n".join([f"the pipeline failed; the end of {log}:", *lines[-_ERROR_LINES:]]))
    block = lines[starts[-1] :]
    indent = len(block[0]) - len(block[0].lstrip())
    end = next((i for i, line in enumerate(block) if i and line[indent : indent + 1] != " "), len(block) - 1)
    error = block[end].strip()
    ours = re.match(r"progrpo\.errors\.\w+: (.*)", error)
    if ours:
        return StepFailedError(ours[1], user_error=True)
    return StepFailedError("\n".join([*block[max(0, end - _ERROR_LINES) : end], error, f"The whole log: {log}"]))
