"""Ctrl-C, and SIGTERM of a cancelled CI job: the real process, real signals."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from kfp_recorder import Fault


@pytest.fixture
def start(recorder, package_path):
    """Start ``progrpo submit --wait`` as a process of its own."""

    def call(*arguments: str, **kwargs) -> subprocess.Popen:
        command = [sys.executable, "-m", "progrpo_pipelines.cli", "submit", package_path, "--experiment", "nightly"]
        command += ["--endpoint", recorder.url, "--wait", "--poll", "0.1s", *arguments]
        kwargs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | kwargs
        return subprocess.Popen(command, start_new_session=True, **kwargs)

    return call


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_followed(recorder) -> bool:
    return sum("/runs/" in request.path for request in recorder.requests) >= 2


@pytest.mark.parametrize(
    ("sent", "arguments", "code", "state", "message"),
    [
        (signal.SIGINT, [], 130, "RUNNING", "ended the waiting; the run goes on"),
        (
            signal.SIGTERM,
            ["--exit-on-interrupt", "leave"],
            130,
            "RUNNING",
            "ended the waiting; the run goes on",
        ),
        (signal.SIGTERM, ["--exit-on-interrupt", "terminate"], 4, "CANCELING", "The run was told to end"),
    ],
)
def test_signal_without_a_terminal(recorder, start, tmp_path, sent, arguments, code, state, message):
    recorder.states = ["RUNNING"]
    process = start("--junit", str(tmp_path / "junit.xml"), *arguments)
    wait_for(lambda: is_followed(recorder), process)
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert message in err
    assert [run["state"] for run in recorder.runs.values()] == [state]
    assert "a signal ended" in (tmp_path / "junit.xml").read_text()


def test_signal_while_the_run_is_being_started_loses_no_run(recorder, start):
    """The server takes a second over it; the signal comes in the middle, and the run is ended all the same."""
    recorder.states = ["RUNNING"]
    original = recorder.check

    def check(body, model):
        if model == "V2beta1Run":
            process.send_signal(signal.SIGTERM)
            time.sleep(1)
        return original(body, model)

    recorder.check = check
    process = start("--exit-on-interrupt", "terminate")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    assert [run["state"] for run in recorder.runs.values()] == ["CANCELING"]


def test_signal_while_another_job_is_looked_for_loses_no_run(recorder, start):
    recorder.states = ["RUNNING"]
    process = start("--exit-on-interrupt", "terminate", "--idempotency-key", "k")
    wait_for(lambda: recorder.runs, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    assert [run["state"] for run in recorder.runs.values()] == ["CANCELING"]


def test_run_that_cannot_be_ended_is_not_said_to_be_cancelled(recorder, start):
    recorder.states = ["RUNNING"]
    recorder.faults = [Fault("POST", ":terminate$", 403)]
    process = start("--exit-on-interrupt", "terminate")
    wait_for(lambda: is_followed(recorder), process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 5, err
    assert "could NOT be ended and goes on" in err


@pytest.mark.parametrize(
    ("answer", "code", "state"), [("t", 4, "CANCELING"), ("l", 130, "RUNNING"), ("c", 0, "SUCCEEDED")]
)
def test_ctrl_c_asks_on_a_terminal(recorder, start, answer, code, state):
    recorder.states = ["RUNNING"]
    terminal, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    process = start(stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    seen = ""
    wait_for(lambda: is_followed(recorder), process)
    process.send_signal(signal.SIGINT)
    while "continue to wait?" not in seen:
        seen += os.read(terminal, 4096).decode()
    os.write(terminal, f"{answer}\n".encode())
    recorder.states = ["SUCCEEDED"] if answer == "c" else ["RUNNING"]
    try:
        while chunk := os.read(terminal, 4096):
            seen += chunk.decode()
    except OSError:  # the other end is closed
        pass
    assert process.wait(60) == code, seen
    assert [run["state"] for run in recorder.runs.values()] == [state]
    os.close(terminal)


def test_signal_and_a_lost_answer_together_lose_no_run(recorder, start):
    """The server starts the run and the answer is cut off, while a signal comes: the run is found, and ended."""
    recorder.states = ["RUNNING"]
    recorder.faults = [Fault("POST", "/runs$", cut="after")]
    original = recorder.check

    def check(body, model):
        if model == "V2beta1Run":
            process.send_signal(signal.SIGTERM)
            time.sleep(1)
        return original(body, model)

    recorder.check = check
    process = start("--exit-on-interrupt", "terminate")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    assert [run["state"] for run in recorder.runs.values()] == ["CANCELING"]
