"""What a TrainJob, its pods and its events say: where it stands, what holds it up, and why it failed. No calls here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from progrpo.errors import ProGRPOError, TrainingError
from progrpo_components.settings import TrainJobConfig
from progrpo_components.trainjob.cluster import Json
from progrpo_components.trainjob.job import NODE, error_of_termination

INDEX = "batch.kubernetes.io/job-completion-index"
JOBSET = "jobset.sigs.k8s.io/jobset-name"

GO_ON = "Raise it and run again: training goes on from its last resume point if train.checkpointing is set."
STUCK_S = 60
"""How long a container may fail to start before it counts: an image registry may be away for a moment."""
EVENT_AGE = timedelta(minutes=10)
_CREATION_FAILED = ("FailedCreate", "JobCreationFailed", "TrainJobResourcesCreationFailed")
_NEVER_STARTS = {
    "ErrImageNeverPull": "is not on the node, and its pull policy is Never. Load it there, or change the policy.",
    "InvalidImageName": "has a malformed name. Correct trainjob.image or the training runtime.",
    "ImagePullBackOff": "cannot be pulled. Check its name and digest, the registry, and imagePullSecrets.",
    "ErrImagePull": "cannot be pulled. Check its name and digest, the registry, and imagePullSecrets.",
    "CreateContainerConfigError": "cannot be configured. Check the secrets and config maps that the pod names.",
    "CreateContainerError": "cannot be started. Check the training runtime's mounts and security context.",
    "RunContainerError": "cannot be started. Check the command and the runtime class of the training runtime.",
}

Phase = Literal["waiting", "queued", "running", "succeeded", "failed"]


@dataclass(frozen=True)
class Problem:
    """Something that holds a TrainJob up."""

    key: str
    """Equal for what is the same problem at the next look."""
    text: str
    limit_s: float
    """How long it may last."""


def phase_of(trainjob: Json, pods: Sequence[Json]) -> Phase:
    """Return where a TrainJob stands."""
    if condition(trainjob, "Complete"):
        return "succeeded"
    if condition(trainjob, "Failed"):
        return "failed"
    if condition(trainjob, "Suspended") or trainjob["spec"].get("suspend"):
        return "queued"
    return "running" if any(pod.get("status", {}).get("phase") == "Running" for pod in pods) else "waiting"


def condition(trainjob: Json, kind: str) -> Json | None:
    """Return a condition if it is true."""
    for found in trainjob.get("status", {}).get("conditions") or ():
        if found.get("type") == kind and found.get("status") == "True":
            return dict(found)
    return None


def describe(pods: Sequence[Json]) -> str:
    """Return a line on pods, such as ``2 pods: 1 Running, 1 ContainerCreating``."""
    states = Counter(_waiting_reason(pod) or str(pod.get("status", {}).get("phase", "Unknown")) for pod in pods)
    listed = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return f"{len(pods)} pods: {listed}" if pods else "no pods yet"


def problems(trainjob: Json, pods: Sequence[Json], events: Sequence[Json], config: TrainJobConfig) -> Iterator[Problem]:
    """Yield what holds a TrainJob up.

    Args:
        trainjob: that has not ended.
        pods: of it.
        events: of type Warning, of the whole namespace.
        config: with the limits.
    """
    name = trainjob["metadata"]["name"]
    yield from _refused(trainjob, events)
    for pod in pods:
        yield from _unschedulable(pod, config.pending_timeout_s)
        yield from _cannot_start(pod)
    phase = phase_of(trainjob, pods)
    if phase == "queued" and config.queue_timeout_s is not None:
        text = (
            f"it waits in Kueue's queue {config.queue}. See `kubectl get workloads`, or raise trainjob.queue_timeout_s."
        )
        yield Problem("queued", text, config.queue_timeout_s)
    elif phase == "waiting" and not pods:
        text = (
            f"no pod was made. Check that Kubeflow Trainer's and JobSet's controllers run: "
            f"`kubectl describe trainjob,jobset {name}`."
        )
        yield Problem("no pods", text, config.pending_timeout_s)


def error_of_failure(trainjob: Json, pods: Sequence[Json]) -> ProGRPOError:
    """Return why a TrainJob failed: what a node left behind, else what Kubernetes knows.

    Args:
        trainjob: that has failed.
        pods: of it, as they were last seen; a failed Job deletes those that still ran.
    """
    name, namespace = trainjob["metadata"]["name"], trainjob["metadata"]["namespace"]
    found = condition(trainjob, "Failed") or {}
    if found.get("reason") == "DeadlineExceeded":
        limit = trainjob["spec"].get("activeDeadlineSeconds")
        return TrainingError(f"the TrainJob {name} was not done within {limit} s (trainjob.deadline_s). {GO_ON}")
    ends = sorted(((node, end) for pod in pods for node, end in _ends(pod)), key=lambda item: item[0])
    told = [(node, error) for node, end in ends if (error := error_of_termination(end.get("message", ""))) is not None]
    for node, error in sorted(told, key=lambda item: type(item[1]) is TrainingError):  # a user's error is the cause
        return type(error)(f"node {node} of the TrainJob {name}: {error}")
    for node, end in ends:
        if end.get("reason") == "OOMKilled":
            return TrainingError(
                f"node {node} of the TrainJob {name} was killed for want of memory. Give the nodes more memory, or "
                f"lower train.micro_batch_size or train.engine.batch_size."
            )
    codes = "".join(f" Node {node} ended with exit code {end.get('exitCode')}." for node, end in ends)
    return TrainingError(
        f"the TrainJob {name} failed: {found.get('message') or found.get('reason') or 'no reason given'}.{codes} "
        f"See `kubectl -n {namespace} describe trainjob {name}` and `kubectl -n {namespace} logs -l {JOBSET}={name}`."
    )


def first_node(pods: Sequence[Json]) -> Json | None:
    """Return the newest pod of the first node; None before there is one."""
    firsts = [pod for pod in pods if node_of(pod) == 0]
    return max(firsts, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), default=None)


def node_of(pod: Json) -> int:
    """Return the number of the node that a pod is."""
    metadata = pod["metadata"]
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    return int(labels.get(INDEX, annotations.get(INDEX, 0)))


def has_started(pod: Json) -> bool:
    """Whether the pod's training container runs or ran, so that it has a log."""
    return any("running" in state or "terminated" in state for state in _states(pod))


