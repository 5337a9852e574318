"""A loopback proxy that fails on purpose, in front of a real server."""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

STATUSES = {"500": 500, "429": 429, "403": 403, "disk full": 507}
QUICK = (*STATUSES, "delay", "cut before", "cut after")
FAULTS = (*QUICK, *QUICK, *QUICK, "late")
"""``cut before``: the connection ends and the server has seen nothing. ``cut after``: the server has answered, the
client does not learn it. ``late``: the client has given up by the time the server sees the request."""


class FaultProxy:
    """Passes requests on, but for those that a fault hits.

    Args:
        upstream: port of the server, on 127.0.0.1.
        faults: what happens, in turn.
        share: of requests to log a batch that are hit, as long as there are faults; of others an eighth of it.
        late_s: how long a late request is held; longer than the client's time limit.
    """

    def __init__(
        self, upstream: int, *, faults: Sequence[str] = FAULTS, share: float = 0.9, late_s: float = 3.5
    ) -> None:
        self.injected: Counter[str] = Counter()
        self.remaining = 0
        self._upstream, self._share, self._late_s = upstream, share, late_s
        self._faults = list(faults)
        self._random, self._lock = random.Random(0), threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                with suppress(OSError):  # the client has gone
                    super().handle_one_request()

            def forward(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                proxy._handle(self, self.rfile.read(length))

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward  # noqa: N815  # the names http.server calls

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"

    def inject(self, count: int) -> None:
        """Let the next ``count`` faults happen."""
        self.remaining = count

    def _draw(self, path: str) -> str | None:
        with self._lock:
            share = self._share if path.endswith("/log-batch") else self._share / 8
            if self.remaining <= 0 or self._random.random() > share:
                return None
            self.remaining -= 1
            # In turn, so that none is left out.
            fault = self._faults[sum(self.injected.values()) % len(self._faults)]
            self.injected[fault] += 1
            return fault

    def _handle(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        fault = self._draw(handler.path)
        if fault in STATUSES:
            text = b"<html>no</html>"
            handler.send_response(STATUSES[fault])
            handler.send_header("Content-Length", str(len(text)))
            handler.end_headers()
            handler.wfile.write(text)
            return
        if fault == "cut before":
            self._cut(handler)
            return
        if fault in ("delay", "late"):
            time.sleep(0.2 if fault == "delay" else self._late_s)
        status, headers, answer = self._ask(handler, body)
        if fault == "cut after":
            self._cut(handler)
            return
        handler.send_response(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(answer)))
        handler.end_headers()
        handler.wfile.write(answer)

    def _ask(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._upstream, timeout=60)
        try:
            headers = {name: value for name, value in handler.headers.items() if name.lower() != "host"}
            connection.request(handler.command, handler.path, body, headers)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()

    @staticmethod
    def _cut(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        with suppress(OSError):
            handler.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def running_proxy(upstream: int, **options: Any) -> Iterator[FaultProxy]:
    """Start a proxy, and stop it at the end."""
    proxy = FaultProxy(upstream, **options)
    thread = threading.Thread(target=proxy._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy._server.shutdown()
        proxy._server.server_close()
