"""The KFP API as we use it: kfp_server_api's generated calls, with time-outs, retries and errors that say what to do.

``kfp.Client`` is not used: it has no time-outs and no retries after an answer of 429 or 5xx, follows redirects to login
pages as if they were answers, prints to stdout, and keeps state in ``~/.config/kfp``.
"""

from __future__ import annotations

import http
import json
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any

import kfp_server_api as kfp
import urllib3
from kfp_server_api.exceptions import ApiException

from progrpo_pipelines.client.connection import HOW_TO_AUTHENTICATE, IN_CLUSTER_NAMESPACE, Connection
from progrpo_pipelines.client.errors import ApiError

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 60.0
PATIENCE_S = 300.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 30.0
TRANSIENT = (429, 500, 502, 503, 504)
_NEVER_SENT = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)
_LINE_LENGTH = 500
_LOG_PATIENCE_S, _LOG_BYTES, _LOG_READ_BYTES = 10.0, 256 * 1024, 64 * 2**20

Notify = Callable[[str], None]


def _silent(message: str) -> None:
    pass


class Api:
    """Calls to one KFP API server.

    Args:
        connection: where it is and who we are.
        patience_s: how long the API may fail before a call gives up.
        notify: told of every retry, in a sentence.
        clock: seconds that only go forward; never compared with the server's time.
        sleep: how to wait.
        shield: context in which a request is sent that must not be sent twice, so that no signal loses its answer.
        check: called before a request is repeated; raises what was held back.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        patience_s: float = PATIENCE_S,
        notify: Notify = _silent,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        shield: Callable[[], AbstractContextManager[None]] = nullcontext,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.connection = connection
        self.patience_s = patience_s
        self.clock, self.sleep, self.notify, self._shield = clock, sleep, notify, shield
        self._check = check
        configuration = kfp.Configuration(host=connection.endpoint)
        configuration.retries = False  # ours below know which requests may be sent twice; redirects lead to login pages
        configuration.proxy = connection.proxy
        if connection.ca_file is not None:
            configuration.ssl_ca_cert = str(connection.ca_file)
        configuration.api_key_prefix["authorization"] = "Bearer"
        self._client = kfp.ApiClient(configuration)
        self.runs = kfp.RunServiceApi(self._client)
        self.experiments = kfp.ExperimentServiceApi(self._client)
        self.pipelines = kfp.PipelineServiceApi(self._client)
        self.uploads = kfp.PipelineUploadServiceApi(self._client)

    def _authenticate(self) -> str | None:
        """Put the credentials there are now into the client, and return the token."""
        token = self.connection.token()
        keys = self._client.configuration.api_key
        if token:
            keys["authorization"] = token
        else:
            keys.pop("authorization", None)
        self._client.cookie = self.connection.cookie()
        return token

    def health(self) -> dict[str, Any]:
        """Return what the server says of itself: ``multi_user``, and ``tag_name`` (its version) if it knows it."""
        answer = self.call(
            self._client.call_api,
            "/apis/v2beta1/healthz",
            "GET",
            header_params={"Accept": "application/json"},
            auth_settings=["Bearer"],
            response_type="object",  # the generated model drops tag_name
            _return_http_data_only=True,
        )
        if not isinstance(answer, dict):
            raise ApiError(f"{self.connection.endpoint} {_STRANGE}. {_WHERE}", 200)
        return answer

    def log(self, run_id: str, node: str) -> str:
        """Return the end of a node's log; empty if the server has none.

        The server answers 200 before it looks for the log, so that an error is JSON at the end of the text
        (``ReadRunLogV1`` and ``writeErrorToResponse`` in its ``run_log_server.go``, 2.17.0). There is no way to ask for
        the end alone: of a long log what comes first is dropped, and of a very long one the rest is not read.
        """
        answer = self.call(
            self._client.call_api,
            f"/apis/v1alpha1/runs/{run_id}/nodes/{node}/log",
            "GET",
            header_params={"Accept": "text/plain"},
            auth_settings=["Bearer"],
            _preload_content=False,
            patience_s=min(self.patience_s, _LOG_PATIENCE_S),
            content_type="text/plain",
        )
        content, size = b"", 0
        try:
            for chunk in answer.stream(2**16):
                content, size = (content + chunk)[-_LOG_BYTES:], size + len(chunk)
                if size > _LOG_READ_BYTES:
                    break
        except urllib3.exceptions.HTTPError as error:
            raise self._unreachable(error, maybe_done=False) from None
        finally:
            answer.close()
        text = content.decode("utf-8", "replace")
        before, found, said = text.rpartition('{"error_message":')
        try:
            json.loads(found + said)
        except ValueError:
            return text
        return before

    @cached_property
    def namespace(self) -> str | None:
        """The user's namespace: as given, or in a pod of a Kubeflow with several users the pod's own."""
        if self.connection.namespace or not IN_CLUSTER_NAMESPACE.is_file():
            return self.connection.namespace
        return IN_CLUSTER_NAMESPACE.read_text(encoding="utf-8").strip() if self.health().get("multi_user") else None

    def call(
        self,
        function: Callable[..., Any],
        *args: Any,
        again: bool = True,
        patience_s: float | None = None,
        content_type: str = "json",
        **kwargs: Any,
    ) -> Any:
        """Call a function of kfp_server_api.

        Args:
            function: one of the generated calls.
            args: its arguments.
            again: whether sending the request twice does no harm. If not, it is only repeated where the server cannot
                have acted on it.
            patience_s: overrides the patience of this client.
            content_type: what the answer's is or holds; a login or error page of a proxy is another.
            kwargs: its keyword arguments.

        Raises:
            ApiError: refused, or failing for longer than our patience.
        """
        patience = self.patience_s if patience_s is None else patience_s
        started, wait_s = self.clock(), _FIRST_WAIT_S
        while True:
            used = self._authenticate()
            try:
                with nullcontext() if again else self._shield():
                    answer = function(*args, _request_timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S), **kwargs)
                # The generated models take any text, and are empty then. An empty log has no type.
                if content_type not in self._client.last_response.getheader("Content-Type", "text/plain"):
                    raise ApiError(f"{self.connection.endpoint} {_STRANGE}. {_WHERE}", 200)
                return answer
            except ApiException as error:
                status, asked_s = int(error.status or 0), _retry_after(error.headers)
                if status == 401 and self.connection.token() != used:
                    continue  # replaced while the request was under way
                # A bare 503 may be a proxy's, about a request that the server got; with Retry-After it is the server's.
                not_accepted = status == 429 or (status == 503 and asked_s is not None)
                failure = self._refused(error, maybe_done=status >= 500 and not not_accepted)
                retry = status in TRANSIENT if again else not_accepted
            except AttributeError as error:
                # kfp_server_api's own handling of a TLS failure fails: it decodes a body that is None.
                if not isinstance(error.__context__, ApiException):
                    raise
                raise self._refused(error.__context__, maybe_done=False) from None
            except urllib3.exceptions.HTTPError as error:
                sent = not isinstance(error, _NEVER_SENT)
                failure, asked_s = self._unreachable(error, maybe_done=sent), None
                retry = (again or not sent) and not isinstance(error, urllib3.exceptions.SSLError)
            except (ValueError, TypeError) as error:  # a body that is no such model
                raise ApiError(f"{self.connection.endpoint} {_STRANGE} ({error}). {_WHERE}") from None
            wait_s = wait_s if asked_s is None else asked_s
            if not retry or self.clock() - started + wait_s > patience:
                raise failure from None
            self._check()
            self.notify(f"{failure} Trying again in {wait_s:.0f} s.")
            self.sleep(wait_s)
            wait_s = min(2 * max(wait_s, _FIRST_WAIT_S), _LONGEST_WAIT_S)

    def _refused(self, error: ApiException, *, maybe_done: bool) -> ApiError:
        status = int(error.status or 0)
        if status == 0 and str(error.reason).startswith("Failed to parse"):
            return ApiError(f"{self.connection.endpoint} {_STRANGE}: {one_line(error.reason)}. {_WHERE}")
        if status == 0:  # a TLS failure
            return ApiError(
                f"{self.connection.endpoint}: TLS failed: {one_line(error.reason)}. If the server's certificate is "
                f"signed by a CA of your own, give its PEM file by --ca-file."
            )
        said = _server_message(error.body)
        name = http.HTTPStatus(status).phrase if status in http.HTTPStatus._value2member_map_ else ""
        cause = f"{self.connection.endpoint} answered {status} {name}{': ' + said if said else ''}."
        advice = _advice(status, self.connection.namespace)
        return ApiError(f"{cause} {advice}".rstrip(), status, maybe_done)

    def _unreachable(self, error: Exception, *, maybe_done: bool) -> ApiError:
        if isinstance(error, urllib3.exceptions.ProtocolError):
            cause = "the connection was cut"
        elif isinstance(error, urllib3.exceptions.NameResolutionError):
            cause = "its name is not known"
        elif isinstance(error, urllib3.exceptions.NewConnectionError):
            cause = "nothing listens there"
        elif isinstance(error, urllib3.exceptions.TimeoutError):
            cause = "it did not answer in time"
        else:
            cause = one_line(str(error))
        return ApiError(
            f"{self.connection.endpoint} cannot be reached: {cause}. Check --endpoint, the network, and the "
            f"port-forward if there is one.",
            None,
            maybe_done,
        )


_STRANGE = "does not answer like Kubeflow Pipelines"
_WHERE = "Is --endpoint right? For a Kubeflow UI at https://kubeflow.example.com it is https://kubeflow.example.com/pipeline."


def _advice(status: int, namespace: str | None) -> str:
    if status in (301, 302, 303, 307, 308):
        return f"That leads to a login page: the session is missing or has expired. {HOW_TO_AUTHENTICATE}."
    if status == 401:
        return f"The credentials are missing, wrong or expired. {HOW_TO_AUTHENTICATE}."
    if status == 403:
        where = f"namespace {namespace}" if namespace else "that namespace (--namespace)"
        return f"This account may not do that in {where}. Ask for the contributor role of its Kubeflow profile."
    if status == 404:
        return _WHERE
    if status == 429:
        return "The server takes no more requests just now."
    if status >= 500:
        return "See the log of the deployment ml-pipeline."
    return ""


def _server_message(body: Any) -> str:
    """What a grpc-gateway says went wrong; nothing of an HTML page."""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else str(body or "")
    try:
        content = json.loads(text)
    except ValueError:
        return "" if "<" in text else one_line(text)
    if isinstance(content, dict):
        return one_line(str(content.get("message") or content.get("error") or ""))
    return ""


def one_line(text: Any) -> str:
    """Return ``text`` on one line, of 500 characters at most."""
    line = re.sub(r"\s+", " ", str(text)).strip().rstrip(".")
    return line if len(line) <= _LINE_LENGTH else f"{line[:_LINE_LENGTH]}..."


def _retry_after(headers: Any) -> float | None:
    """Seconds that the server asks us to wait (RFC 9110, 10.2.3); a date is read by the server's own clock."""
    value = (headers or {}).get("Retry-After")
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        until, now = parsedate_to_datetime(value), parsedate_to_datetime(headers.get("Date") or "")
        return max(0.0, (until - now).total_seconds())
    except (ValueError, TypeError):
        return None


def name_filter(name: str, *, key: str = "display_name", operation: str = "EQUALS") -> str:
    """Return the filter parameter of a list call: ``key`` equals, or holds, ``name``."""
    return json.dumps({"predicates": [{"operation": operation, "key": key, "stringValue": name}]})


def list_all(api: Api, function: Callable[..., Any], items: str, **kwargs: Any) -> list[Any]:
    """Return every page of a list call."""
    found: list[Any] = []
    token = ""
    while True:
        page = api.call(function, page_size=100, page_token=token, **kwargs)
        found += getattr(page, items) or []
        token = page.next_page_token or ""
        if not token:
            return found
