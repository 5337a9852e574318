"""A stand-in for the KFP API server, on loopback. It is NOT Kubeflow Pipelines: it stores, plays scenarios and records.

What makes it worth testing against: every request body must be exactly what a model of kfp_server_api holds (the real
server refuses unknown fields: CustomMarshaler in its common/utils.go), every pipeline must be accepted by kfp's protos,
every filter and query parameter must be one that the generated client knows; anything else is answered by 400 and kept
in ``problems``. Rules of the server that a client can trip over are kept, each with the place in Kubeflow Pipelines
2.17.0 (backend/src) that it was read from:

- A run that is terminated is CANCELING and then FAILED; Argo has no word for it, so CANCELED never comes
  (ReportWorkflowResource in apiserver/resource/resource_manager.go; IsTerminating in common/util/workflow.go). A run
  that is ending or has ended cannot be terminated (TerminateRun in apiserver/storage/run_store.go).
- Neither a run nor a task that failed has an error text (toApiRun and toApiPipelineTaskDetail in
  apiserver/server/api_converter.go).
- Task details are all the nodes of the Argo workflow, with display names, without ids; child_tasks hold the ids of the
  nodes that follow, called pod_name (NodeStatuses in common/util/workflow.go, toModelTask in api_converter.go), though
  pods have other names (RetrievePodName in workflow.go).
- A log is looked for after 200 was answered; an error is JSON at its end (apiserver/server/run_log_server.go). A pod's
  name finds the pod, a node's id only the archive, which there is once the pod has ended (ReadLog in
  resource_manager.go, GetLogObjectKey in apiserver/archive/log.go).
- Rights are asked for as in ``_RIGHTS``.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import kfp_server_api
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from kfp_workflow import task_details

API = "/apis/v2beta1"
_QUERIES = {
    "experiments": {"page_token", "page_size", "sort_by", "filter", "namespace"},
    "runs": {"page_token", "page_size", "sort_by", "filter", "namespace", "experiment_id"},
    "pipelines": {"page_token", "page_size", "sort_by", "filter", "namespace"},
    "versions": {"page_token", "page_size", "sort_by", "filter", "tag_filter"},
    "upload": {"name", "display_name", "description", "namespace", "tags"},
    "upload_version": {"name", "display_name", "pipelineid", "description", "tags"},
}
_OPERATIONS = [getattr(kfp_server_api.V2beta1PredicateOperation, name) for name in (
    "OPERATION_UNSPECIFIED", "EQUALS", "NOT_EQUALS", "GREATER_THAN", "GREATER_THAN_EQUALS", "LESS_THAN",
    "LESS_THAN_EQUALS", "IN", "IS_SUBSTRING",
)]  # fmt: skip


@dataclass
class Fault:
    """What happens to the next ``times`` requests that match, instead of or after what they ask for."""

    method: str
    path: str  # a regular expression, searched
    status: int = 0
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    body: str = '{"code": 13, "message": "played by the recorder"}'
    cut: str = ""  # "before" the request is acted on, or "after", when only the answer is lost


@dataclass(frozen=True)
class Request:
    """A request as it came."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]


class Refused(Exception):  # noqa: N818
    """What the server answers instead."""

    def __init__(self, status: int, message: str, *, is_problem: bool = True) -> None:
        super().__init__(message)
        self.status, self.message, self.is_problem = status, message, is_problem and status == 400


