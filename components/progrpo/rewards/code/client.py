"""Programs run by a server: :mod:`progrpo.rewards.code.server`, named by ``PROGRPO_SANDBOX_URL``."""

from __future__ import annotations

import http.client
import json
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from progrpo.errors import ConfigError

MAX_ITEMS = 16
MAX_BYTES = 32 << 20
NUM_REQUESTS = 32  # under way at once; the server runs as many programs at once as it has cores
TIMEOUT_S = 900.0
WAITS_S = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 30.0)  # between attempts: a server that starts again is back within them

logger = logging.getLogger(__name__)
_known: set[str] = set()


def run_remotely(url: str, programs: Sequence[tuple[str, str]]) -> list[bool | None]:
    """Have (answer column, program) pairs run by the server at ``url``.

    Returns:
        whether each passes; None: the server could not be reached for a minute and a half, or could not judge it.

    Raises:
        ConfigError: a URL that is none, no server there from the start, or one of another version.
    """
    check_server(url)
    requests = list(_requests(programs))
    with ThreadPoolExecutor(min(NUM_REQUESTS, len(requests))) as threads:
        replies = list(threads.map(lambda request: _outcomes(url, request), requests))
    return [outcome for reply in replies for outcome in reply]


def check_server(url: str) -> None:
    """Ask a server, once a process, whether it is there and of this version.

    Raises:
        ConfigError: it is not.
    """
    from progrpo.rewards.code import URL_VARIABLE, VERSION

    if url in _known:
        return
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{URL_VARIABLE} is {url!r}. Give http://HOST:PORT or https://HOST:PORT.")
    try:
        status, reply = _request(url, "GET", "/healthz")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ConfigError(
            f"no server for programs at {URL_VARIABLE} = {url} ({type(error).__name__}: {error}). Start one, python -m "
            f"progrpo.rewards.code.server, or correct the URL."
        ) from None
    if status != http.client.OK or reply.get("version") != VERSION:
        raise ConfigError(
            f"{URL_VARIABLE} = {url} answers with status {status} and verifier version {reply.get('version')!r}, "
            f"{VERSION!r} is needed: results of different verifiers do not compare. Run the same progrpo on both sides."
        )
    _known.add(url)


def _requests(programs: Sequence[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Cut into requests of bounded size; the tests of a problem, often megabytes, are sent once in each."""
    answers: dict[str, int] = {}
    items: list[list[Any]] = []
    size = 0
    for answer, program in programs:
        added = len(program) + (0 if answer in answers else len(answer))
        if items and (len(items) == MAX_ITEMS or size + added > MAX_BYTES):
            yield {"answers": list(answers), "items": items}
            answers, items, size = {}, [], 0
            added = len(program) + len(answer)
        items.append([answers.setdefault(answer, len(answers)), program])
        size += added
    yield {"answers": list(answers), "items": items}


def _outcomes(url: str, request: dict[str, Any]) -> list[bool | None]:
    unknown: list[bool | None] = [None] * len(request["items"])
    for wait_s in (*WAITS_S, None):
        try:
            status, reply = _request(url, "POST", "/v1/verify", request)
            if status == http.client.OK and len(reply["passed"]) == len(unknown):
                return [None if passed is None else bool(passed) for passed in reply["passed"]]
            problem = f"status {status}: {reply.get('error')}"
            if status not in (http.client.TOO_MANY_REQUESTS, http.client.SERVICE_UNAVAILABLE):
                break
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            problem = f"{type(error).__name__}: {error}"
        if wait_s is not None:
            time.sleep(wait_s)
    logger.warning("%d programs could not be judged by %s: %s", len(unknown), url, problem)
    return unknown


def _request(url: str, method: str, path: str, content: Any = None) -> tuple[int, dict[str, Any]]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = connect(parts.hostname, parts.port, timeout=TIMEOUT_S if content is not None else 30.0)
    try:
        body = None if content is None else json.dumps(content).encode()
        connection.request(method, parts.path.rstrip("/") + path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        reply = json.loads(response.read())
        if not isinstance(reply, dict):
            raise ValueError("the reply is no JSON object")
        return response.status, reply
    finally:
        connection.close()