def parse_time(text: str) -> datetime:
    """Read a time of the Kubernetes API."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)


def _states(pod: Json) -> Iterator[Json]:
    for status in pod.get("status", {}).get("containerStatuses") or ():
        if status.get("name") == NODE:
            yield status.get("state") or {}


def _waiting_reason(pod: Json) -> str | None:
    return next((str(state["waiting"].get("reason")) for state in _states(pod) if "waiting" in state), None)


def _ends(pod: Json) -> Iterator[tuple[int, Json]]:
    for state in _states(pod):
        if (end := state.get("terminated")) and end.get("exitCode") != 0:
            yield node_of(pod), end


def _cannot_start(pod: Json) -> Iterator[Problem]:
    for status in pod.get("status", {}).get("containerStatuses") or ():
        waiting = (status.get("state") or {}).get("waiting") or {}
        if (reason := waiting.get("reason")) in _NEVER_STARTS:
            detail = f" ({reason}: {_one_line(waiting['message'])})" if waiting.get("message") else f" ({reason})"
            what = f"image {status.get('image')}" if "Image" in reason else f"container {status.get('name')}"
            text = f"the {what} of {_name(pod)} {_NEVER_STARTS[reason]}{detail}"
            yield Problem(f"{pod['metadata']['name']} does not start", text, STUCK_S)


def _unschedulable(pod: Json, limit_s: float) -> Iterator[Problem]:
    for found in pod.get("status", {}).get("conditions") or ():
        if found.get("type") == "PodScheduled" and found.get("reason") == "Unschedulable":
            text = (
                f"no node takes {_name(pod)}: {_one_line(found.get('message', ''))} Ask for GPUs that the cluster has "
                f"(gpu type and count, node selector, tolerations), or raise trainjob.pending_timeout_s."
            )
            yield Problem(f"{pod['metadata']['name']} has no node", text, limit_s)


def _refused(trainjob: Json, events: Sequence[Json]) -> Iterator[Problem]:
    """Yield pods or jobs of this TrainJob that the API server does not let its controllers create."""
    metadata = trainjob["metadata"]
    # Of an earlier attempt with the same name, or before the pods were there and were restarted.
    oldest = max(parse_time(metadata["creationTimestamp"]), datetime.now(UTC) - EVENT_AGE)
    for event in events:
        last = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"]
        message = _one_line(event.get("message", ""))
        if (
            not event["involvedObject"].get("name", "").startswith(metadata["name"])
            or event.get("reason") not in _CREATION_FAILED
            or parse_time(last) < oldest
        ):
            continue
        if "exceeded quota" in message:
            mend = "Wait for quota, ask for less, or raise the ResourceQuota."
        elif "violates PodSecurity" in message:
            mend = "Correct the training runtime; docs/trainjob.md has one that passes the restricted standard."
        elif "forbidden" in message or "denied the request" in message:
            mend = "Ask the cluster's administrators what forbids it."
        else:
            continue
        yield Problem("refused", f"its pods are refused: {message} {mend}", 0)


def _name(pod: Json) -> str:
    return f"the pod {pod['metadata']['name']}"


def _one_line(text: str) -> str:
    text = " ".join(text.split())[:600]
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."