class Recorder:
    """The server's state, and what came in.

    Attributes:
        states: what a run goes through, one state for every look at it; the last one stays.
        failing: task that fails where a run becomes FAILED.
        tag_name: version the server says it is; "unknown" without its variable TAG_NAME (newHealthzResponse, main.go).
        has_plugins: whether it knows plugins_input; unknown fields are refused (CustomMarshaler in utils.go).
        multi_user: whether namespaces matter.
        token: bearer token that is asked for.
        cookie: session cookie that is asked for; without it, one is sent to a login page.
        clock_offset: how far the server's clock is ahead.
        plugins_output: what a plugin leaves with every run.
        iterations: of every loop.
        logs: of tasks by their name, in a loop with the iteration: ``train(1)``.
        has_pods: whether pods are still there.
        has_archive: whether Argo keeps logs (archiveLogs, which Kubeflow's own installation sets).
        attempts: of a task with a retry policy.
        asked: the rights that requests needed, (resource, verb).
        rights: those that the user has where Kubeflow has several; None: all.
    """

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.server = server
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        self.states = ["PENDING", "RUNNING", "SUCCEEDED"]
        self.failing: str | None = None
        self.iterations, self.attempts = 2, 1
        self.logs: dict[str, str] = {}
        self.has_pods = self.has_archive = True
        self.nodes: dict[str, dict[str, str]] = {}
        self.asked: set[tuple[str, str]] = set()
        self.rights: set[tuple[str, str]] | None = None
        self.tag_name, self.has_plugins, self.multi_user = "2.17.0", True, False
        self.token: str | None = None
        self.cookie: str | None = None
        self.forbidden_namespace: str | None = None
        self.clock_offset = timedelta()
        self.plugins_output: dict[str, Any] | None = None
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.problems: list[str] = []
        self.experiments: dict[str, dict[str, Any]] = {}
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.looks: dict[str, int] = {}
        self.lock = threading.RLock()
        self._models = kfp_server_api.ApiClient()

    def wrap(self, context: ssl.SSLContext) -> None:
        """Speak TLS from now on."""
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = self.url.replace("http://", "https://")

    def now(self) -> datetime:
        """The server's time, in whole seconds as its database keeps it."""
        return (datetime.now(UTC) + self.clock_offset).replace(microsecond=0)

    def posted(self, path: str) -> list[Any]:
        """Bodies of the requests that were posted to ``path``."""
        return [item.body for item in self.requests if item.method == "POST" and item.path == API + path]

    def check(self, body: Any, model: str) -> Any:
        """Return ``body`` if the model holds all of it, and nothing else is in it."""

        class _Answer:
            data = json.dumps(body)

        try:
            held = self._models.sanitize_for_serialization(self._models.deserialize(_Answer, model))
        except (ValueError, TypeError, AttributeError) as error:
            raise Refused(400, f"not a {model}: {error}") from None
        if held != body:
            extra = sorted(set(body) - set(held)) if isinstance(body, dict) and isinstance(held, dict) else body
            raise Refused(400, f"not a {model}: unknown or malformed: {extra}")
        return body

    def check_spec(self, document: dict[str, Any]) -> str:
        """Return the name of a pipeline that kfp's protos accept."""
        spec = document.get("pipeline_spec", document)
        try:
            json_format.ParseDict(document.get("platform_spec", {}), pipeline_spec_pb2.PlatformSpec())
            parsed = json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
        except json_format.ParseError as error:
            raise Refused(400, f"not a pipeline: {error}") from None
        return str(parsed.pipeline_info.name)

    def check_right(self, resource: str, verb: str) -> None:
        """Ask for a right as the server does where Kubeflow has several users."""
        if not self.multi_user:
            return
        self.asked.add((resource, verb))
        if self.rights is not None and (resource, verb) not in self.rights:
            raise Refused(403, f"User is not authorized with reason: (group=pipelines.kubeflow.org, verb={verb}, "
                               f"resource={resource})")  # fmt: skip

    def select(self, kind: str, rows: list[dict[str, Any]], query: dict[str, str]) -> list[dict[str, Any]]:
        """Apply filter and namespace of a list request."""
        if unknown := set(query) - _QUERIES[kind]:
            raise Refused(400, f"unknown query parameters of {kind}: {sorted(unknown)}")
        for predicate in json.loads(query.get("filter") or "{}").get("predicates", []):
            operation = predicate.get("operation")
            operation = _OPERATIONS[operation] if isinstance(operation, int) else operation
            value = predicate.get("stringValue", predicate.get("string_value"))
            key = predicate.get("key")
            if operation not in ("EQUALS", "IS_SUBSTRING") or value is None or set(predicate) - _PREDICATE:
                raise Refused(400, f"the recorder knows no predicate {predicate}")
            rows = [
                row
                for row in rows
                if (value == row.get(key) if operation == "EQUALS" else value in (row.get(key) or ""))
            ]
        if self.multi_user and kind != "versions" and not query.get("namespace") and not query.get("experiment_id"):
            raise Refused(400, "a namespace is needed in multi-user mode")
        if query.get("namespace"):
            rows = [row for row in rows if row.get("namespace", query["namespace"]) == query["namespace"]]
        return rows

    def seen_run(self, run: dict[str, Any]) -> dict[str, Any]:
        """Return a run as it is at this look, and keep its state in its history."""
        look = self.looks[run["run_id"]]
        self.looks[run["run_id"]] += 1
        if "ending" in run:
            run["state"] = run["ending"].pop(0) if len(run["ending"]) > 1 else run["ending"][0]
        else:
            run["state"] = self.states[min(look, len(self.states) - 1)]
        if run["state_history"][-1]["state"] != run["state"]:
            run["state_history"].append({"update_time": self.now().isoformat(), "state": run["state"]})
        shown = _public(run)
        if run["state"] in ("RUNNING", "CANCELING", "SUCCEEDED", "FAILED"):
            shown["run_details"] = {"task_details": task_details(run, self, self.nodes.setdefault(run["run_id"], {}))}
        if self.plugins_output:
            shown["plugins_output"] = self.plugins_output
        return shown


