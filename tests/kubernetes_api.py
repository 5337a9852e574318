"""A stand-in for the Kubernetes API server: the calls that TrainJobs need, over HTTP on loopback.

It is no API server: it keeps objects, hands out uids and resource versions, checks the token, preconditions and label
selectors, streams logs in chunks, and fails as it is told. What controllers would do, a test does: ``script`` holds
functions that are called one by one, at each look at a TrainJob. What the webhooks of Kubeflow Trainer and JobSet
refuse, it refuses (``webhooks.py``): a TrainJob at once, a JobSet as Trainer's controller says it, in an event.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import yaml

from webhooks import jobset_of, refused_jobset, refused_trainjob

TOKEN = "token-of-the-launcher"
NAMESPACE = "team-a"
FIELDS = {
    "2.1": ("runtimeRef", "initializer", "trainer", "labels", "annotations", "podTemplateOverrides", "suspend"),
    "2.2": ("runtimeRef", "initializer", "trainer", "runtimePatches", "suspend", "activeDeadlineSeconds", "managedBy"),
}


def at(seconds: float = 0) -> str:
    """Return a time as the API writes it, so many seconds from now."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Fault:
    """What a request gets instead of its answer, so many times."""

    method: str
    path: str
    status: int
    message: str = "as the test wants it"
    headers: tuple[tuple[str, str], ...] = ()
    times: int = 1
    cut: bool = False
    """Close the connection without an answer."""


class KubernetesApi:
    """The objects of one namespace."""

    def __init__(self, version: str = "2.2") -> None:
        self.version = version
        self.runtimes: dict[str, dict] = {}
        self.trainjobs: dict[str, dict] = {}
        self.pods: dict[str, dict] = {}
        self.events: list[dict] = []
        self.workflows: dict[str, dict] = {}
        self.logs: dict[str, list[tuple[str, str]]] = {}
        self.log_cuts: list[tuple[int, bool]] = []
        """After how many bytes the next log streams end, and whether the connection breaks or the stream ends well."""
        self.faults: list[Fault] = []
        self.script: list[Callable[[], None]] = []
        self.requests: list[tuple[str, str, dict[str, list[str]], dict | None]] = []
        self.times: list[float] = []
        """When each request came, seconds."""
        self.deletion_polls = 0
        """How many looks a deleted TrainJob stays for."""
        self._numbers = itertools.count(1000)
        self.lock = threading.RLock()

    # --- what a test does in place of controllers ----------------------------------------------------------------

    @property
    def only(self) -> dict:
        """The one TrainJob there is."""
        (trainjob,) = self.trainjobs.values()
        return trainjob

    def add(self, trainjob: dict) -> dict:
        """Keep a TrainJob as if it had been created."""
        metadata = trainjob["metadata"]
        metadata.update(
            uid=f"uid-{next(self._numbers)}",
            resourceVersion=str(next(self._numbers)),
            creationTimestamp=metadata.get("creationTimestamp", at()),
            namespace=NAMESPACE,
        )
        self.trainjobs[metadata["name"]] = trainjob
        return trainjob

    def admit(self, trainjob: dict) -> str:
        """Return what Trainer's webhook says against a TrainJob; empty: nothing."""
        refused = refused_trainjob(trainjob, self.runtimes.get(trainjob["spec"]["runtimeRef"]["name"]))
        webhook = 'admission webhook "validator.trainjob.trainer.kubeflow.org" denied the request'
        return f"{webhook}: {', '.join(refused)}" if refused else ""

    def make_jobset(self, trainjob: dict) -> None:
        """Say what Trainer's controller says where JobSet's webhook refuses its JobSet (trainjob_controller.go)."""
        jobset = jobset_of(trainjob, self.runtimes[trainjob["spec"]["runtimeRef"]["name"]])
        if refused := refused_jobset(jobset):
            name = trainjob["metadata"]["name"]
            text = f'admission webhook "vjobset.kb.io" denied the request: JobSet.jobset.x-k8s.io "{name}" is invalid'
            message = f"TrainJob resources reconciliation failed: {text}: {', '.join(refused)}"
            self.warn(name, "TrainJobResourcesCreationFailed", message)

    def condition(self, kind: str, reason: str = "", message: str = "") -> None:
        """Set a condition of the one TrainJob."""
        condition = {"type": kind, "status": "True", "reason": reason, "message": message}
        self.only.setdefault("status", {}).setdefault("conditions", []).append(condition)

    def pod(self, index: int, phase: str, state: dict | None = None, *, name: str = "", **status) -> dict:
        """Make or change the pod of a node."""
        jobset = self.only["metadata"]["name"]
        name = name or f"{jobset}-node-0-{index}-x1"
        labels = {"jobset.sigs.k8s.io/jobset-name": jobset, "batch.kubernetes.io/job-completion-index": str(index)}
        made = at(len(self.pods))
        container = {"name": "node", "image": "progrpo-gpu", "state": state or {}}
        self.pods[name] = {
            "metadata": {"name": name, "labels": labels, "creationTimestamp": made},
            "status": {"phase": phase, "startTime": at(), "containerStatuses": [container], **status},
        }
        return self.pods[name]

    def warn(self, name: str, reason: str, message: str, *, seconds: float = 1) -> None:
        """Add an event of type Warning."""
        self.events.append(
            {
                "metadata": {"creationTimestamp": at(seconds)},
                "involvedObject": {"kind": "Job", "name": name},
                "type": "Warning",
                "reason": reason,
                "message": message,
                "lastTimestamp": at(seconds),
            }
        )

    def sent(self, method: str, suffix: str = "") -> list[dict | None]:
        """Return the bodies of the requests that came."""
        return [body for kind, path, _, body in self.requests if kind == method and path.endswith(suffix)]

    # --- what the server does -------------------------------------------------------------------------------------

    def touch(self, trainjob: dict) -> None:
        trainjob["metadata"]["resourceVersion"] = str(next(self._numbers))

    def look(self, name: str) -> dict | None:
        if self.script:
            self.script.pop(0)()
        found = self.trainjobs.get(name)
        if found is not None and "deletionTimestamp" in found["metadata"]:
            if self.deletion_polls <= 0:
                del self.trainjobs[name]
                return None
            self.deletion_polls -= 1
        return found

    def delete(self, name: str, options: dict) -> int:
        found = self.trainjobs.get(name)
        if found is None:
            return 404
        for key, value in options.get("preconditions", {}).items():
            if found["metadata"][key] != value:
                return 409
        found["metadata"]["deletionTimestamp"] = at()
        return 200


