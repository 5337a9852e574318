"""The TrainJob as a manifest, for Kubeflow Trainer 2.1 (``podTemplateOverrides``) and later (``runtimePatches``).

Fields are those of trainer.kubeflow.org/v1alpha1 (pkg/apis/trainer/v1alpha1/trainjob_types.go, v2.1.0 to v2.3.0). A raw
manifest, as the Kubeflow SDK's trainers take no environment variable with ``valueFrom``.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol

from progrpo.errors import ConfigError
from progrpo_components import variables
from progrpo_components.settings import TrainJobConfig
from progrpo_components.tracking.server import PLUGIN_VARIABLE, plugin_config
from progrpo_components.trainjob.cluster import GROUP, VERSION, Json
from progrpo_components.trainjob.job import NODE, WorkerJob

logger = logging.getLogger(__name__)

MANAGED_BY = "app.kubernetes.io/managed-by"
RUN_ID, ARM, SEED = "progrpo.io/kfp-run-id", "progrpo.io/arm", "progrpo.io/seed"
RUN, OUTPUT, HEARTBEAT = "progrpo.io/run", "progrpo.io/output", "progrpo.io/heartbeat"
WORKFLOW, WORKFLOW_UID = "progrpo.io/workflow", "progrpo.io/workflow-uid"
OURS = f"{MANAGED_BY}=progrpo,{RUN_ID}"
"""Label selector of every TrainJob made here."""

_SECRET_NAME = re.compile(r"TOKEN|PASSWORD|PASSWD|SECRET|CREDENTIAL|(ACCESS|API|PRIVATE)_?KEY", re.IGNORECASE)
_GPU = re.compile(r"/(gpu|mig-.*)$")
_LAUNCHERS_OWN = re.compile(r"PET_|KFP_|KUBERNETES_|(HOSTNAME|HOME|TMPDIR)$")
"""Variables that belong to the launcher's pod and its mounts, or that Trainer sets and its webhook refuses."""

Api = Literal["runtimePatches", "podTemplateOverrides"]


class TaskConfig(Protocol):
    """What Kubeflow Pipelines passes on of the task's own pod: ``kfp.dsl.TaskConfig``, fragments of a pod's spec."""

    affinity: Json | None
    tolerations: list[Json] | None
    node_selector: dict[str, str] | None
    env: list[Json] | None
    volumes: list[Json] | None
    volume_mounts: list[Json] | None
    resources: Json | None


@dataclass(frozen=True)
class Owner:
    """The workflow that a pipeline run is; deleting it deletes the TrainJob."""

    name: str
    uid: str
    api_version: str = "argoproj.io/v1alpha1"
    kind: str = "Workflow"


def choose_api(config: TrainJobConfig, fields: Collection[str]) -> Api:
    """Return how this cluster's TrainJobs change pods.

    Args:
        config: may say it.
        fields: of a TrainJob's spec in this cluster; unused if the configuration says it.

    Raises:
        ConfigError: the cluster has neither.
    """
    if config.api != "auto":
        return config.api
    for api in ("runtimePatches", "podTemplateOverrides"):
        if api in fields:
            return api  # type: ignore[return-value]  # the two literals
    raise ConfigError(
        f"the TrainJobs of this cluster have neither runtimePatches nor podTemplateOverrides, but "
        f"{', '.join(sorted(fields))}. Use Kubeflow Trainer 2.1 or later."
    )


def build_trainjob(
    job: WorkerJob,
    config: TrainJobConfig,
    *,
    namespace: str,
    runtime: str,
    api: Api,
    task: TaskConfig | None = None,
    owner: Owner | None = None,
    now: datetime | None = None,
) -> Json:
    """Return the manifest of a TrainJob.

    Args:
        job: what its workers do.
        config: where and how it runs.
        namespace: of the pipeline run.
        runtime: name of the training runtime.
        api: see :func:`choose_api`.
        task: resources, placement, environment and volumes of the launching task, for the nodes.
        owner: the workflow of the pipeline run.
        now: time of the first heartbeat; absent: now.

    Raises:
        ConfigError: ranks, nodes and GPUs that do not fit together.
    """
    resources = (task.resources if task is not None else None) or {}
    if config.resources_per_node is not None:
        resources = config.resources_per_node.model_dump(exclude_defaults=True)
    processes = _processes_per_node(job, config, resources)
    trainer: Json = {
        "command": ["python", "-m", "progrpo_components.trainjob.worker"],
        "args": ["--job", job.as_argument()],
        "env": environment(config, (task.env if task is not None else None) or ()),
        "numNodes": config.num_nodes,
        "numProcPerNode": processes,
    }
    if config.image is not None:
        trainer["image"] = config.image
    if resources:
        trainer["resourcesPerNode"] = resources
    spec: Json = {
        "runtimeRef": {"apiGroup": GROUP, "kind": config.runtime_kind, "name": runtime},
        "trainer": trainer,
        api: [_patch(api, _pod(config, task, hardened=api == "runtimePatches"), _labels(job, config))],
    }
    if config.deadline_s is not None and api == "runtimePatches":
        spec["activeDeadlineSeconds"] = config.deadline_s  # since 2.2; the launcher keeps it for 2.1
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {
            "name": job.name,
            "namespace": namespace,
            "labels": _labels(job, config),
            "annotations": _annotations(job, owner, now or datetime.now(UTC)),
            **({"ownerReferences": [_reference(owner)]} if owner is not None else {}),
        },
        "spec": spec,
    }


