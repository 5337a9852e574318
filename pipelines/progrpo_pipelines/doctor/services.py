"""Kubeflow Pipelines, MLflow, the object store and the code sandbox, by the environment that pods get."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from progrpo.errors import ConfigError, StorageError
from progrpo_components.settings import PIPELINES
from progrpo_pipelines.client.connection import Connection
from progrpo_pipelines.doctor.check import Check, failed, shown

TIMEOUT_S = 10.0
_OLDEST_KFP, _PLUGIN_KFP = (2, 15), (2, 17)
_PROBE = ".progrpo-doctor-"


def check_pipelines(connect: Any) -> Iterator[Check]:
    """Look at Kubeflow Pipelines: does it answer, does it know us, and are our pipelines there.

    Args:
        connect: called without arguments; returns the Connection.
    """
    from progrpo_pipelines.client.api import Api, list_all
    from progrpo_pipelines.client.errors import ApiError

    name = "Kubeflow Pipelines"
    try:
        connection: Connection = connect()
    except ConfigError as error:
        check = failed(name, error)
        yield replace(check, state="skipped") if "no endpoint" in check.detail else check
        return
    api = Api(connection, patience_s=0.0)
    try:
        health = api.health()
        yield _version(name, connection, health)
        namespace = api.namespace
        if health.get("multi_user") and not namespace:
            yield Check("Pipelines", "failed", "this Kubeflow has several users", "Give --namespace NAMESPACE.")
            return
        found = list_all(api, api.pipelines.pipeline_service_list_pipelines, "pipelines", namespace=namespace or "")
    except (ApiError, ConfigError) as error:
        yield failed(name, error)
        return
    ours = sorted({pipeline.display_name for pipeline in found} & set(PIPELINES))
    where = f"in namespace {namespace}" if namespace else "on this server"
    if ours:
        yield Check("Pipelines", "ok", f"{', '.join(ours)} uploaded {where}")
    else:
        yield Check(
            "Pipelines", "warning", f"none of ours is uploaded {where}", "progrpo upload pipelines/compiled/*.yaml"
        )


def _version(name: str, connection: Connection, health: Mapping[str, Any]) -> Check:
    tag = str(health.get("tag_name", "unknown"))
    match = re.match(r"v?(\d+)\.(\d+)", tag)
    detail = f"{connection.endpoint}, version {tag}"
    if match is None:
        return Check(name, "ok", detail)
    version = (int(match[1]), int(match[2]))
    if version < _OLDEST_KFP:
        return Check(name, "failed", detail, "The compiled pipelines need 2.15 or later: upgrade Kubeflow Pipelines.")
    if version < _PLUGIN_KFP:
        return Check(name, "ok", f"{detail}: compile with --backend {version[0]}.{version[1]}")
    return Check(name, "ok", detail)


def check_mlflow() -> Iterator[Check]:
    """Look at the MLflow server with mlflow's own client, so that every way to authenticate is the pods' own."""
    from progrpo_components.tracking.server import server_uri

    name, uri = "MLflow", server_uri() or ""
    if not uri.startswith(("http://", "https://")):
        what = f"MLFLOW_TRACKING_URI is {shown(uri)!r}" if uri else "MLFLOW_TRACKING_URI is not set"
        yield Check(name, "skipped", f"{what}: runs are logged, but to no server")
        return
    settings = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": f"{TIMEOUT_S:.0f}"}
    with _environment({**settings, "MLFLOW_DISABLE_TELEMETRY": "true"}):
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            experiments = MlflowClient(uri).search_experiments(max_results=1)
        except (MlflowException, OSError, ValueError) as error:
            yield Check(name, "failed", f"{shown(uri)}: {shown(error)}", _mend_mlflow(str(error)))
            return
    yield Check(name, "ok", f"{shown(uri)} answers, and we may read {'experiments' if experiments else 'it'}")


def _mend_mlflow(error: str) -> str:
    if "401" in error or "403" in error or "PERMISSION" in error:
        return (
            "Check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN: in a pod, "
            "the secret progrpo-mlflow."
        )
    return "Check MLFLOW_TRACKING_URI, that the server runs, and the network policies between here and it."


def check_s3(uri: str | None, *, write: bool) -> Iterator[Check]:
    """Look at the object store: list, and with ``write`` put, read and delete a probe object.

    Args:
        uri: ``s3://BUCKET/PREFIX`` to look at; absent: only whether the credentials are known.
        write: whether to write.
    """
    from progrpo.storage import s3_client, split_s3_uri, take_own_variables

    name = "Object store"
    take_own_variables()
    if uri is None and not any(os.environ.get(key) for key in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_PROFILE")):
        yield Check(name, "skipped", "no AWS_ variable is set: only local paths and embedded:// can be read")
        return
    if uri is None:
        yield _credentials(name)
        return
    try:
        if not uri.startswith("s3://"):
            raise StorageError(f"{uri!r} is no s3://BUCKET/PREFIX.")
        bucket, prefix = split_s3_uri(uri)
        with s3_client(uri) as client:
            client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
            if write:
                key = f"{prefix.rstrip('/')}/{_PROBE}{secrets.token_hex(8)}".lstrip("/")
                client.put_object(Bucket=bucket, Key=key, Body=b"progrpo doctor")
                try:
                    read = client.get_object(Bucket=bucket, Key=key)["Body"].read()
                finally:
                    client.delete_object(Bucket=bucket, Key=key)
                if read != b"progrpo doctor":
                    yield Check(name, "failed", f"{uri}: what was written is not what is read", "Look at the store.")
                    return
    except StorageError as error:
        yield failed(name, error)
        return
    yield Check(name, "ok", f"{uri}: may be listed{', written, read and deleted from' if write else ''}")


def _credentials(name: str) -> Check:
    from botocore.exceptions import ClientError

    from progrpo.storage import s3_client

    try:
        with s3_client("s3://") as client:
            try:
                client.list_buckets()
            except ClientError as error:
                # The signature was checked before the right to list: the keys are known, and may do other things.
                if error.response.get("Error", {}).get("Code") != "AccessDenied":
                    raise
                return Check(
                    name, "warning", f"{client.meta.endpoint_url}: the keys are known, but may not list the buckets",
                    "Give --s3 s3://BUCKET/PREFIX to look at the place that runs use.",
                )  # fmt: skip
            return Check(name, "ok", f"{client.meta.endpoint_url}: the keys are known")
    except StorageError as error:
        return failed(name, error)


def check_sandbox(environment: Mapping[str, str] = os.environ) -> Iterator[Check]:
    """Look at the server that runs programs for the code verifier."""
    import urllib3

    name, url = "Code sandbox", environment.get("PROGRPO_SANDBOX_URL", "")
    if not url:
        yield Check(name, "skipped", "PROGRPO_SANDBOX_URL is not set: only the task code needs it")
        return
    mend = "Check PROGRPO_SANDBOX_URL, its Deployment (kubectl get pods), and the network policies."
    try:
        with urllib3.PoolManager(retries=False) as pool:
            answer = pool.request("GET", f"{url.rstrip('/')}/healthz", timeout=TIMEOUT_S)
            content = json.loads(answer.data) if answer.status == 200 else None
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        yield Check(name, "failed", f"{shown(url)}: {shown(error)}", mend)
        return
    if not isinstance(content, dict) or content.get("status") != "ok":
        yield Check(name, "failed", f"{shown(url)}/healthz answers {answer.status}", mend)
        return
    isolation = f", isolation {shown(content['isolation'])}" if "isolation" in content else ""
    yield Check(name, "ok", f"{shown(url)}{isolation}")


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
