"""The process in which kfp.local runs a pipeline: ``python -m progrpo_pipelines.local.worker RUN_DIRECTORY``.

A process of its own, because kfp.local prints and sets up logging globally and cannot be stopped from within; here all
of it lands in one log, and whoever started the process can end its whole group.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from progrpo_pipelines.local.docker_runner import ContainerSettings, ContainerTasks, stop_containers
from progrpo_pipelines.local.tracking_server import tracking_server
from progrpo_pipelines.packaging.compiling import load_pipeline
from progrpo_pipelines.packaging.target import Target

PARAMETERS_NAME = "parameters.json"
ARTIFACTS_NAME = "artifacts"


def main(directory: Path) -> int:
    """Run the pipeline that ``parameters.json`` names; the artifacts go below ``artifacts/``.

    Returns:
        0, or 1 if a task failed; the task's own process has reported why.
    """
    settings = ContainerSettings.read(directory)
    threading.Thread(target=_end_with_parent, args=(settings,), daemon=True).start()
    request = json.loads((directory / PARAMETERS_NAME).read_text(encoding="utf-8"))
    pipeline = load_pipeline(request["pipeline"], request["preset"], Target(trainjobs=False))
    # Absolute: a task resolves its paths in its own working directory.
    root = str((directory / ARTIFACTS_NAME).resolve())
    try:
        with _processes(root) if settings is None else _containers(root, directory, settings):
            pipeline(**request["parameters"])
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _processes(root: str) -> nullcontext[None]:
    from kfp import local

    # kfp.local writes sys.executable, unquoted, over every "python3" of a task's command, those in our paths included.
    # So it gets the same word; PATH leads to this Python.
    sys.executable = "python3"
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=root, raise_on_error=True)
    return nullcontext()


@contextmanager
def _containers(root: str, directory: Path, settings: ContainerSettings) -> Iterator[None]:
    from kfp import local
    from kfp.local import docker_task_handler

    from progrpo_components import images

    local.init(local.DockerRunner(), pipeline_root=root, raise_on_error=True)
    with tracking_server(os.environ, directory) as tracking:
        tasks = ContainerTasks(directory, settings, {**os.environ, **tracking}, gpu_image=images.GPU)
        docker_task_handler.run_docker_container = tasks.run
        yield


def _end_with_parent(settings: ContainerSettings | None) -> None:
    """End the whole process group when ``progrpo run`` is gone, however it went: its end of the pipe closes then."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    try:
        if settings is not None:
            stop_containers(settings.run)
    finally:
        os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
