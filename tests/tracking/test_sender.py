"""The sender as a process: it delivers while a step runs, outlives one that is killed, and costs a step nothing."""

import os
import signal
import subprocess
import sys
import time

import pytest

from fault_proxy import running_proxy
from progrpo_components.tracking import open_tracking, spool
from progrpo_components.tracking.runs import new_client
from progrpo_components.tracking.sync import sync
from s3 import free_ports

from .conftest import PREFIX, history, place_of, runs_of, spools

KILLED_STEP = """
import os, sys, time
from pathlib import Path
from progrpo_components.tracking import locate, open_tracking
place = locate(experiment="tracking", pipeline_run_id=sys.argv[2], run_name="killed", task="train", arm="grpo", seed=0)
tracker = open_tracking(place, Path(sys.argv[1]) / "out", system_metrics=True)
for step in range(1, 101):
    tracker.log(step, {"train/reward": step / 8})
print("logged", flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_a_step_that_is_killed_has_said_what_it_said(sqlite_server, use, pipeline_run, tmp_path, monkeypatch):
    use(sqlite_server.uri)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    command = [sys.executable, "-c", KILLED_STEP, str(tmp_path), pipeline_run]
    step = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert step.stdout is not None
    assert step.stdout.readline() == "logged\n"
    client = new_client(sqlite_server.uri)

    def wait_for(condition):
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.2)

    # While the step runs: the sender has found a run, and the machine's use has been looked at.
    wait_for(lambda: spool.read_state(spools(tmp_path)[0]).run_id is not None)
    wait_for(lambda: '"system/' in spools(tmp_path)[0].read_text())
    os.kill(step.pid, signal.SIGKILL)
    step.wait()
    wait_for(lambda: runs_of(client, pipeline_run)["grpo-seed0"].info.status == "KILLED")
    run = runs_of(client, pipeline_run)["grpo-seed0"]
    arrived = history(client, run.info.run_id)
    assert arrived["train/reward"] == [(number, number / 8) for number in range(1, 101)]
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(arrived)
    # Nothing is left but the file itself, which only the step would have deleted.
    assert [(result.num_lines, result.problem) for result in sync(tmp_path)] == [(0, None)]
    assert spools(tmp_path) == []


@pytest.mark.slow
def test_a_server_that_is_down_costs_a_step_no_time_and_gets_everything_later(
    sqlite_server, use, pipeline_run, tmp_path, caplog
):
    (port,) = free_ports(1)
    use(f"http://127.0.0.1:{port}")
    (tmp_path / "out").mkdir()
    started = time.monotonic()
    tracker = open_tracking(place_of(pipeline_run), tmp_path / "out")
    for step in range(1, 51):
        tracker.log(step, {"train/reward": step / 8})
    assert time.monotonic() - started < 2  # the step itself waits for nothing
    tracker.close()
    assert time.monotonic() - started < 90  # mostly mlflow's import, on a busy machine
    assert tracker.run_id is None
    (left,) = spools(tmp_path / "out")
    assert f"It is in {left}" in caplog.text
    assert [result.problem is None for result in sync(tmp_path)] == [False]
    use(sqlite_server.uri)
    for expected in ([None], []):  # the second time there is nothing left
        assert [result.problem for result in sync(tmp_path)] == expected
    run = runs_of(new_client(sqlite_server.uri), pipeline_run)["grpo-seed0"]
    assert run.info.status == "FINISHED"
    arrived = history(new_client(sqlite_server.uri), run.info.run_id)
    assert arrived == {"train/reward": [(step, step / 8) for step in range(1, 51)]}


@pytest.mark.slow
@pytest.mark.usefixtures("fast_sender")
def test_a_server_that_goes_away_and_comes_back_gets_everything(sqlite_server, use, pipeline_run, tmp_path, capfd):
    with running_proxy(sqlite_server.port, share=1.0, faults=("cut before", "403")) as proxy:
        use(f"{proxy.uri}{PREFIX}")
        with open_tracking(place_of(pipeline_run), tmp_path / "out") as tracker:
            tracker.log(1, {"train/reward": 0.1})
            deadline = time.monotonic() + 120
            while tracker.run_id is None and time.monotonic() < deadline:
                time.sleep(0.1)
            assert tracker.run_id is not None
            proxy.inject(10)
            tracker.log(2, {"train/reward": 0.2})
            while proxy.remaining and time.monotonic() < deadline:
                time.sleep(0.1)
            tracker.log(3, {"train/reward": 0.3})
    assert spools(tmp_path) == []
    use(sqlite_server.uri)
    client = new_client(sqlite_server.uri)
    assert history(client, tracker.run_id) == {"train/reward": [(1, 0.1), (2, 0.2), (3, 0.3)]}
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert capfd.readouterr().err.count("MLflow does not take what this step logs") == 1
