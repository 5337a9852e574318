"""Kubernetes: does it answer, is Kubeflow Trainer there, may this account do what launching a TrainJob takes, GPUs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from progrpo_pipelines.doctor.check import Check, shown
from progrpo_pipelines.submit.connection import IN_CLUSTER_NAMESPACE

TRAINER = "trainer.kubeflow.org/v1alpha1"
RUNTIME = "progrpo-torch"
POOLS = "progrpo-gpu-pools"
# What launching a TrainJob takes (docs/trainjob.md), as (group, resource, verbs). Training on one node takes nothing.
RIGHTS = (
    ("trainer.kubeflow.org", "trainjobs", ("create", "get", "patch", "delete")),
    ("", "pods", ("get", "list")),
    ("", "events", ("get", "list")),
    ("", "pods/log", ("get",)),
)
_TIMEOUT_S = (5, 10)


class KubernetesError(Exception):
    """The API server refused, or cannot be reached.

    Args:
        message: one line.
        status: HTTP status; 0 without an answer.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, status)
        self.status = status

    def __str__(self) -> str:
        return str(self.args[0])


class Kubernetes:
    """A few requests to the API server; who we are comes from the pod or from the kubeconfig.

    Args:
        client: of the kubernetes package.
        namespace: the one to look at.
    """

    def __init__(self, client: Any, namespace: str) -> None:
        self._client, self.namespace = client, namespace

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """Return the JSON of an answer.

        Raises:
            KubernetesError: refused or not reachable.
        """
        import urllib3
        from kubernetes.client import ApiException

        try:
            answer, _, _ = self._client.call_api(
                path,
                method,
                body=body,
                header_params={"Accept": "application/json", "Content-Type": "application/json"},
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=_TIMEOUT_S,
            )
            return json.loads(answer.data)
        except ApiException as error:
            raise KubernetesError(f"{error.status} {error.reason}", int(error.status or 0)) from None
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise KubernetesError(shown(error), 0) from None

    def get(self, path: str) -> Any:
        """Return an object, or None if there is none.

        Raises:
            KubernetesError: refused otherwise, or not reachable.
        """
        try:
            return self.request("GET", path)
        except KubernetesError as error:
            if error.status == 404:
                return None
            raise

    def may(self, group: str, resource: str, verb: str) -> bool:
        """Ask the API server whether it would let us; every account may ask about itself."""
        name, _, subresource = resource.partition("/")
        attributes = {
            "namespace": self.namespace, "group": group, "resource": name, "subresource": subresource, "verb": verb
        }  # fmt: skip
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        answer = self.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
        return bool(answer.get("status", {}).get("allowed"))


def connect(namespace: str | None, environment: Mapping[str, str] = os.environ) -> Kubernetes | Check:
    """Return the way to the API server, or the check that says why there is none."""
    in_pod = bool(environment.get("KUBERNETES_SERVICE_HOST"))
    file = Path(environment.get("KUBECONFIG", "").partition(os.pathsep)[0] or "~/.kube/config").expanduser()
    if not in_pod and not file.is_file():
        return Check("Kubernetes", "skipped", "not in a pod, and there is no kubeconfig")
    from kubernetes import client, config

    configuration = client.Configuration()
    try:
        if in_pod:
            config.load_incluster_config(client_configuration=configuration)
            own = IN_CLUSTER_NAMESPACE.read_text(encoding="utf-8").strip()
        else:
            config.load_kube_config(str(file), client_configuration=configuration)
            own = config.list_kube_config_contexts(str(file))[1]["context"].get("namespace", "default")
    except (config.ConfigException, OSError, ValueError, TypeError, KeyError) as error:
        mend = "In a pod: automountServiceAccountToken; elsewhere: KUBECONFIG with a current context."
        return Check("Kubernetes", "failed", f"no way in: {shown(error)}", mend)
    configuration.retries = False
    return Kubernetes(client.ApiClient(configuration), namespace or own)


def check_kubernetes(namespace: str | None, environment: Mapping[str, str] = os.environ) -> Iterator[Check]:
    """Look at the cluster, as far as this account may."""
    cluster = connect(namespace, environment)
    if isinstance(cluster, Check):
        yield cluster
        return
    try:
        version = cluster.request("GET", "/version")
        yield Check(
            "Kubernetes", "ok", f"version {version.get('gitVersion', 'unknown')}, namespace {cluster.namespace}"
        )
        resources = cluster.get(f"/apis/{TRAINER}")
        if resources is None:
            detail = f"no {TRAINER}: training over several nodes (preset multi-node) cannot work, all else can"
            yield Check("Kubeflow Trainer", "skipped", detail)
        else:
            yield from _trainer(cluster, {item["name"] for item in resources.get("resources", ())})
        yield from _gpus(cluster)
    except KubernetesError as error:
        mend = (
            "Check the kubeconfig or the service account, and the network policies." if error.status in (0, 401) else ""
        )
        yield Check("Kubernetes", "failed", str(error), mend)


def _trainer(cluster: Kubernetes, resources: set[str]) -> Iterator[Check]:
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
    try:
        runtime = cluster.get(f"/apis/{TRAINER}/namespaces/{cluster.namespace}/trainingruntimes/{RUNTIME}")
    except KubernetesError as error:
        if error.status != 403:
            raise
        yield Check("Training runtime", "skipped", "this account may not look at training runtimes, nor need it")
        return
    if runtime is None:
        mend = "Install charts/progrpo, or name another by trainjob.runtime."
        yield Check("Training runtime", "failed", f"there is no {RUNTIME} in namespace {cluster.namespace}", mend)
    else:
        yield Check("Training runtime", "ok", RUNTIME)


def _gpus(cluster: Kubernetes) -> Iterator[Check]:
    try:
        nodes = cluster.request("GET", "/api/v1/nodes")["items"]
    except KubernetesError as error:
        if error.status != 403:
            raise
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


def _pools(cluster: Kubernetes, nodes: list[Any], counts: Mapping[str, Mapping[str, int]]) -> Iterator[Check]:
    """Whether each pool that the chart names has a node with a GPU of its kind."""
    import yaml

    try:
        pools = cluster.get(f"/api/v1/namespaces/{cluster.namespace}/configmaps/{POOLS}")
    except KubernetesError as error:
        if error.status != 403:
            raise
        return
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
