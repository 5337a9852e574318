"""A loopback stand-in for the Kubernetes API server, as far as Helm needs one to install, upgrade and uninstall.

It keeps objects, refuses to change what can never change (``upgrade.py``), what Kubeflow Trainer's webhook refuses, and
pods whose service account is not there. It validates nothing else, runs nothing, and knows no users: it shows what
Helm's engine does with a chart that looks into the cluster, not what a cluster does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import yaml

from charts.upgrade import changes
from webhooks import refused_runtime

_RESOURCES = {
    "v1": {
        **{"ConfigMap": "configmaps", "PersistentVolumeClaim": "persistentvolumeclaims", "Secret": "secrets"},
        **{"Service": "services", "ServiceAccount": "serviceaccounts", "Pod": "pods"},
    },
    "apps/v1": {"Deployment": "deployments", "StatefulSet": "statefulsets"},
    "networking.k8s.io/v1": {"NetworkPolicy": "networkpolicies"},
    "policy/v1": {"PodDisruptionBudget": "poddisruptionbudgets"},
}


class KubeAPI(ThreadingHTTPServer):
    """The server.

    Attributes:
        objects: what is stored, by path.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, dict[str, Any]] = {}

    @property
    def kubeconfig(self) -> str:
        """What a client needs to find it."""
        entry = {"server": f"http://127.0.0.1:{self.server_port}"}
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "clusters": [{"name": "test", "cluster": entry}],
                "users": [{"name": "test", "user": {}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            }
        )

    def of(self, kind: str) -> dict[str, dict[str, Any]]:
        """Return the stored objects of a kind by name."""
        return {o["metadata"]["name"]: o for o in self.objects.values() if o["kind"] == kind}


class _Handler(BaseHTTPRequestHandler):
    server: KubeAPI
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = urlsplit(self.path).path.rstrip("/")
        found = _discovery(path) or self.server.objects.get(path)
        if found is None and path.rpartition("/")[2] in _plurals():
            items = [o for p, o in self.server.objects.items() if p.startswith(f"{path}/")]
            found = {"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}
        self._answer(200, found) if found else self._refuse(404, "NotFound", f"{path} not found")

    def do_POST(self) -> None:
        body = self._body()
        self._store(f"{urlsplit(self.path).path}/{body['metadata']['name']}", body)

    def do_PATCH(self) -> None:
        path, body = urlsplit(self.path).path, self._body()
        if "apply" not in self.headers["Content-Type"]:
            body = _merged(self.server.objects[path], body)
        self._store(path, body)

    do_PUT = do_PATCH  # noqa: N815 - http.server's name

    def do_DELETE(self) -> None:
        self._body()
        found = self.server.objects.pop(urlsplit(self.path).path, None)
        self._answer(200, found) if found else self._refuse(404, "NotFound", "not found")

    def _store(self, path: str, body: dict[str, Any]) -> None:
        old = self.server.objects.get(path)
        if old and (fixed := list(changes(old, body))):
            self._refuse(422, "Invalid", f"{body['kind']} is invalid: Value is immutable: {', '.join(fixed)}")
            return
        if refusal := self._admission(path, body, is_new=old is None):
            self._refuse(403, "Forbidden", refusal)
            return
        body["metadata"] |= {"uid": path, "resourceVersion": "1", "generation": 1}
        self.server.objects[path] = body
        self._answer(200 if old else 201, body)

    def _admission(self, path: str, body: dict[str, Any], *, is_new: bool) -> str:
        """Return what the API server's own admission or a webhook says against an object; empty: nothing."""
        if is_new and body["kind"] == "Pod":  # plugin/pkg/admission/serviceaccount/admission.go
            name = body["spec"].get("serviceAccountName", "default")
            namespace = path.partition("/namespaces/")[2].partition("/")[0]
            if (
                name != "default"
                and f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}" not in self.server.objects
            ):
                return (
                    f'pods "{body["metadata"]["name"]}" is forbidden: error looking up service account '
                    f'{namespace}/{name}: serviceaccount "{name}" not found'
                )
        if is_new and body["kind"] == "TrainingRuntime" and (refused := refused_runtime(body)):
            webhook = "validator.trainingruntime.trainer.kubeflow.org"
            return f'admission webhook "{webhook}" denied the request: {", ".join(refused)}'
        return ""

    def _body(self) -> dict[str, Any]:
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return yaml.safe_load(text) or {}

    def _refuse(self, code: int, reason: str, message: str) -> None:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
        self._answer(code, {**status, "reason": reason, "message": message})

    def _answer(self, code: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def _plurals() -> set[str]:
    return {plural for kinds in _RESOURCES.values() for plural in kinds.values()}


def _discovery(path: str) -> dict[str, Any] | None:
    groups = [version for version in _RESOURCES if "/" in version]
    if path == "/version":
        return {"major": "1", "minor": "35", "gitVersion": "v1.35.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        listed = [{"groupVersion": version, "version": version.partition("/")[2]} for version in groups]
        named = [{"name": v["groupVersion"].partition("/")[0], "versions": [v], "preferredVersion": v} for v in listed]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": named}
    if path.startswith("/openapi/v3"):
        return _openapi(path.removeprefix("/openapi/v3").strip("/"))
    version = path.removeprefix("/apis/").removeprefix("/api/")
    if version in _RESOURCES and path.startswith("/api"):
        verbs = ["create", "delete", "get", "list", "patch", "update"]
        resources = [
            {"name": plural, "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": verbs}
            for kind, plural in _RESOURCES[version].items()
        ]
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}
    return None


def _openapi(path: str) -> dict[str, Any]:
    """Return what tells a client that the server itself checks fields, so that it downloads no schemas to do so."""
    if not path:
        folders = [f"apis/{version}" if "/" in version else f"api/{version}" for version in _RESOURCES]
        return {"paths": {folder: {"serverRelativeURL": f"/openapi/v3/{folder}?hash=1"} for folder in folders}}
    version = path.removeprefix("apis/").removeprefix("api/")
    group, _, number = version.rpartition("/")
    parameter = {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}
    paths = {
        f"/{path}/namespaces/{{namespace}}/{plural}/{{name}}": {
            "patch": {
                "parameters": [parameter],
                "responses": {"200": {"description": "OK"}},
                "x-kubernetes-group-version-kind": {"group": group, "version": number, "kind": kind},
            }
        }
        for kind, plural in _RESOURCES[version].items()
    }
    return {"openapi": "3.0.0", "info": {"title": "stand-in", "version": "1"}, "paths": paths}


def _merged(old: Any, patch: Any) -> Any:
    """Return a JSON merge patch applied."""
    if not isinstance(patch, dict):
        return patch
    result = dict(old) if isinstance(old, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = _merged(result.get(name), value)
    return result


@contextmanager
def running_kube_api() -> Iterator[KubeAPI]:
    """Serve until the end of the block."""
    with KubeAPI() as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
