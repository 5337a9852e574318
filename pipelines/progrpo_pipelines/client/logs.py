"""What the log of a task says: why it failed, and what it has put out.

The launcher of Kubeflow Pipelines, kfp's executor and the task share one log. A line of the launcher begins as glog
writes it (``F1201 10:00:00.000000       1 main.go:58] ...``), one of Argo with ``time=``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from progrpo_pipelines.client.api import Api, one_line
from progrpo_pipelines.client.errors import ApiError

_LAUNCHER = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ [\w.]+:\d+\] ")
_EXCEPTION = re.compile(r"(?:\w+\.)*(\w*(?:Error|Exception|Exit|Interrupt)\b(?:: .*)?)")
_NOISE = re.compile(r"time=|Error: exit status |\[KFP Executor [^]]* INFO\]")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_OUTPUT = "] ExecutorOutput: "
_SECRET = re.compile(
    r"(?i)([\w-]*(?:password|passwd|secret|token|api[_-]?key|access[_-]?key|authorization)[\w-]*[\"']?\s*[=:]\s*)"
    r"(?:bearer\s+|basic\s+)?[\"']?[^\s\"',;&}]+"
)


def read_log(api: Api, run_id: str, pods: Iterable[str]) -> str | None:
    """Return the end of a task's log; None if the server has none.

    Args:
        api: the server.
        run_id: of the run.
        pods: names to try: the node's id finds the archive of a pod that is gone, a pod's name finds the pod.
    """
    for pod in pods:
        try:
            text = api.log(run_id, pod)
        except ApiError:
            continue
        if text:
            return text
    return None


def last_error(text: str) -> str | None:
    """Return the last error in a log, on one line: an exception, else what the launcher says, else the last line."""
    lines = [_COLOUR.sub("", line).rstrip() for line in text.splitlines()]
    lines = [line for line in lines if line.strip() and not _NOISE.match(line)]
    own = [line for line in lines if not _LAUNCHER.match(line)]
    for i in range(len(own) - 1, -1, -1):
        if found := _EXCEPTION.fullmatch(own[i]):
            return one_line(" ".join([found[1], *own[i + 1 :]]))
    said = [line for line in lines if _LAUNCHER.match(line) and line[0] in "EF" and "exit status" not in line]
    if said:
        return one_line(_LAUNCHER.sub("", said[-1]))
    return one_line(own[-1]) if own else None


def executor_output(text: str) -> dict[str, Any]:
    """Return what the launcher says that the task has put out; empty where the log does not hold it.

    It is logged as JSON (``getExecutorOutputFile`` in KFP's ``launcher_v2.go``, 2.17.0), after all that the task
    wrote.
    """
    _, found, rest = text.rpartition(_OUTPUT)
    try:
        content = json.JSONDecoder().raw_decode(rest)[0] if found else {}
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def without_secrets(text: str, *secrets: str | None) -> str:
    """Return ``text`` without ``secrets``, passwords in addresses, and values of what is called like a secret."""
    from progrpo.redaction import redact

    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return _SECRET.sub(r"\1***", redact(text))
