"""The few calls of the Kubernetes API that TrainJobs need, in one namespace.

The ``kubernetes`` package (kfp brings it) gives the ways in: a pod's token, which it reads again as the kubelet renews
it, and every kind of kubeconfig with its credential plugins. Its generated models are left aside: objects are plain
dictionaries here, as their CRDs differ between versions. Nothing is watched: a list every few seconds costs an API
server little and needs no right to watch, and there is no watch to expire.
"""

from __future__ import annotations

import json
import logging
import os
import random
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progrpo.errors import ConfigError
from progrpo_components.errors import ClusterError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient, ApiException  # type: ignore[import-untyped]

logger = logging.getLogger(__name__)

Json = dict[str, Any]

GROUP, VERSION = "trainer.kubeflow.org", "v1alpha1"
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
REQUEST_TIMEOUT_S = (5, 60)
"""To connect, and between two bytes."""
LOG_SILENCE_S = 300
"""A log stream without a byte for so long is taken for broken and opened again: a half-open connection never ends."""
PATIENCE_S = 600.0
MAX_PAUSE_S = 30.0


class ForbiddenError(ClusterError):
    """The service account lacks a right."""


class Cluster:
    """One namespace of a Kubernetes cluster.

    An API server that is away, overloaded (429, with its Retry-After) or broken (5xx) is asked again for
    ``patience_s``; a refusal is an error at once.

    Attributes:
        namespace: the namespace.
        host: URL of the API server.
    """

    def __init__(self, client: ApiClient, namespace: str, *, patience_s: float = PATIENCE_S) -> None:
        self.namespace, self.patience_s = namespace, patience_s
        self.host: str = client.configuration.host
        self._client = client

    @classmethod
    def connect(cls, namespace: str | None = None, *, patience_s: float = PATIENCE_S) -> Cluster:
        """Use the pod's service account, or outside a pod the kubeconfig; nothing is sent yet.

        Args:
            namespace: absent: the pod's own, or that of the kubeconfig's context.
            patience_s: how long to ask an API server that does not answer.

        Raises:
            ClusterError: neither is there, or the kubeconfig cannot be used.
        """
        import yaml
        from kubernetes import client, config  # type: ignore[import-untyped]

        configuration = client.Configuration()
        try:
            if os.environ.get("KUBERNETES_SERVICE_HOST") and (SERVICE_ACCOUNT / "token").is_file():
                config.load_incluster_config(client_configuration=configuration)
                own = (SERVICE_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
            else:
                path = os.environ.get("KUBECONFIG")  # the package reads it only as it is imported
                config.load_kube_config(path, client_configuration=configuration)
                own = config.list_kube_config_contexts(path)[1]["context"].get("namespace", "default")
        except (config.ConfigException, yaml.YAMLError, OSError, ValueError, TypeError, KeyError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ClusterError(
                f"no way to a Kubernetes API: {reason}. In a pod it needs a service account with a mounted token "
                f"(automountServiceAccountToken); elsewhere set KUBECONFIG."
            ) from None
        configuration.retries = False  # ours below; urllib3's would sleep as long as a server's Retry-After says
        return cls(client.ApiClient(configuration), namespace or own, patience_s=patience_s)

    # --- TrainJobs -------------------------------------------------------------------------------------------------

    def create_trainjob(self, body: Json) -> Json | None:
        """Create a TrainJob and return it; None if there is one of that name."""
        return self._request("POST", self._trainjobs(), body=body, what="create the TrainJob", absent=409)

    def get_trainjob(self, name: str) -> Json | None:
        """Return a TrainJob; None if there is none of that name."""
        return self._request("GET", self._trainjobs(name), what=f"get the TrainJob {name}", absent=404)

    def list_trainjobs(self, labels: str = "") -> list[Json]:
        """Return the TrainJobs that a label selector chooses; empty: all."""
        return self._list(self._trainjobs(), {"labelSelector": labels}, what="list TrainJobs")

    def annotate_trainjob(self, name: str, annotations: Mapping[str, str], *, patience_s: float) -> None:
        """Set annotations."""
        body = {"metadata": {"annotations": dict(annotations)}}
        self._request(
            "PATCH", self._trainjobs(name), body=body, what=f"patch the TrainJob {name}", patience_s=patience_s
        )

    def delete_trainjob(self, trainjob: Json, *, unchanged: bool = False, patience_s: float | None = None) -> bool:
        """Delete this very TrainJob with its pods, not one of the same name that came after it.

        Args:
            trainjob: as it was read.
            unchanged: only if it is still as it was read.
            patience_s: if not the cluster's.

        Returns:
            False if it had gone, or was another one or changed meanwhile.
        """
        metadata = trainjob["metadata"]
        preconditions = {"uid": metadata["uid"]}
        if unchanged:
            preconditions["resourceVersion"] = metadata["resourceVersion"]
        body = {"propagationPolicy": "Foreground", "preconditions": preconditions}
        name = metadata["name"]
        path, what = self._trainjobs(name), f"delete the TrainJob {name}"
        found = self._request("DELETE", path, body=body, what=what, absent=(404, 409), patience_s=patience_s)
        return found is not None

    def list_runtimes(self, labels: str) -> list[Json]:
        """Return the training runtimes that a label selector chooses."""
        return self._list(self._runtimes(), {"labelSelector": labels}, what="list training runtimes")

    def delete_runtime(self, name: str) -> None:
        """Delete a training runtime; that it has gone already is fine."""
        self._request("DELETE", self._runtimes(name), what=f"delete the training runtime {name}", absent=404)

    def trainjob_fields(self) -> set[str]:
        """Return the fields of a TrainJob's spec that this cluster's version of Trainer has.

        They are read from the API server's OpenAPI document, which every authenticated user may get; the CRD itself
        is out of reach for rights in one namespace.

        Raises:
            ClusterError: there is no TrainJob API, or the document cannot be read.
        """
        path = f"/openapi/v3/apis/{GROUP}/{VERSION}"
        document = self._request("GET", path, what="read the TrainJob API", absent=404)
        if document is None:
            raise ClusterError(
                f"{self.host} has no API {GROUP}/{VERSION}. Install Kubeflow Trainer 2.1 or later, or train in one "
                f"pod: a preset other than multi-node."
            )
        for schema in document.get("components", {}).get("schemas", {}).values():
            kinds = {item.get("kind") for item in schema.get("x-kubernetes-group-version-kind", ())}
            if "TrainJob" in kinds:
                return set(schema["properties"]["spec"]["properties"])
        raise ClusterError(
            f"{self.host}{path} does not describe TrainJob. Set trainjob.api to runtimePatches (Trainer 2.2 and later) "
            f"or podTemplateOverrides (2.1)."
        )

    # --- what belongs to them --------------------------------------------------------------------------------------

    def get_pod(self, name: str) -> Json | None:
        """Return a pod; None if there is none of that name."""
        return self._request("GET", self._core("pods", name), what=f"get the pod {name}", absent=404)

    def list_pods(self, labels: str) -> list[Json]:
        """Return the pods that a label selector chooses."""
        return self._list(self._core("pods"), {"labelSelector": labels}, what="list pods")

    def list_warnings(self) -> list[Json]:
        """Return the namespace's events of type Warning."""
        return self._list(self._core("events"), {"fieldSelector": "type=Warning"}, what="list events")

    def get_workflow(self, name: str) -> Json | None:
        """Return a workflow of Argo, which is a run of Kubeflow Pipelines; None if there is none of that name."""
        path = f"/apis/argoproj.io/v1alpha1/namespaces/{self.namespace}/workflows/{name}"
        return self._request("GET", path, what=f"get the workflow {name}", absent=404)

    # --- what else one may ask -------------------------------------------------------------------------------------

    def get(self, path: str, *, what: str) -> Json | None:
        """Return any object by its path; None if there is none."""
        return self._request("GET", path, what=what, absent=404)

    def may(self, group: str, resource: str, verb: str) -> bool:
        """Tell whether this account has a right in the namespace; every account may ask that about itself.

        Args:
            group: of the API; empty for the core.
            resource: such as ``pods`` or ``pods/log``.
            verb: such as ``get``.
        """
        name, _, subresource = resource.partition("/")
        attributes = {"namespace": self.namespace, "group": group, "resource": name, "verb": verb}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {**attributes, "subresource": subresource}},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        answer = self._request("POST", path, body=review, what="ask for our rights")
        return bool((answer or {}).get("status", {}).get("allowed"))

    # --- logs ------------------------------------------------------------------------------------------------------

    def open_log(self, pod: str, container: str, *, since: str | None, follow: bool) -> Any:
        """Return the response of a container's log, of lines that begin with their time; None if there is none yet.

        Args:
            pod: its name.
            container: its name.
            since: time of RFC 3339, in whole seconds; absent: from the start.
            follow: wait for more as it is written.

        Raises:
            ClusterError: the API server refuses, or does not answer now.
        """
        query = {"container": container, "timestamps": "true", "follow": "true" if follow else "false"}
        if since is not None:
            query["sinceTime"] = since
        path = f"{self._core('pods', pod)}/log"
        timeout = (REQUEST_TIMEOUT_S[0], LOG_SILENCE_S) if follow else REQUEST_TIMEOUT_S
        what = f"read the log of the pod {pod}"
        absent = (400, 404)  # 400: its container has not started
        return self._send(
            "GET", path, query=query, what=what, absent=absent, patience_s=0, stream=True, timeout=timeout
        )

    # --- calls -----------------------------------------------------------------------------------------------------

    def _trainjobs(self, name: str = "") -> str:
        return self._trainer("trainjobs", name)

    def _runtimes(self, name: str = "") -> str:
        return self._trainer("trainingruntimes", name)

    def _trainer(self, resource: str, name: str) -> str:
        return f"/apis/{GROUP}/{VERSION}/namespaces/{self.namespace}/{resource}" + (f"/{name}" if name else "")

    def _core(self, resource: str, name: str = "") -> str:
        return f"/api/v1/namespaces/{self.namespace}/{resource}" + (f"/{name}" if name else "")

    def _list(self, path: str, query: Mapping[str, str], *, what: str) -> list[Json]:
        items: list[Json] = []
        more = ""
        while True:
            page = self._request("GET", path, query={**query, "limit": "500", "continue": more}, what=what)
            items += (page or {}).get("items") or []
            more = (page or {}).get("metadata", {}).get("continue") or ""
            if not more:
                return items

    def _request(self, method: str, path: str, **how: Any) -> Json | None:
        """Send a request, and return the object that comes back; otherwise as :meth:`_send`."""
        response = self._send(method, path, **how)
        return None if response is None else dict(json.loads(response.data))

    def _send(
        self,
        method: str,
        path: str,
        *,
        what: str,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        absent: int | tuple[int, ...] = (),
        patience_s: float | None = None,
        stream: bool = False,
        timeout: tuple[float, float] = REQUEST_TIMEOUT_S,
    ) -> Any:
        """Send a request until it is answered, and return the response; None for a status in ``absent``."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        absent = (absent,) if isinstance(absent, int) else absent
        patience_s = self.patience_s if patience_s is None else patience_s
        deadline, pause = time.monotonic() + patience_s, 0.5
        while True:
            wanted = 0.0
            try:
                response = self._client.call_api(
                    path,
                    method,
                    query_params=[(key, value) for key, value in (query or {}).items() if value],
                    header_params={
                        "Accept": "*/*" if stream else "application/json",
                        **({"Content-Type": "application/merge-patch+json"} if method == "PATCH" else {}),
                    },
                    body=body,
                    auth_settings=["BearerToken"],
                    _return_http_data_only=True,
                    _preload_content=False,
                    _request_timeout=timeout,
                )
                if not stream:
                    response.read(cache_content=True)  # here, where a connection that breaks is tried again
                return response
            except ApiException as error:
                if error.status in absent:
                    return None
                if error.status not in (0, 429) and error.status < 500:
                    raise self._refusal(error, what) from None
                reason = f"{error.status} {_message(error)}" if error.status else _message(error)
                wanted = _retry_after(error)
            except (HTTPError, OSError, ValueError) as error:  # no connection, one that broke, half an answer
                reason = f"{type(error).__name__}: {error}"
            pause_s = max(wanted, pause * random.uniform(0.8, 1.2))  # noqa: S311  # not to come in step with others
            if time.monotonic() + pause_s > deadline:
                raise ClusterError(
                    f"cannot {what} in the namespace {self.namespace}: {self.host} has not answered for "
                    f"{patience_s:.0f} s ({reason[:300]}). Check that the API server can be reached from here."
                )
            logger.warning("cannot %s, trying again in %.1f s: %s", what, pause_s, reason[:300])
            time.sleep(pause_s)
            pause = min(2 * pause, MAX_PAUSE_S)

    def _refusal(self, error: ApiException, what: str) -> ClusterError | ConfigError:
        message = _message(error)
        where = f"cannot {what} in the namespace {self.namespace}"
        if error.status == 401:
            return ClusterError(
                f"{where}: {self.host} does not accept the credentials (401). In a pod, check its service account; "
                f"elsewhere, log in again and check the kubeconfig's context."
            )
        if (
            error.status in (400, 422) or "denied the request" in message
        ):  # an admission webhook refuses with 403 or 422
            return ConfigError(f"{where}: the cluster refuses it: {message} Check trainjob and the training runtime.")
        if error.status == 403 and "exceeded quota" in message:
            return ClusterError(f"{where}: {message} Wait for quota, ask for less, or raise the ResourceQuota.")
        if error.status == 403:
            return ForbiddenError(
                f"{where}: {message} Bind the Role of charts/progrpo to this service account; docs/trainjob.md lists "
                f"the rights."
            )
        if error.status == 404:
            return ClusterError(
                f"{where}: {message} The namespace or the API is missing. TrainJobs need Kubeflow Trainer 2.1 or later."
            )
        return ClusterError(f"{where}: {error.status} {message}")


def _message(error: ApiException) -> str:
    """Return what the API server says, as a sentence."""
    body = error.body or error.reason
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body)
    with suppress(ValueError, KeyError, TypeError):
        text = str(json.loads(text)["message"])
    text = " ".join(text.split())[:1000] or "no reason given"
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _retry_after(error: ApiException) -> float:
    value = (error.headers or {}).get("Retry-After", "")
    return float(value) if value.isdecimal() else 0.0
