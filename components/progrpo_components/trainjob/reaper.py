"""Removes TrainJobs that nobody waits for: Kubeflow stops a run's own pods, but not what they made."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from progrpo.errors import ProGRPOError
from progrpo_components.trainjob.cluster import Cluster, ForbiddenError, Json
from progrpo_components.trainjob.spec import HEARTBEAT, OURS, WORKFLOW, WORKFLOW_UID
from progrpo_components.trainjob.status import condition, parse_time

logger = logging.getLogger(__name__)

RUNTIMES = "app.kubernetes.io/part-of=progrpo,app.kubernetes.io/component=training"
"""Label selector of the training runtimes that charts/progrpo made."""
RUNTIME_AGE = timedelta(hours=1)
"""How old a runtime must be: a reaper from before an upgrade may see the new one, and a launcher still name the old."""

_ENDED = ("Succeeded", "Failed", "Error")


@dataclass(frozen=True)
class Reaped:
    """What became of one TrainJob or training runtime."""

    name: str
    action: str
    """``deleted``, ``would be deleted``, ``kept`` or ``not deleted``."""
    reason: str
    error: bool = False


def reap(
    cluster: Cluster, *, max_heartbeat_age: timedelta, dry_run: bool = False, now: datetime | None = None
) -> list[Reaped]:
    """Delete the TrainJobs of progrpo whose pipeline run has ended, or whose launcher has gone.

    One that changes between the look and the deletion, as by a heartbeat, is kept. Others' TrainJobs are not looked at.

    Args:
        cluster: with the namespace.
        max_heartbeat_age: a launcher that runs tells so every minute.
        dry_run: delete nothing.
        now: the time; absent: now.

    Returns:
        What was done to each, by name.

    Raises:
        ProGRPOError: TrainJobs cannot be listed.
    """
    now = now or datetime.now(UTC)
    done = []
    for trainjob in sorted(cluster.list_trainjobs(OURS), key=lambda item: str(item["metadata"]["name"])):
        name = trainjob["metadata"]["name"]
        try:
            orphaned, reason = _judge(cluster, trainjob, max_heartbeat_age, now)
            if not orphaned:
                done.append(Reaped(name, "kept", reason))
            elif dry_run:
                done.append(Reaped(name, "would be deleted", reason))
            elif cluster.delete_trainjob(trainjob, unchanged=True):
                done.append(Reaped(name, "deleted", reason))
            else:
                done.append(Reaped(name, "kept", "it changed or went while it was looked at"))
        except ProGRPOError as error:
            done.append(Reaped(name, "not deleted", str(error), error=True))
    return done


def reap_runtimes(
    cluster: Cluster, current: str, *, dry_run: bool = False, now: datetime | None = None
) -> list[Reaped]:
    """Delete the training runtimes of earlier versions of the chart that no TrainJob names any more.

    Args:
        cluster: with the namespace.
        current: name of the one that the chart installs now.
        dry_run: delete nothing.
        now: the time; absent: now.

    Returns:
        What was done to each but the current one, by name.

    Raises:
        ProGRPOError: runtimes or TrainJobs cannot be listed, or one cannot be deleted.
    """
    now = now or datetime.now(UTC)
    runtimes = [found["metadata"] for found in cluster.list_runtimes(RUNTIMES)]
    used = {trainjob["spec"]["runtimeRef"]["name"] for trainjob in cluster.list_trainjobs()}  # after the runtimes
    done = []
    for name, created in sorted((found["name"], found["creationTimestamp"]) for found in runtimes):
        if name == current:
            continue
        if name in used:
            done.append(Reaped(name, "kept", "a TrainJob uses this training runtime"))
        elif now - parse_time(created) < RUNTIME_AGE:
            done.append(Reaped(name, "kept", "this training runtime is new"))
        else:
            if not dry_run:
                cluster.delete_runtime(name)
            action = "would be deleted" if dry_run else "deleted"
            done.append(Reaped(name, action, "no TrainJob uses this training runtime of an earlier version"))
    return done


def _judge(cluster: Cluster, trainjob: Json, max_age: timedelta, now: datetime) -> tuple[bool, str]:
    """Return whether nobody waits for a TrainJob, and why."""
    metadata = trainjob["metadata"]
    if "deletionTimestamp" in metadata:
        return False, "it is being deleted"
    annotations = metadata.get("annotations") or {}
    if (workflow := annotations.get(WORKFLOW)) is not None:
        exists, ended = _look_at(cluster, workflow, annotations.get(WORKFLOW_UID))
        if exists and (condition(trainjob, "Complete") or condition(trainjob, "Failed")):
            return (
                False,
                f"it has ended, and goes with its workflow {workflow}",
            )  # its owner; until then it has the logs
        if ended:
            return True, ended
    beat = annotations.get(HEARTBEAT) or metadata["creationTimestamp"]
    try:
        age = now - parse_time(beat)
    except ValueError:
        return True, f"its heartbeat {beat!r} is no time"
    if age > max_age:
        return True, f"its launcher gave no sign for {_shown(age)}"
    return False, f"its launcher gave a sign {_shown(age)} ago"


def _look_at(cluster: Cluster, name: str, uid: str | None) -> tuple[bool, str]:
    """Return whether a workflow exists, and how it ended: empty if it has not, or may not be looked at."""
    try:
        workflow = cluster.get_workflow(name)
    except ForbiddenError as error:
        logger.warning("going by the heartbeat alone: %s", error)
        return True, ""
    if workflow is None or (uid is not None and workflow["metadata"]["uid"] != uid):
        return False, f"its workflow {name} is gone"
    phase = (workflow.get("status") or {}).get("phase")
    return True, f"its workflow {name} has ended ({phase})" if phase in _ENDED else ""


def _shown(age: timedelta) -> str:
    seconds = max(0, round(age.total_seconds()))
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"
