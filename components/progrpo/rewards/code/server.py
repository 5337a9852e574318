"""A server that runs programs for others: python -m progrpo.rewards.code.server --host 0.0.0.0 --port 8080

    GET  /healthz      {"status": "ok", "version": "1", "isolation": "full"}
    POST /v1/verify    {"answers": [ANSWER, ...], "items": [[INDEX OF ITS ANSWER, PROGRAM], ...]}
                       {"passed": [true, false, null, ...], "version": "1"}    null: could not be judged

Give it a pod of its own: no egress, no service account token, no secrets, a read-only root file system, a user that is
not root, and a memory limit. It knows no users and no encryption; a network policy says who may talk to it.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from progrpo.errors import DataError, ProGRPOError
from progrpo.rewards import code
from progrpo.rewards.code.cases import parse_answer
from progrpo.rewards.code.sandbox import ISOLATION_VARIABLE, isolation

MAX_BODY = 256 << 20
MAX_ITEMS = 1024

logger = logging.getLogger(__name__)


class _RequestError(Exception):
    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class Server(ThreadingHTTPServer):
    """Runs up to ``num_workers`` programs at once, and refuses more than ``max_requests`` requests at once with 503.

    Args:
        address: host and port; port 0 picks a free one.
        num_workers: programs at once.
        max_requests: requests at once, the ones that wait included.
        max_body: bytes of a request.
    """

    daemon_threads = True

    def __init__(
        self,
        address: tuple[str, int],
        *,
        num_workers: int = code.NUM_WORKERS,
        max_requests: int = 64,
        max_body: int = MAX_BODY,
    ) -> None:
        super().__init__(address, _Handler)
        self.workers = threading.BoundedSemaphore(num_workers)
        self.places = threading.BoundedSemaphore(max_requests)
        self.max_body = max_body
        self.how = isolation()

    def run(self, answers: Sequence[str], items: Sequence[tuple[int, str]]) -> list[bool | None]:
        """Run the programs of one request, each in its turn among those of all requests."""
        outcomes: list[bool | None] = []
        for index, program in items:
            with self.workers:
                outcomes += code.run_here([(answers[index], program)], num_workers=1)
        return outcomes


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 120  # seconds a client may be silent

    def do_GET(self) -> None:
        """Say that the server is there, and of which version."""
        if self.path == "/healthz":
            self._reply(HTTPStatus.OK, {"status": "ok", "version": code.VERSION, "isolation": self.server.how})
        else:
            self._reply(HTTPStatus.NOT_FOUND, {"error": "there are GET /healthz and POST /v1/verify"})

    def do_POST(self) -> None:
        """Run programs."""
        if not self.server.places.acquire(blocking=False):
            self.close_connection = True  # its body is not read
            self._reply(HTTPStatus.SERVICE_UNAVAILABLE, {"error": "too many requests at once, try again"})
            return
        try:
            answers, items = self._content()
            self._reply(HTTPStatus.OK, {"passed": self.server.run(answers, items), "version": code.VERSION})
        except _RequestError as error:
            self.close_connection = True
            self._reply(error.status, {"error": str(error)})
        except ProGRPOError as error:
            self._reply(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)})
        finally:
            self.server.places.release()

    def _content(self) -> tuple[list[str], list[tuple[int, str]]]:
        if self.path != "/v1/verify":
            raise _RequestError(HTTPStatus.NOT_FOUND, "there are GET /healthz and POST /v1/verify")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise _RequestError(HTTPStatus.LENGTH_REQUIRED, "a Content-Length is needed")
        if int(length) > self.server.max_body:
            raise _RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {self.server.max_body} bytes")
        try:
            content = json.loads(self.rfile.read(int(length)))
            answers = [str(answer) for answer in content["answers"]]
            items = [(int(index), str(program)) for index, program in content["items"]]
            if len(items) > MAX_ITEMS or not all(0 <= index < len(answers) for index, _ in items):
                raise ValueError(f"at most {MAX_ITEMS} items, each with the index of an answer")
            for answer in answers:
                parse_answer(answer)
        except (ValueError, KeyError, TypeError, RecursionError, DataError) as error:
            raise _RequestError(HTTPStatus.BAD_REQUEST, f"{type(error).__name__}: {error}"[:500]) from None
        return answers, items

    def _reply(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log at a level of its own: probes ask every few seconds."""
        logger.debug(format, *arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM; exit with 2 where programs cannot be isolated."""
    parser = argparse.ArgumentParser(prog="python -m progrpo.rewards.code.server", description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8080, help="0: a free one, which is printed")
    parser.add_argument("--num-workers", type=int, default=code.NUM_WORKERS, help="programs at once (default: cores)")
    parser.add_argument("--max-requests", type=int, default=64, help="requests at once; more are told to try again")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        code.check_isolation(isolation())
    except ProGRPOError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with Server(
        (options.host, options.port), num_workers=options.num_workers, max_requests=options.max_requests
    ) as server:
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
        host, port = server.server_address[:2]
        logger.info("serving on http://%s:%s, %s=%s", host, port, ISOLATION_VARIABLE, server.how)
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