def matches(labels: dict[str, str], selector: str) -> bool:
    """Whether labels fit a selector of equalities and keys."""
    for part in filter(None, selector.split(",")):
        key, equals, value = part.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    return True


@contextmanager
def serve(api: KubernetesApi, kubeconfig: Path, *, token: str = TOKEN) -> Iterator[str]:
    """Serve on a free port and write a kubeconfig; give the URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_args) -> None:
            pass

        def _handle(self) -> None:
            parts = urlsplit(self.path)
            query = parse_qs(parts.query)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            with api.lock:
                api.requests.append((self.command, parts.path, query, body))
                api.times.append(time.monotonic())
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self._status(401, "Unauthorized")
                for fault in api.faults:
                    if fault.times > 0 and fault.method == self.command and re.search(fault.path, parts.path):
                        fault.times -= 1
                        if fault.cut:
                            self.close_connection = True
                            return None
                        return self._status(fault.status, fault.message, fault.headers)
                return self._answer(parts.path, query, body)

        do_GET = do_POST = do_PATCH = do_DELETE = _handle  # noqa: N815

        def _answer(self, path: str, query: dict[str, list[str]], body: dict | None) -> None:
            if path == "/openapi/v3/apis/trainer.kubeflow.org/v1alpha1":
                spec = {"properties": {name: {} for name in FIELDS[api.version]}}
                kinds = [{"group": "trainer.kubeflow.org", "version": "v1alpha1", "kind": "TrainJob"}]
                schema = {"properties": {"spec": spec}, "x-kubernetes-group-version-kind": kinds}
                name = "org.kubeflow.trainer.v1alpha1.TrainJob"
                return self._json({"components": {"schemas": {f"{name}List": {}, name: schema}}})
            selector = query.get("labelSelector", [""])[0]
            if match := re.fullmatch(
                rf"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs(/.+)?", path
            ):
                return self._trainjob((match[1] or "")[1:], selector, body)
            runtimes = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainingruntimes"
            if path == runtimes:
                labelled = [r for r in api.runtimes.values() if matches(r["metadata"]["labels"], selector)]
                return self._json({"items": labelled, "metadata": {}})
            if path.startswith(f"{runtimes}/"):
                assert self.command == "DELETE"
                return self._json(api.runtimes.pop(path.rpartition("/")[2], None))
            if match := re.fullmatch(rf"/apis/argoproj.io/v1alpha1/namespaces/{NAMESPACE}/workflows/(.+)", path):
                return self._json(api.workflows.get(match[1]))
            if path == f"/api/v1/namespaces/{NAMESPACE}/events":
                assert query["fieldSelector"] == ["type=Warning"]
                return self._json({"items": api.events})
            if match := re.fullmatch(rf"/api/v1/namespaces/{NAMESPACE}/pods/(.+)/log", path):
                return self._log(match[1], query)
            if match := re.fullmatch(rf"/api/v1/namespaces/{NAMESPACE}/pods(/.+)?", path):
                if match[1]:
                    return self._json(api.pods.get(match[1][1:]))
                found = [pod for pod in api.pods.values() if matches(pod["metadata"]["labels"], selector)]
                start = int(query.get("continue", ["0"])[0])  # pages of one: whoever lists must go on
                more = {"continue": str(start + 1)} if start + 1 < len(found) else {}
                return self._json({"items": found[start : start + 1], "metadata": more})
            return self._status(404, f"no such path {path}")

        def _trainjob(self, name: str, selector: str, body: dict | None) -> None:
            if self.command == "POST":
                assert body is not None
                if body["metadata"]["name"] in api.trainjobs:
                    return self._status(409, "already exists")
                if unknown := set(body["spec"]) - set(FIELDS[api.version]):
                    return self._status(400, f"strict decoding error: unknown field {unknown}")
                if refusal := api.admit(body):
                    return self._status(403, refusal)
                trainjob = api.add(body)
                api.make_jobset(trainjob)
                return self._json(trainjob, 201)
            if self.command == "GET" and name:
                return self._json(api.look(name))
            if self.command == "GET":
                found = [job for job in api.trainjobs.values() if matches(job["metadata"].get("labels", {}), selector)]
                return self._json({"items": found, "metadata": {}})
            if self.command == "PATCH":
                assert body is not None
                assert self.headers["Content-Type"] == "application/merge-patch+json"
                if name in api.trainjobs and (refusal := api.admit(api.trainjobs[name])):
                    return self._status(403, refusal)
                if name in api.trainjobs:
                    api.trainjobs[name]["metadata"].setdefault("annotations", {}).update(
                        body["metadata"]["annotations"]
                    )
                    api.touch(api.trainjobs[name])
                return self._json(api.trainjobs.get(name))
            status = api.delete(name, body or {})
            return self._json({"status": "Success"}) if status == 200 else self._status(status, "as it should be")

        def _log(self, pod: str, query: dict[str, list[str]]) -> None:
            assert query["container"] == ["node"]
            assert query["timestamps"] == ["true"]
            since = query.get("sinceTime", [""])[0]
            assert not since or re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", since), since
            lines = [f"{time} {text}\n" for time, text in api.logs.get(pod, ()) if time[:19] >= since[:19]]
            data = "".join(lines).encode()
            cut, breaks = api.log_cuts.pop(0) if api.log_cuts and query["follow"] == ["true"] else (None, False)
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            data = data if cut is None else data[:cut]
            if data:
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            if breaks:
                self.close_connection = True
            else:
                self.wfile.write(b"0\r\n\r\n")

        def _json(self, value: dict | None, status: int = 200) -> None:
            if value is None:
                return self._status(404, "not found")
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            return None

        def _status(self, status: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
            data = json.dumps({"kind": "Status", "code": status, "message": message}).encode()
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    context = {"cluster": "stand-in", "user": "launcher", "namespace": NAMESPACE}
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "stand-in",
                "clusters": [{"name": "stand-in", "cluster": {"server": url}}],
                "users": [{"name": "launcher", "user": {"token": token}}],
                "contexts": [{"name": "stand-in", "context": context}],
            }
        )
    )
    try:
        yield url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
