"""How a pipeline run ended: what is known of it, and what Kubeflow says of it.

On a cluster the last task hears the state of the block before it in the words of ML Metadata, and never an error text
(Kubeflow Pipelines 2.17.0, backend/src/v2/driver/resolve.go, resolveInputParameter). That state is looked at only when
the container of a task ends by itself (backend/src/v2/metadata/client.go, UpdateDAGExecutionsState): after a kill and
after Terminate it is RUNNING, and before 2.17 after a nested block, too. kfp.local has words of its own.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from progrpo_components.errors import ClusterError
from progrpo_components.tracking.runs import FoundRun

logger = logging.getLogger(__name__)

Outcome = Literal["succeeded", "failed", "cancelled", "unknown"]

SAID: Mapping[str, Outcome] = {
    "COMPLETE": "succeeded",
    "CACHED": "succeeded",
    "FAILED": "failed",
    "CANCELED": "cancelled",
    # of kfp.local
    "SUCCEEDED": "succeeded",
    "CANCELLED": "cancelled",
}
"""What Kubeflow's words mean; RUNNING, and any other, says nothing of the end."""


class Ending(NamedTuple):
    """How a pipeline run ended.

    Attributes:
        outcome: of the run.
        failed: tasks that failed, as far as is known.
        stopped: tasks that were stopped in the middle, likewise.
    """

    outcome: Outcome
    failed: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()


def judge(pipeline: str, state: str, runs: Sequence[FoundRun], workflow: Mapping[str, Any] | None) -> Ending:
    """Judge by the workflow, then by Kubeflow's word, and where that says nothing by the MLflow runs.

    Args:
        pipeline: its name.
        state: Kubeflow's word.
        runs: the MLflow runs of the pipeline run.
        workflow: that the pipeline run is, if it could be read.
    """
    failed = _failed_tasks(workflow) if workflow is not None else ()
    failed_runs = tuple(run.label for run in runs if run.status == "FAILED")
    stopped = tuple(run.label for run in runs if run.arm and run.status in ("RUNNING", "KILLED"))
    outcome: Outcome
    if workflow is not None and workflow.get("spec", {}).get("activeDeadlineSeconds") == 0:
        return Ending("cancelled", (), stopped)  # what Terminate sets: backend/src/common/util/execution_spec.go
    if failed:
        outcome = "failed"
    elif state.upper() in SAID:
        outcome = SAID[state.upper()]
    elif failed_runs:
        outcome = "failed"
    else:
        last = "evaluate" if pipeline == "evaluate" else "compare"
        done = any(run.task == last and run.status == "FINISHED" for run in runs)
        outcome = "succeeded" if done else "unknown"
    if outcome == "succeeded":
        return Ending(outcome)  # what failed or was stopped on the way was made good by another attempt
    return Ending(outcome, failed + failed_runs, stopped)


def read_workflow(name: str) -> dict[str, Any] | None:
    """Return the workflow that this pod belongs to; None outside a cluster, or where its account may not read it."""
    if not name or "KUBERNETES_SERVICE_HOST" not in os.environ:
        return None
    from progrpo_components.trainjob.cluster import Cluster

    try:
        return Cluster.connect(patience_s=0).get_workflow(name)
    except ClusterError as error:
        logger.info("the workflow %s is not read, so MLflow and Kubeflow's word say how the run ended: %s", name, error)
        return None


def _failed_tasks(workflow: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the tasks whose last attempt failed.

    The node of a container is called ``WORKFLOW.root.TASK...TASK.executor``, with ``(N)`` for an attempt of several and
    ``iteration-iterations(I:ITEM)`` where a loop is passed (backend/src/v2/compiler/argocompiler: dag.go and
    container.go).
    """
    nodes = list((workflow.get("status", {}).get("nodes") or {}).values())
    phases = {node["name"]: node.get("phase") for node in nodes}
    failed = []
    for node in nodes:
        name = re.sub(r"\(\d+\)$", "", node["name"])
        if node.get("type") != "Pod" or node.get("phase") not in ("Failed", "Error") or phases.get(name) == "Succeeded":
            continue
        *_, task = name.removesuffix(".executor").split(".")
        loop = re.search(r"-iterations\((\d+):", name)
        failed.append(f"{task} of training run {int(loop[1]) + 1}" if loop else task)
    return tuple(dict.fromkeys(failed))