def _public(run: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in run.items() if key != "ending"}


_PREDICATE = {"operation", "key", "stringValue", "string_value"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    recorder: Recorder

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def _handle(self) -> None:
        recorder, parts = self.recorder, urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length) if length else b""
        body: Any = raw
        if raw and "json" in (self.headers.get("Content-Type") or ""):
            body = json.loads(raw)
        query = {key: values[-1] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
        request = Request(self.command, unquote(parts.path), query, body, dict(self.headers))
        with recorder.lock:
            recorder.requests.append(request)
            fault = next(
                (
                    f
                    for f in recorder.faults
                    if f.times and f.method == request.method and re.search(f.path, request.path)
                ),
                None,
            )
            if fault is not None:
                fault.times -= 1
                if fault.cut == "before":
                    self._cut()
                    return
                if fault.status:
                    self._answer(fault.status, fault.body, fault.headers)
                    return
            try:
                self._authenticate(request)
                answer = self._route(request)
            except Refused as refused:
                if refused.is_problem:
                    recorder.problems.append(refused.message)
                content = json.dumps({"error": refused.message, "code": 3, "message": refused.message})
                self._answer(refused.status, content, {"Location": refused.message} if refused.status == 302 else {})
                return
            if fault is not None and fault.cut == "after":
                self._cut()
                return
            if isinstance(answer, str):  # the type is what Go makes of the text
                self._answer(200, answer, {"Content-Type": "text/plain; charset=utf-8"})
                return
            self._answer(200, json.dumps(answer), {})

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, status: int, body: str, headers: dict[str, str]) -> None:
        data = body.encode()
        self.send_response_only(status)
        date = (datetime.now(UTC) + self.recorder.clock_offset).strftime("%a, %d %b %Y %H:%M:%S GMT")
        for key, value in ({"Content-Type": "application/json", "Date": date} | headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _authenticate(self, request: Request) -> None:
        recorder = self.recorder
        if recorder.cookie is not None and request.headers.get("Cookie") != recorder.cookie:
            raise Refused(302, "/dex/auth?client_id=kubeflow-oidc-authservice")
        if recorder.token is not None and request.headers.get("authorization") != f"Bearer {recorder.token}":
            raise Refused(401, "Unauthenticated: the token is missing, wrong or expired")
        body = request.body if isinstance(request.body, dict) else {}
        if recorder.forbidden_namespace in {request.query.get("namespace"), body.get("namespace")} - {None}:
            raise Refused(403, "User is not authorized to this namespace")

    def _route(self, request: Request) -> Any:
        key = f"{request.method} {request.path.removeprefix(API)}"
        for pattern, answer in _ROUTES.items():
            if match := re.fullmatch(pattern, key):
                if (right := _RIGHTS.get(pattern)) is not None:
                    self.recorder.check_right(*right)
                return answer(self.recorder, request, *match.groups())
        raise Refused(404, "Not Found")


def _health(recorder: Recorder, request: Request) -> Any:
    return {"commit_sha": "0" * 40, "tag_name": recorder.tag_name, "multi_user": recorder.multi_user}


def _page(name: str, rows: list[dict[str, Any]], query: dict[str, str]) -> Any:
    start, size = int(query.get("page_token") or 0), int(query.get("page_size") or 10)
    rest = {"next_page_token": str(start + size)} if start + size < len(rows) else {}
    return {name: [_public(row) for row in rows[start : start + size]], "total_size": len(rows)} | rest


def _list_experiments(recorder: Recorder, request: Request) -> Any:
    return _page(
        "experiments", recorder.select("experiments", [*recorder.experiments.values()], request.query), request.query
    )


def _place(item: dict[str, Any]) -> tuple[Any, Any]:
    return item.get("namespace"), item["display_name"]


def _create_experiment(recorder: Recorder, request: Request) -> Any:
    body = recorder.check(request.body, "V2beta1Experiment")
    if any(_place(item) == _place(body) for item in recorder.experiments.values()):
        raise Refused(409, "the experiment exists already")
    made = body | {
        "experiment_id": str(uuid.uuid4()),
        "created_at": recorder.now().isoformat(),
        "storage_state": "AVAILABLE",
    }
    recorder.experiments[made["experiment_id"]] = made
    return made


def _list_runs(recorder: Recorder, request: Request) -> Any:
    rows = [
        run
        for run in recorder.runs.values()
        if run["experiment_id"] == request.query.get("experiment_id", run["experiment_id"])
    ]
    return _page("runs", recorder.select("runs", rows, request.query), request.query)


def _create_run(recorder: Recorder, request: Request) -> Any:
    body = recorder.check(request.body, "V2beta1Run")
    if "plugins_input" in body and not recorder.has_plugins:
        raise Refused(400, 'proto: (line 1:2): unknown field "plugins_input"', is_problem=False)
    if body.get("experiment_id") not in recorder.experiments or not body.get("display_name"):
        raise Refused(400, "a run needs an experiment and a name")
    if ("pipeline_spec" in body) == ("pipeline_version_reference" in body):
        raise Refused(400, "a run needs either pipeline_spec or pipeline_version_reference")
    document = (
        body.get("pipeline_spec")
        or recorder.versions[body["pipeline_version_reference"]["pipeline_version_id"]]["pipeline_spec"]
    )
    recorder.check_spec(document)
    run_id = str(uuid.uuid4())
    made = body | {
        "run_id": run_id, "created_at": recorder.now().isoformat(), "state": "PENDING",
        "storage_state": "AVAILABLE", "pipeline_spec": document,
        "state_history": [{"update_time": recorder.now().isoformat(), "state": "PENDING"}],
    }  # fmt: skip
    recorder.runs[run_id], recorder.looks[run_id] = made, 0
    return made


def _get_run(recorder: Recorder, request: Request, run_id: str) -> Any:
    if run_id not in recorder.runs:
        raise Refused(404, f"run {run_id} not found")
    return recorder.seen_run(recorder.runs[run_id])


def _terminate_run(recorder: Recorder, request: Request, run_id: str) -> Any:
    run = recorder.runs[run_id]
    if run["state"] not in ("PAUSED", "PENDING", "RUNNING", "RUNTIME_STATE_UNSPECIFIED"):
        raise Refused(400, f"Failed to terminate a run {run_id}. Row not found", is_problem=False)
    run |= {"state": "CANCELING", "ending": ["CANCELING", "FAILED"]}  # not in the history, until it is reported
    return {}


def _read_log(recorder: Recorder, request: Request, run_id: str, node: str) -> str:
    name = recorder.nodes.get(run_id, {}).get(node)
    has_pod = recorder.has_pods and "system-container-impl" in node
    archived = recorder.has_archive and recorder.runs.get(run_id, {}).get("state") in ("SUCCEEDED", "FAILED")
    if name in recorder.logs and (has_pod or archived):
        return recorder.logs[name]
    said = f"Failed to read logs for run {run_id}: pods {node!r} not found"
    return json.dumps({"error_message": said, "error_details": said}, separators=(",", ":"))


def _list_pipelines(recorder: Recorder, request: Request) -> Any:
    return _page(
        "pipelines", recorder.select("pipelines", [*recorder.pipelines.values()], request.query), request.query
    )


def _create_pipeline(recorder: Recorder, request: Request) -> Any:
    body = recorder.check(request.body, "V2beta1Pipeline")
    if any(_place(item) == _place(body) for item in recorder.pipelines.values()):
        raise Refused(409, "the pipeline exists already")
    made = body | {"pipeline_id": str(uuid.uuid4()), "created_at": recorder.now().isoformat()}
    recorder.pipelines[made["pipeline_id"]] = made
    return made


def _list_versions(recorder: Recorder, request: Request, pipeline_id: str) -> Any:
    rows = [item for item in recorder.versions.values() if item["pipeline_id"] == pipeline_id]
    return _page("pipeline_versions", recorder.select("versions", rows, request.query), request.query)


def _upload_version(recorder: Recorder, request: Request) -> Any:
    if unknown := set(request.query) - _QUERIES["upload_version"]:
        raise Refused(400, f"unknown query parameters: {sorted(unknown)}")
    head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
    parts = BytesParser().parsebytes(head + request.body).get_payload()
    content = next(part for part in parts if part.get_param("name", header="content-disposition") == "uploadfile")
    documents = [item for item in yaml.load_all(content.get_payload(decode=True), Loader=yaml.CSafeLoader) if item]
    document = documents[0] if len(documents) == 1 else {"pipeline_spec": documents[0], "platform_spec": documents[1]}
    recorder.check_spec(document)
    query = request.query
    if any(
        (item["pipeline_id"], item["display_name"]) == (query["pipelineid"], query["name"])
        for item in recorder.versions.values()
    ):
        raise Refused(409, "the version exists already")
    made = {
        "pipeline_id": query["pipelineid"], "pipeline_version_id": str(uuid.uuid4()), "display_name": query["name"],
        "description": query.get("description", ""), "created_at": recorder.now().isoformat(),
        "pipeline_spec": document,
    }  # fmt: skip
    recorder.versions[made["pipeline_version_id"]] = made
    return made


_ROUTES = {
    "GET /healthz": _health,
    "GET /experiments": _list_experiments,
    "POST /experiments": _create_experiment,
    "GET /runs": _list_runs,
    "POST /runs": _create_run,
    "GET /runs/([^/:]+)": _get_run,
    "POST /runs/([^/:]+):terminate": _terminate_run,
    "GET /pipelines": _list_pipelines,
    "POST /pipelines": _create_pipeline,
    "GET /pipelines/([^/:]+)/versions": _list_versions,
    "POST /pipelines/upload_version": _upload_version,
    "GET /apis/v1alpha1/runs/([^/]+)/nodes/([^/]+)/log": _read_log,
}

_RIGHTS = {  # group pipelines.kubeflow.org, version v1beta1 (common/const.go); ReadRunLogV1 asks for none
    "GET /experiments": ("experiments", "list"),  # listExperiments in server/experiment_server.go
    "POST /experiments": ("experiments", "create"),  # createExperiment
    "GET /runs": ("runs", "list"),  # listRuns in server/run_server.go
    "POST /runs": ("runs", "create"),  # createRun
    "GET /runs/([^/:]+)": ("runs", "get"),  # getRun
    "POST /runs/([^/:]+):terminate": ("runs", "terminate"),  # terminateRun
    "GET /pipelines": ("pipelines", "list"),  # listPipelines in server/pipeline_server.go
    "POST /pipelines": ("pipelines", "create"),  # createPipeline
    # versions are pipelines to it: canAccessPipelineVersion calls canAccessPipeline
    "GET /pipelines/([^/:]+)/versions": ("pipelines", "list"),  # listPipelineVersions
    "POST /pipelines/upload_version": (
        "pipelines",
        "create",
    ),  # uploadPipelineVersion in server/pipeline_upload_server.go
}


@contextmanager
def recording() -> Iterator[Recorder]:
    """Run a recorder on a free port of 127.0.0.1."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    recorder = handler.recorder = Recorder(server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield recorder
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
