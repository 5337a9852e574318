"""Follow a run until it ends, or until we should stop following it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from progrpo_pipelines.client.api import TRANSIENT, Api
from progrpo_pipelines.client.errors import ApiError
from progrpo_pipelines.client.package import Task

FINAL = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


@dataclass(frozen=True)
class TaskRow:
    """One task of a run, as the server reports it.

    Attributes:
        name: in the pipeline, with a number where it stands in a loop.
        title: what the UI calls it.
        state: a V2beta1RuntimeState.
        elapsed_s: by the server's clock, which ours need not agree with; 0 while the task runs.
        error: what the server says went wrong.
    """

    name: str
    title: str
    state: str
    elapsed_s: float
    error: str = ""


def task_rows(run: Any, tasks: Iterable[Task]) -> list[TaskRow]:
    """Return the tasks of a run, in the order in which they started.

    The server lists every node of the Argo workflow: drivers, DAGs, iterations and pods (``NodeStatuses`` in its
    ``workflow.go``). Those that are named like a task of the package are the tasks.
    """
    known = {task.name: task for task in tasks}
    nodes = [node for node in (run.run_details and run.run_details.task_details) or () if node.display_name in known]
    nodes.sort(key=lambda node: (_seconds(node.start_time), node.display_name, node.task_id or ""))
    counts: Counter[str] = Counter()
    rows = []
    for node in nodes:
        counts[node.display_name] += 1
        number = f" #{counts[node.display_name]}" if known[node.display_name].repeated else ""
        started, ended = _seconds(node.start_time), _seconds(node.end_time)
        rows.append(
            TaskRow(
                node.display_name + number,
                known[node.display_name].title + number,
                node.state or "PENDING",
                max(0.0, ended - started) if ended else 0.0,
                " ".join(((node.error and node.error.message) or "").split()),
            )
        )
    return rows


def _seconds(time: datetime | None) -> float:
    """Seconds since 1970; 0 for none, which Go writes as the year 1."""
    return max(0.0, time.timestamp()) if time is not None and time.year > 1 else 0.0


class WaitTimeoutError(Exception):
    """The run has not ended in the time that we were to wait."""


def follow(api: Api, run: Any, *, deadline: float, poll_s: float) -> Iterator[Any]:
    """Yield the run whenever it was looked at; the last one yielded has ended.

    Args:
        api: the server.
        run: as it was last seen.
        deadline: until when to wait, by ``api.clock``, which no server has a say in.
        poll_s: seconds between looks.

    Raises:
        WaitTimeoutError: it has not ended in time.
        ApiError: the server fails for longer than our patience.
    """
    while True:
        yield run
        if run.state in FINAL:
            return
        left = deadline - api.clock()
        if left <= 0:
            raise WaitTimeoutError
        api.sleep(min(poll_s, left))
        try:
            run = api.call(api.runs.run_service_get_run, run.run_id, patience_s=min(api.patience_s, left))
        except ApiError as error:
            if left < api.patience_s and (error.status is None or error.status in TRANSIENT):
                raise WaitTimeoutError from error  # our time was over before our patience
            raise
