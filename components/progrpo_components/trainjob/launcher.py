"""The step that trains by a TrainJob: makes or adopts it, follows it, and ends as it ends."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

from progrpo.errors import ConfigError, ManifestError, ProGRPOError, StorageError, TrainingError
from progrpo.manifest import Manifest
from progrpo_components.errors import ClusterError
from progrpo_components.settings import TrainJobConfig
from progrpo_components.trainjob import status
from progrpo_components.trainjob.artifacts import published
from progrpo_components.trainjob.cluster import Cluster, Json
from progrpo_components.trainjob.job import WorkerJob
from progrpo_components.trainjob.logs import LogFollower
from progrpo_components.trainjob.spec import (
    HEARTBEAT,
    OUTPUT,
    RUN,
    Owner,
    TaskConfig,
    build_trainjob,
    choose_api,
    run_of,
    timestamp,
)

logger = logging.getLogger(__name__)

RUNTIME_VARIABLE = "PROGRPO_TRAINING_RUNTIME"
HEARTBEAT_S = 60.0
POLL_S = 5.0
GONE_S = 900.0
"""How long a TrainJob may take to go: its pods' grace period, in which they save a resume point, and some more."""


def launch(
    job: WorkerJob,
    config: TrainJobConfig,
    *,
    task: TaskConfig | None = None,
    cluster: Cluster | None = None,
    show: Callable[[str], None] = partial(print, flush=True),  # noqa: B008  # immutable
    poll_s: float = POLL_S,
) -> tuple[Manifest, str]:
    """Train by a TrainJob, and wait for it.

    A TrainJob of the same run is adopted, be it running or complete, and replaced if it failed: a step that is retried
    goes on with what an earlier attempt began. Whatever ends the step before the TrainJob has ended, SIGTERM included,
    deletes the TrainJob. If the step is killed, ``progrpo reap`` does.

    Args:
        job: what is trained.
        config: where and how.
        task: resources and placement of the nodes; see :class:`TaskConfig`.
        cluster: absent: the pod's own.
        show: takes each line of the first node's log.
        poll_s: time between two looks at it.

    Returns:
        The manifest of the training run, and its URI: an adopted TrainJob may have been given another.

    Raises:
        ProGRPOError: what a node failed with, with its type.
        ConfigError: no training runtime is named, or the cluster refuses the TrainJob.
        ClusterError: the cluster lacks something, or somebody deleted the TrainJob.
        TrainingError: it failed otherwise, or not in time.
        ManifestError: it ended well and left no whole training run.
    """
    cluster = Cluster.connect() if cluster is None else cluster
    fields = cluster.trainjob_fields() if config.api == "auto" else set()
    api = choose_api(config, fields)
    body = build_trainjob(
        job,
        config,
        namespace=cluster.namespace,
        runtime=find_runtime(config),
        api=api,
        task=task,
        owner=find_owner(cluster),
    )
    trainjob = _create_or_adopt(cluster, job, body, poll_s)
    uri = str(trainjob["metadata"]["annotations"].get(OUTPUT, job.output))
    log = LogFollower(cluster, show)
    try:
        error = _follow(cluster, trainjob, config, log, poll_s)
    except BaseException:
        log.stop()
        _delete_quietly(cluster, trainjob)  # first of all: a pod has seconds between SIGTERM and SIGKILL
        raise
    log.finish()
    if error is not None:
        raise error  # the TrainJob stays, with its pods and their logs
    manifest = published(uri, "training")
    if manifest is None:
        raise ManifestError(
            f"the TrainJob {job.name} is complete, but {uri} has no manifest. Check that launcher and nodes have the "
            f"same AWS_ENDPOINT_URL, and that nobody removed it."
        )
    return manifest, uri


def find_runtime(config: TrainJobConfig) -> str:
    """Return the name of the training runtime: the one that the run names, else the chart's.

    Raises:
        ConfigError: neither is there.
    """
    runtime = config.runtime or os.environ.get(RUNTIME_VARIABLE)
    if not runtime:
        raise ConfigError(
            f"no training runtime is named. Set trainjob.runtime, or have charts/progrpo installed in the namespace of "
            f"the run with its trainJobs, which gives {RUNTIME_VARIABLE} to the pods of pipelines."
        )
    return runtime


def find_owner(cluster: Cluster) -> Owner | None:
    """Return the workflow that this pod belongs to, by its owner reference; None outside a pipeline's pod."""
    name = os.environ.get("KFP_POD_NAME") or os.environ.get("HOSTNAME")
    pod = cluster.get_pod(name) if name else None
    for reference in (pod or {}).get("metadata", {}).get("ownerReferences") or ():
        if reference.get("kind") == "Workflow":
            return Owner(reference["name"], reference["uid"], reference["apiVersion"])
    logger.warning(
        "this is no pod of a workflow, so the TrainJob has no owner: only its heartbeat tells `progrpo reap` that "
        "it is still wanted."
    )
    return None