def environment(config: TrainJobConfig, passed: Sequence[Json]) -> list[Json]:
    """Return the nodes' environment: from config map and secrets by reference, all optional, then what the task has.

    A variable of the task that looks like a secret and has a plain value is left out: the manifest of a TrainJob can be
    read by many.
    """
    plugin = plugin_config()
    sources = (
        ("configMapKeyRef", config.config_map, variables.CONFIG_MAP),
        ("secretKeyRef", config.s3_secret, variables.S3_SECRET),
        ("secretKeyRef", config.mlflow_secret, variables.MLFLOW_SECRET),
        ("secretKeyRef", "kfp-mlflow-credentials", {} if plugin is None else plugin.credentials),
    )
    entries: dict[str, Json] = {
        variable: {"name": variable, "valueFrom": {kind: {"name": name, "key": key, "optional": True}}}
        for kind, name, keys in sources
        for variable, key in keys.items()
    }
    if plugin is not None:  # its variables are in this pod, and Kubeflow passes on none of them
        entries[PLUGIN_VARIABLE] = {"name": PLUGIN_VARIABLE, "value": os.environ[PLUGIN_VARIABLE]}
    for entry in passed:
        name = str(entry["name"])
        if _LAUNCHERS_OWN.match(name):
            continue
        if entry.get("value") and _SECRET_NAME.search(name):
            logger.warning(
                "%s is not passed on: it looks like a secret, and its value would stand in the TrainJob. Give it by "
                "use_secret_as_env, or in the secret %s.",
                *(name, config.mlflow_secret if "MLFLOW_" in name else config.s3_secret),
            )
            continue
        entries[name] = dict(entry)
    return list(entries.values())


def run_of(job: WorkerJob) -> str:
    """Return what tells a run's own TrainJob from one whose name happens to be equal."""
    return f"{job.run_id}/{job.run.arm.name}/{job.run.seed}"


def timestamp(moment: datetime) -> str:
    """Return a time as Kubernetes writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _processes_per_node(job: WorkerJob, config: TrainJobConfig, resources: Json) -> int:
    try:
        processes = config.processes_per_node(job.train)
    except ValueError as error:
        raise ConfigError(f"{error}.") from None
    limits = resources.get("limits") or {}
    gpus = {name: count for name, count in limits.items() if _GPU.search(name)}
    for name, count in gpus.items():
        if str(count) != str(processes) and job.train.device != "cpu":
            raise ConfigError(
                f"each node asks for {count} {name}, but has {processes} ranks (train.distributed.num_processes "
                f"{job.train.distributed.num_processes} on trainjob.num_nodes {config.num_nodes}). One rank uses one "
                f"GPU: make them equal."
            )
    return processes


def _labels(job: WorkerJob, config: TrainJobConfig) -> dict[str, str]:
    labels = {
        MANAGED_BY: "progrpo",
        "app.kubernetes.io/name": "progrpo",
        "app.kubernetes.io/component": "training",
        RUN_ID: _label(job.run_id),
        ARM: _label(job.run.arm.name),
        SEED: str(job.run.seed),
    }
    if config.queue is not None:
        labels["kueue.x-k8s.io/queue-name"] = config.queue
    if config.priority_class is not None:
        labels["kueue.x-k8s.io/priority-class"] = config.priority_class
    return labels


def _annotations(job: WorkerJob, owner: Owner | None, now: datetime) -> dict[str, str]:
    annotations = {RUN: run_of(job), OUTPUT: job.output, HEARTBEAT: timestamp(now)}
    if owner is not None:
        annotations |= {WORKFLOW: owner.name, WORKFLOW_UID: owner.uid}
    return annotations


def _reference(owner: Owner) -> Json:
    return {
        "apiVersion": owner.api_version,
        "kind": owner.kind,
        "name": owner.name,
        "uid": owner.uid,
        "controller": False,
        "blockOwnerDeletion": False,
    }


def _pod(config: TrainJobConfig, task: TaskConfig | None, *, hardened: bool) -> Json:
    """Return what is changed of the runtime's pods: a fragment of a pod's spec.

    Lists are merged by name, mounts by their path, so that the runtime's own ``dshm`` is replaced and not doubled.
    """
    node: Json = {
        "name": NODE,
        "volumeMounts": [
            {"name": "dshm", "mountPath": "/dev/shm"},  # noqa: S108  # shared memory of the data loaders and NCCL
            *((task.volume_mounts if task is not None else None) or ()),
        ],
    }
    pod: Json = {
        "volumes": [
            {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": config.shm_size}},
            *((task.volumes if task is not None else None) or ()),
        ],
        "containers": [node],
    }
    if hardened:  # 2.1 takes it from the runtime only
        pod["securityContext"] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        node["securityContext"] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    if task is not None:
        placement = {"nodeSelector": task.node_selector, "tolerations": task.tolerations, "affinity": task.affinity}
        pod |= {key: value for key, value in placement.items() if value}
    if config.service_account is not None:
        pod["serviceAccountName"] = config.service_account
    if config.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in config.image_pull_secrets]
    return pod


def _patch(api: Api, pod: Json, labels: Mapping[str, str]) -> Json:
    # The recommended labels are the runtime's own: the chart's network policies choose its pods by them.
    own = {key: value for key, value in labels.items() if key.startswith("progrpo.io/")}
    # A proxy of Istio, which Kubeflow's profiles inject, would outlive the training and keep the pod, and its GPUs.
    metadata = {"labels": {**own, "sidecar.istio.io/inject": "false"}}
    template = {"metadata": metadata, "spec": pod}
    if api == "podTemplateOverrides":
        return {"targetJobs": [{"name": NODE}], **template}
    jobs = [{"name": NODE, "template": {"spec": {"template": template}}}]
    return {"manager": "progrpo.io/launcher", "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": jobs}}}}


def _label(text: str) -> str:
    """Return a text as the value of a label may be."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text)[:63].strip("-_.") or "none"
