"""The process in which kfp.local runs a pipeline: ``python -m progrpo_pipelines.local_worker RUN_DIRECTORY``.

A process of its own, because kfp.local prints and sets up logging globally and cannot be stopped from within; here all
of it lands in one log, and whoever started the process can end its whole group.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

from progrpo_pipelines.compiling import load_pipeline

PARAMETERS_NAME = "parameters.json"
ARTIFACTS_NAME = "artifacts"


def main(directory: Path) -> int:
    """Run the pipeline that ``parameters.json`` names; the artifacts go below ``artifacts/``.

    Returns:
        0, or 1 if a task failed; the task's own process has reported why.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    request = json.loads((directory / PARAMETERS_NAME).read_text(encoding="utf-8"))
    pipeline = load_pipeline(request["pipeline"])

    from kfp import local

    # kfp.local writes sys.executable, unquoted, over every "python3" of a task's command, those in our paths included.
    # So it gets the same word; PATH leads to this Python.
    sys.executable = "python3"
    # Absolute: a task resolves its paths in its own working directory.
    root = (directory / ARTIFACTS_NAME).resolve()
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(root), raise_on_error=True)
    try:
        pipeline(**request["parameters"])
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _end_with_parent() -> None:
    """End the whole process group when ``progrpo run`` is gone, however it went: its end of the pipe closes then."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