def _create_or_adopt(cluster: Cluster, job: WorkerJob, body: Json, poll_s: float) -> Json:
    deadline = time.monotonic() + GONE_S
    while True:
        created = cluster.create_trainjob(body)
        if created is not None:
            logger.info("created the TrainJob %s in the namespace %s", job.name, cluster.namespace)
            return created
        found = cluster.get_trainjob(job.name)
        if found is None:  # it went between the two calls
            continue
        annotations = found["metadata"].get("annotations") or {}
        if annotations.get(RUN) != run_of(job):
            raise ClusterError(
                f"there is a TrainJob {job.name} in the namespace {cluster.namespace} that is not of this run "
                f"({RUN}: {annotations.get(RUN)}). Delete or rename it."
            )
        going = "deletionTimestamp" in found["metadata"]
        if not going and status.condition(found, "Complete") and _is_published(annotations.get(OUTPUT, job.output)):
            logger.info("an earlier attempt's TrainJob %s is complete", job.name)
            return found
        ended = status.condition(found, "Failed") or status.condition(found, "Complete")
        if not going and not ended:
            logger.info("going on with the TrainJob %s of an earlier attempt", job.name)
            return found
        if not going:
            logger.info("replacing the TrainJob %s of an earlier attempt, which failed", job.name)
            cluster.delete_trainjob(found)
        if time.monotonic() > deadline:
            raise ClusterError(
                f"the TrainJob {job.name} of an earlier attempt was deleted, but is there after {GONE_S:.0f} s. See "
                f"its finalizers: `kubectl -n {cluster.namespace} get trainjob {job.name} -o yaml`."
            )
        time.sleep(poll_s)


def _is_published(uri: str) -> bool:
    try:
        return published(uri, "training") is not None
    except (ManifestError, StorageError) as error:
        logger.warning("%s", error)
        return False


def _follow(
    cluster: Cluster, trainjob: Json, config: TrainJobConfig, log: LogFollower, poll_s: float
) -> ProGRPOError | None:
    """Wait until the TrainJob has ended; return why it failed, or None.

    Raises:
        ClusterError: it cannot start, or is gone.
        TrainingError: it took too long; only where Trainer itself keeps no deadline.
    """
    name, uid = trainjob["metadata"]["name"], trainjob["metadata"]["uid"]
    heartbeat_at, shown = float("-inf"), ""
    seen: dict[str, float] = {}
    last_pods: dict[str, Json] = {}
    while True:
        current = cluster.get_trainjob(name)
        if current is None or current["metadata"]["uid"] != uid:
            raise ClusterError(
                f"somebody deleted the TrainJob {name}. If it was `progrpo reap`, its --max-heartbeat-age is too short "
                f"or this step stood still; else run the step again."
            )
        if time.monotonic() - heartbeat_at >= HEARTBEAT_S:
            heartbeat_at = time.monotonic()
            _beat(cluster, name)
        pods = cluster.list_pods(f"{status.JOBSET}={name}")
        last_pods |= {pod["metadata"]["name"]: pod for pod in pods}
        phase = status.phase_of(current, pods)
        if (first := status.first_node(pods)) is not None and status.has_started(first):
            log.follow(first["metadata"]["name"])
        state = f"{phase}, {status.describe(pods)}"
        if state != shown:
            logger.info("TrainJob %s: %s", name, state)
            shown = state
        if phase == "succeeded":
            return None
        if phase == "failed":
            return status.error_of_failure(current, list(last_pods.values()))
        events = cluster.list_warnings() if phase == "waiting" or len(pods) < config.num_nodes else []
        seen = _check_problems(name, list(status.problems(current, pods, events, config)), seen)
        _check_deadline(current, config)
        time.sleep(poll_s)


def _check_problems(name: str, problems: Sequence[status.Problem], seen: Mapping[str, float]) -> dict[str, float]:
    """Raise for a problem that lasts too long; return when each was first seen."""
    now = time.monotonic()
    for problem in problems:
        if now - seen.get(problem.key, now) >= problem.limit_s:
            raise ClusterError(f"the TrainJob {name} cannot start: {problem.text}")
        if problem.key not in seen:
            logger.warning("TrainJob %s: %s", name, problem.text)
    return {problem.key: seen.get(problem.key, now) for problem in problems}


def _check_deadline(trainjob: Json, config: TrainJobConfig) -> None:
    if config.deadline_s is None or "activeDeadlineSeconds" in trainjob["spec"]:
        return
    created = status.parse_time(trainjob["metadata"]["creationTimestamp"])
    if (datetime.now(UTC) - created).total_seconds() > config.deadline_s:
        raise TrainingError(
            f"the TrainJob {trainjob['metadata']['name']} was not done within {config.deadline_s} s "
            f"(trainjob.deadline_s) and is deleted. {status.GO_ON}"
        )


def _beat(cluster: Cluster, name: str) -> None:
    try:
        cluster.annotate_trainjob(name, {HEARTBEAT: timestamp(datetime.now(UTC))}, patience_s=0)
    except ProGRPOError as error:
        logger.warning("no heartbeat: %s", error)


def _delete_quietly(cluster: Cluster, trainjob: Json) -> None:
    name = trainjob["metadata"]["name"]
    try:
        cluster.delete_trainjob(trainjob, patience_s=5)
    except ProGRPOError as error:
        logger.warning("the TrainJob %s was not deleted; `progrpo reap` will: %s", name, error)
    else:
        logger.info("deleted the TrainJob %s", name)
