"""Whatever the server does: the exit code, the message, the JSON and the JUnit file that a CI job needs.

The server is the stand-in of kfp_recorder.py; no Kubeflow was there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import format_datetime
from xml.etree import ElementTree as ET

import pytest

from kfp_recorder import Fault


def read_junit(path):
    return ET.parse(path).getroot()[0]  # noqa: S314  # our own file


RUN = r"/runs/[^/]+$"


@dataclass
class Scenario:
    """What the server does, and what must come of it."""

    code: int
    message: str
    states: Sequence[str] = ("PENDING", "RUNNING", "SUCCEEDED")
    faults: Sequence[Fault] = ()
    settings: dict[str, object] = field(default_factory=dict)
    arguments: Sequence[str] = ()
    runs: int = 1
    junit: str = ""  # what the run's case holds: failure, error or nothing


def _fault(*args, **kwargs) -> Fault:
    return Fault(*args, **kwargs)


SCENARIOS = {
    "succeeded": Scenario(0, "the run succeeded"),
    "failed": Scenario(
        1, "the run failed: Evaluate: the server has no log of it. Its log is on the run's page", ("RUNNING", "FAILED"),
        settings={"failing": "evaluate"}, junit="failure",
    ),
    "failed without a failed task": Scenario(
        1, "the run failed. The logs are on the run's page", ("FAILED",), junit="failure"
    ),
    "cancelled": Scenario(4, "the run was cancelled", ("RUNNING", "CANCELING", "FAILED"), junit="failure"),
    "cancelled by another backend than Argo": Scenario(4, "the run was cancelled", ("CANCELED",), junit="failure"),
    "cancelled, and it succeeded all the same": Scenario(
        4, "the run was cancelled", ("RUNNING", "CANCELING", "SUCCEEDED"), junit="failure"
    ),
    "skipped": Scenario(1, "the run was skipped: nothing was run", ("PENDING", "SKIPPED"), junit="failure"),
    "pending for ever": Scenario(
        3, "has not ended in 1 s; its last state was PENDING and no task of it has started", ("PENDING",),
        arguments=("--timeout", "1s"), junit="error",
    ),
    "paused": Scenario(3, "its last state was PAUSED", ("PAUSED",), arguments=("--timeout", "0.2s"), junit="error"),
    "401": Scenario(5, "answered 401 Unauthorized", settings={"token": "right"}, runs=0, junit="error"),
    "403": Scenario(
        5, "may not do that in namespace other", settings={"forbidden_namespace": "other"},
        arguments=("--namespace", "other"), runs=0, junit="error",
    ),
    "404": Scenario(
        5, "https://kubeflow.example.com/pipeline", faults=[_fault("GET", "/experiments", 404, body="<html>")], runs=0,
        junit="error",
    ),
    "a login page": Scenario(5, "leads to a login page", settings={"cookie": "s=1"}, runs=0, junit="error"),
    "400": Scenario(
        5, "answered 400 Bad Request: played", faults=[_fault("POST", "/runs$", 400)], runs=0, junit="error"
    ),
    "429 that passes": Scenario(
        0, "Trying again in 0 s", faults=[_fault("POST", "/runs$", 429, times=2, headers={"Retry-After": "0"})]
    ),
    "429 that stays": Scenario(
        5, "answered 429 Too Many Requests", runs=0, junit="error",
        faults=[_fault("POST", "/runs$", 429, times=99, headers={"Retry-After": "9"})],
    ),
    "500 at the start": Scenario(
        5, "was not started, as far as the server shows", faults=[_fault("POST", "/runs$", 500)], runs=0, junit="error"
    ),
    "500 while waiting": Scenario(0, "answered 500", faults=[_fault("GET", RUN, 500, times=2)]),
    "500 that stays": Scenario(
        5, "log of the deployment ml-pipeline", faults=[_fault("GET", RUN, 500, times=99)], junit="error"
    ),
    "503 of the server at the start": Scenario(
        0, "answered 503", faults=[_fault("POST", "/runs$", 503, headers={"Retry-After": "0"})]
    ),
    "503 of a proxy at the start": Scenario(
        5, "was not started, as far as the server shows", faults=[_fault("POST", "/runs$", 503)], runs=0, junit="error"
    ),
    "cut while waiting": Scenario(0, "the connection was cut", faults=[_fault("GET", RUN, cut="before", times=2)]),
    "cut before the run is made": Scenario(
        5, "was not started, as far as the server shows", faults=[_fault("POST", "/runs$", cut="before")], runs=0,
        junit="error",
    ),
    "cut after the run is made": Scenario(
        0, "the answer was lost, but the run was started", faults=[_fault("POST", "/runs$", cut="after")]
    ),
    "cut, and the name is not ours alone": Scenario(
        5, "The run may have been started: look for 'mine'", faults=[_fault("POST", "/runs$", cut="after")],
        arguments=("--run-name", "mine"), junit="error",
    ),
    "cut, and there is a key": Scenario(
        0, "the run was started", faults=[_fault("POST", "/runs$", cut="after")],
        arguments=("--run-name", "mine", "--idempotency-key", "k1"),
    ),
    "the server's clock is ahead": Scenario(0, "the run succeeded", settings={"clock_offset": timedelta(days=3)}),
    "the server's clock is behind": Scenario(0, "the run succeeded", settings={"clock_offset": timedelta(days=-3)}),
    "the run vanishes": Scenario(5, "answered 404", faults=[_fault("GET", RUN, 404)], junit="error"),
    "another server": Scenario(
        5, "does not answer like Kubeflow Pipelines", runs=0, junit="error",
        faults=[_fault("GET", "/experiments", 200, headers={"Content-Type": "text/html"})],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name, recorder, submit, tmp_path):
    scenario = SCENARIOS[name]
    recorder.states, recorder.faults = list(scenario.states), [Fault(**vars(fault)) for fault in scenario.faults]
    for key, value in scenario.settings.items():
        setattr(recorder, key, value)
    done = submit("--json", "--junit", str(tmp_path / "junit.xml"), *scenario.arguments)
    assert done.code == scenario.code, done.err
    assert scenario.message in done.err
    assert len(recorder.runs) == scenario.runs
    result = done.json
    assert (result["exit_code"], result["pipeline"]) == (scenario.code, "evaluate")
    suite = read_junit(tmp_path / "junit.xml")
    run_case = suite.find("testcase[@name='run']")
    assert [child.tag for child in run_case if child.tag != "system-out"] == (
        [scenario.junit] if scenario.junit else []
    )
    assert all(0 <= float(case.get("time")) <= 600 for case in suite.iter("testcase"))
    assert int(suite.get("tests")) == 1 + len(result["tasks"])
    if scenario.code == 0:
        assert {task["state"] for task in result["tasks"]} == {"SUCCEEDED"}
        assert {task["elapsed_s"] for task in result["tasks"]} == {90.0}


def test_failed_task_is_a_failed_case_of_its_own(recorder, submit, tmp_path):
    recorder.states, recorder.failing = ["FAILED"], "evaluate"
    submit("--junit", str(tmp_path / "junit.xml"))
    suite = read_junit(tmp_path / "junit.xml")
    failed = [case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None]
    assert failed == ["run", "Evaluate"]


def test_retry_after_date_is_read_by_the_servers_clock(recorder, submit):
    """Three days of clock skew: a date two seconds after the answer's own date is two seconds, not three days."""
    recorder.clock_offset = timedelta(days=3)
    until = format_datetime(recorder.now() + timedelta(seconds=2))
    recorder.faults = [Fault("GET", "/experiments", 429, headers={"Retry-After": until})]
    done = submit("--retry-for", "5s")
    assert done.code == 0
    assert "Trying again in 2 s" in done.err or "Trying again in 1 s" in done.err


