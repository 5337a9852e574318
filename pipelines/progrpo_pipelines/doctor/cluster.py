"""Kubernetes: does it answer, is Kubeflow Trainer there, may this account do what launching a TrainJob takes, GPUs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progrpo.errors import ConfigError
from progrpo_components.errors import ClusterError
from progrpo_pipelines.doctor.check import Check, failed

if TYPE_CHECKING:
    from progrpo_components.trainjob.cluster import Cluster

TRAINER = "trainer.kubeflow.org/v1alpha1"
DEFAULTS, RUNTIME_KEY = "progrpo-defaults", "PROGRPO_TRAINING_RUNTIME"
POOLS = "progrpo-gpu-pools"
# What launching a TrainJob takes (docs/trainjob.md), as (group, resource, verbs). Training on one node takes nothing.
RIGHTS = (
    ("trainer.kubeflow.org", "trainjobs", ("create", "get", "patch", "delete")),
    ("", "pods", ("get", "list")),
    ("", "events", ("list",)),
    ("", "pods/log", ("get",)),
)


def connect(namespace: str | None, environment: Mapping[str, str] = os.environ) -> Cluster | Check:
    """Return the way to the API server, or the check that says why there is none."""
    from progrpo_components.trainjob.cluster import Cluster

    file = Path(environment.get("KUBECONFIG", "").partition(os.pathsep)[0] or "~/.kube/config").expanduser()
    if not environment.get("KUBERNETES_SERVICE_HOST") and not file.is_file():
        return Check("Kubernetes", "skipped", "not in a pod, and there is no kubeconfig")
    try:
        return Cluster.connect(namespace, patience_s=0)
    except ClusterError as error:
        return failed("Kubernetes", error)


def check_kubernetes(namespace: str | None, environment: Mapping[str, str] = os.environ) -> Iterator[Check]:
    """Look at the cluster, as far as this account may."""
    cluster = connect(namespace, environment)
    if isinstance(cluster, Check):
        yield cluster
        return
    try:
        version = (cluster.get("/version", what="ask for the version") or {}).get("gitVersion", "unknown")
        yield Check("Kubernetes", "ok", f"version {version}, namespace {cluster.namespace}")
        resources = cluster.get(f"/apis/{TRAINER}", what="look for Kubeflow Trainer")
        if resources is None:
            detail = f"no {TRAINER}: training over several nodes (preset multi-node) cannot work, all else can"
            yield Check("Kubeflow Trainer", "skipped", detail)
        else:
            yield from _trainer(cluster, {item["name"] for item in resources.get("resources", ())}, environment)
        yield from _gpus(cluster)
    except (ClusterError, ConfigError) as error:
        yield failed("Kubernetes", error)


def _trainer(cluster: Cluster, resources: set[str], environment: Mapping[str, str]) -> Iterator[Check]:
    if missing := sorted({"trainjobs", "trainingruntimes"} - resources):
        yield Check(
            "Kubeflow Trainer", "failed", f"{TRAINER} has no {', '.join(missing)}", "Install Kubeflow Trainer 2."
        )
        return
    yield Check("Kubeflow Trainer", "ok", TRAINER)
    lacking = [
        f"{verb} {resource}"
        for group, resource, verbs in RIGHTS
        for verb in verbs
        if not cluster.may(group, resource, verb)
    ]
    if lacking:
        mend = "Install charts/progrpo with this service account in runs.serviceAccounts, or bind its Role."
        yield Check(
            "Rights", "failed", f"in namespace {cluster.namespace} this account may not {', '.join(lacking)}", mend
        )
    else:
        yield Check("Rights", "ok", f"all that launching a TrainJob takes, in namespace {cluster.namespace}")
    if not cluster.may("trainer.kubeflow.org", "trainingruntimes", "get"):
        yield Check("Training runtime", "skipped", "this account may not look at training runtimes, nor need it")
        return
    name = environment.get(RUNTIME_KEY) or _configured_runtime(cluster)
    if not name:
        mend = "Install charts/progrpo with its trainJobs, or name a runtime by trainjob.runtime."
        yield Check("Training runtime", "warning", f"ConfigMap {DEFAULTS} of {cluster.namespace} names none", mend)
        return
    path = f"/apis/{TRAINER}/namespaces/{cluster.namespace}/trainingruntimes/{name}"
    if cluster.get(path, what="look for the training runtime") is None:
        mend = (
            "Training on one node works without. An administrator of the cluster makes it (docs/install.md); or name "
            "another by trainjob.runtime."
        )
        yield Check("Training runtime", "warning", f"there is no {name} in namespace {cluster.namespace}", mend)
    else:
        yield Check("Training runtime", "ok", name)


def _configured_runtime(cluster: Cluster) -> str | None:
    if not cluster.may("", "configmaps", "get"):
        return None
    path = f"/api/v1/namespaces/{cluster.namespace}/configmaps/{DEFAULTS}"
    found = cluster.get(path, what="look for the chart's settings") or {}
    return (found.get("data") or {}).get(RUNTIME_KEY)


def _gpus(cluster: Cluster) -> Iterator[Check]:
    from progrpo_components.trainjob.cluster import ForbiddenError

    try:
        nodes = (cluster.get("/api/v1/nodes", what="list the nodes") or {"items": []})["items"]
    except ForbiddenError:
        yield Check("GPU nodes", "skipped", "this account may not list nodes, nor need it")
        return
    counts = {node["metadata"]["name"]: _gpu_counts(node) for node in nodes}
    totals: dict[str, int] = {}
    for count in counts.values():
        for kind, number in count.items():
            totals[kind] = totals.get(kind, 0) + number
    if not any(totals.values()):
        mend = "The device plugin shows them as nvidia.com/gpu or alike; the smoke presets need none."
        yield Check("GPU nodes", "warning", f"none of {len(nodes)} nodes has a GPU to give", mend)
        return
    found = ", ".join(f"{number} {kind}" for kind, number in sorted(totals.items()) if number)
    yield Check("GPU nodes", "ok", f"{found} on {sum(any(count.values()) for count in counts.values())} nodes")
    yield from _pools(cluster, nodes, counts)


def _pools(cluster: Cluster, nodes: list[Any], counts: Mapping[str, Mapping[str, int]]) -> Iterator[Check]:
    """Whether each pool that the chart names has a node with a GPU of its kind."""
    import yaml

    if not cluster.may("", "configmaps", "get"):
        return
    pools = cluster.get(f"/api/v1/namespaces/{cluster.namespace}/configmaps/{POOLS}", what="look for GPU pools")
    for name, text in sorted(((pools or {}).get("data") or {}).items()):
        pool = yaml.safe_load(text)
        selector, kind = pool.get("placement_node_selector") or {}, pool["gpu_type"]
        fitting = [
            node["metadata"]["name"]
            for node in nodes
            if selector.items() <= (node["metadata"].get("labels") or {}).items()
            and counts[node["metadata"]["name"]].get(kind, 0) >= pool["gpu_count"]
        ]
        if fitting:
            yield Check(f"GPU pool {name}", "ok", f"{len(fitting)} nodes with {pool['gpu_count']} {kind} or more")
        else:
            detail = f"no node with the labels {json.dumps(selector)} has {pool['gpu_count']} {kind}"
            yield Check(
                f"GPU pool {name}", "warning", detail, "Mend gpuPools in the chart's values, unless it scales from 0."
            )


def _gpu_counts(node: Mapping[str, Any]) -> dict[str, int]:
    """GPUs that a node has to give, by the resource's name; a pool's type may be any of them."""
    given = node.get("status", {}).get("allocatable", {})
    return {
        kind: int(number) for kind, number in given.items() if "gpu" in kind.partition("/")[2] and number.isdecimal()
    }
