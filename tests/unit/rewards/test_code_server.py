"""The server that runs programs, as a process of its own, and the client that verify_batch becomes with it."""

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading

import pytest

from progrpo.errors import ConfigError
from progrpo.rewards import code, verify, verify_batch
from progrpo.rewards.code import client
from progrpo.rewards.code.server import Server

pytestmark = pytest.mark.usefixtures("sandboxes")

ANSWER = json.dumps({"inputs": ["1 2\n"], "outputs": ["3\n"]})
RIGHT, WRONG = "print(sum(map(int, input().split())))", "print(0)"


@pytest.fixture(scope="module")
def url(sandboxes):
    """A server as it is deployed, on a free port."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "progrpo.rewards.code.server", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if "serving on" in line)
        yield re.search(r"http://\S+:\d+", line)[0]
    finally:
        process.terminate()
        assert process.wait(30) == 0
        process.stderr.close()


@pytest.fixture
def remote(url, monkeypatch):
    """verify_batch uses the server, and nothing runs here."""
    monkeypatch.setenv("PROGRPO_SANDBOX_URL", url)
    monkeypatch.setattr(code, "run_here", lambda *_: pytest.fail("ran a program on this machine"))
    return url


def ask(url: str, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None):
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    content = json.loads(response.read())
    connection.close()
    return response.status, content


def test_verdicts_come_from_the_server(remote):
    programs = [RIGHT, WRONG, "while True: x", RIGHT]
    verdicts = verify_batch([("code", ANSWER, f"```python\n{program}\n```") for program in programs])
    assert [(verdict.correct, verdict.scored) for verdict in verdicts] == [
        (True, True), (False, True), (False, True), (True, True)
    ]  # fmt: skip
    assert verdicts[0].answer == RIGHT


def test_many_programs_go_in_several_requests(remote, monkeypatch):
    monkeypatch.setattr(client, "MAX_ITEMS", 3)
    answers = [json.dumps({"inputs": [""], "outputs": [str(i)]}) for i in range(4)]
    items = [("code", answer, f"```\nprint({i})\n```") for answer in answers for i in range(2)]
    assert [v.correct for v in verify_batch(items)] == [True, False, False, True, False, False, False, False]
    sent = list(client._requests([(answer, program) for _, answer, program in items]))
    assert [len(request["items"]) for request in sent] == [3, 3, 2]
    assert all(request["answers"][index] == answer
               for request, group in zip(sent, (items[:3], items[3:6], items[6:]), strict=True)
               for (index, _), (_, answer, _) in zip(request["items"], group, strict=True))  # fmt: skip


def test_health(url):
    assert ask(url, "GET", "/healthz") == (200, {"status": "ok", "version": code.VERSION, "isolation": "full"})
    assert ask(url, "GET", "/")[0] == 404


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"no JSON", {}, 400),
        (b"[1]", {}, 400),
        (json.dumps({"answers": [ANSWER], "items": [[1, "x"]]}).encode(), {}, 400),
        (json.dumps({"answers": ["{}"], "items": [[0, "x"]]}).encode(), {}, 400),
        (json.dumps({"answers": [ANSWER], "items": [[0, "x"]] * 2000}).encode(), {}, 400),
        (b"", {"Content-Length": str(1 << 40)}, 413),
        (b"", {"Content-Length": "-1"}, 411),
    ],
)
def test_what_is_no_request_is_refused(url, body, headers, status):
    got, content = ask(url, "POST", "/v1/verify", body, headers)
    assert got == status
    assert content["error"]


def test_requests_at_once_are_bounded():
    with Server(("127.0.0.1", 0), num_workers=1, max_requests=1) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}"
            server.places.acquire()
            body = json.dumps({"answers": [ANSWER], "items": [[0, RIGHT]]}).encode()
            assert ask(url, "POST", "/v1/verify", body)[0] == 503
            assert ask(url, "GET", "/healthz")[0] == 200  # a probe still gets through
            server.places.release()
            assert ask(url, "POST", "/v1/verify", body) == (200, {"passed": [True], "version": code.VERSION})
        finally:
            server.shutdown()
            thread.join()


def test_a_server_that_is_not_there_is_an_error_at_once(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PROGRPO_SANDBOX_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(ConfigError, match="no server for programs"):
            verify("code", ANSWER, f"```\n{RIGHT}\n```")
    monkeypatch.setenv("PROGRPO_SANDBOX_URL", "sandbox:8080")
    with pytest.raises(ConfigError, match="Give http://HOST:PORT"):
        verify("code", ANSWER, f"```\n{RIGHT}\n```")


def test_a_server_of_another_version_is_refused(remote, monkeypatch):
    monkeypatch.setattr(client, "_known", set())
    monkeypatch.setattr(code, "VERSION", "0")
    with pytest.raises(ConfigError, match="results of different verifiers do not compare"):
        verify("code", ANSWER, f"```\n{RIGHT}\n```")


def test_a_server_that_went_away_leaves_programs_unscored(monkeypatch, caplog):
    monkeypatch.setattr(client, "WAITS_S", (0.01,))
    monkeypatch.setattr(client, "_known", {"http://127.0.0.1:9"})
    monkeypatch.setenv("PROGRPO_SANDBOX_URL", "http://127.0.0.1:9")
    assert not verify("code", ANSWER, f"```\n{RIGHT}\n```").scored
    assert "could not be judged" in caplog.text


def test_it_does_not_start_where_it_cannot_isolate():
    command = [sys.executable, "-m", "progrpo.rewards.code.server", "--port", "0"]
    environment = {**os.environ, "PROGRPO_CODE_ISOLATION": "none"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "Allowed: full, pod" in result.stderr