def test_time_out_can_end_the_run(recorder, submit):
    recorder.states = ["RUNNING"]
    done = submit("--timeout", "0.2s", "--exit-on-timeout", "terminate")
    assert done.code == 3
    assert "was told to end" in done.err
    assert [run["state"] for run in recorder.runs.values()] == ["CANCELING"]


def test_time_out_wins_over_a_server_that_is_away(recorder, submit):
    """The API fails for less than --retry-for: what ran out is our time."""
    recorder.faults = [Fault("GET", RUN, 502, times=99)]
    done = submit("--timeout", "0.3s", "--retry-for", "30s")
    assert done.code == 3, done.err


def test_nothing_listens(submit):
    done = submit(endpoint="http://127.0.0.1:9")
    assert done.code == 5
    assert "nothing listens there" in done.err


def test_without_wait_the_verdict_is_that_it_started(recorder, progrpo, package_path):
    done = progrpo("submit", package_path, "--experiment", "nightly")
    assert done.code == 0
    (run,) = recorder.runs.values()
    assert done.out == f"{recorder.url}/#/runs/details/{run['run_id']}\n"
    assert not any(request.method == "GET" and run["run_id"] in request.path for request in recorder.requests)


def test_progress_is_a_line_for_every_change(recorder, submit):
    recorder.states = ["PENDING", "PENDING", "RUNNING", "SUCCEEDED"]
    lines = submit().err.splitlines()
    shown = [line.partition("] ")[2] for line in lines if line.startswith("[")]
    assert shown[:2] == ["run: PENDING", "run: RUNNING"]
    assert shown.count("run: PENDING") == 1
    assert "Evaluate: SUCCEEDED after 1 min 30 s" in shown
    assert {"Train #1: RUNNING", "Train #2: RUNNING"} <= set(shown)
    assert not any("driver" in line or "executor" in line for line in shown)


def test_log_that_wants_colours_is_still_a_log(recorder, submit, monkeypatch):
    """GitHub's runners set no terminal, but many set FORCE_COLOR, which makes rich believe in one."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    err = submit().err
    assert "run: SUCCEEDED" in err
    assert "\x1b[" not in err.replace("\x1b[0m", "")
