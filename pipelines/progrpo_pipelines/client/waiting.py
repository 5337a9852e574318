"""Follow a run until it ends, or until we should stop following it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from progrpo_pipelines.client.api import TRANSIENT, Api
from progrpo_pipelines.client.errors import ApiError
from progrpo_pipelines.client.nodes import children_of, iteration_of, last_attempt, node_names
from progrpo_pipelines.client.package import Task

FINAL = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
CANCELLING = "CANCELING"


@dataclass(frozen=True)
class TaskRow:
    """One task of a run, as the server reports it.

    Attributes:
        name: in the pipeline, with a number where it stands in a loop.
        title: what the UI calls it, with arm and seed where it stands in a loop over training runs.
        state: a V2beta1RuntimeState.
        elapsed_s: by the server's clock, which ours need not agree with; 0 while the task runs.
        error: the last error in its log.
        pods: names by which the server may find its log.
    """

    name: str
    title: str
    state: str
    elapsed_s: float
    error: str = ""
    pods: tuple[str, ...] = ()


def task_rows(run: Any, tasks: Iterable[Task], runs: Sequence[str] = ()) -> list[TaskRow]:
    """Return the tasks of a run, in the order in which they started.

    The server lists every node of the Argo workflow: drivers, DAGs, iterations and pods (``NodeStatuses`` in its
    ``workflow.go``). Those that are named like a task of the package are the tasks; the child of each is its pod.

    Args:
        run: a V2beta1Run.
        tasks: of the package.
        runs: what a loop goes over, in words.
    """
    known = {task.name: task for task in tasks}
    details = (run.run_details and run.run_details.task_details) or ()
    names = node_names(details)
    nodes = [node for node in details if node.display_name in known]
    nodes.sort(key=lambda node: (_seconds(node.start_time), node.display_name, node.task_id or ""))
    counts: Counter[str] = Counter()
    rows = []
    for node in nodes:
        task, child = known[node.display_name], next(iter(children_of(node)), "")
        counts[task.name] += 1
        place = iteration_of(names.get(child, ""))
        number = counts[task.name] if place is None else place + 1
        label = f" ({runs[place]})" if place is not None and place < len(runs) else f" #{number}"
        started, ended = _seconds(node.start_time), _seconds(node.end_time)
        rows.append(
            TaskRow(
                task.name + (f" #{number}" if task.repeated else ""),
                task.title + (label if task.repeated else ""),
                node.state or "PENDING",
                max(0.0, ended - started) if ended else 0.0,
                pods=_pods(last_attempt(child, names), task) if child else (),
            )
        )
    return rows


def _pods(node: str, task: Task) -> tuple[str, str]:
    """Names of a node's log: the node's id, and its pod's name (``RetrievePodName`` in KFP's ``workflow.go``)."""
    workflow, _, number = node.rpartition("-")
    return node, f"{workflow}-{task.template}-{number}"


def was_cancelled(run: Any) -> bool:
    """Whether a run ended because it was terminated; Argo has no such end, and the server calls it FAILED."""
    states = [status.state for status in run.state_history or ()]
    return run.state == "CANCELED" or CANCELLING in (run.state, *states[-2:-1])


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
