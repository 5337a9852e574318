"""Ranks started from one call: what they report arrives, what goes wrong comes back with its type, nothing is left."""

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from progrpo.config import GRPO, Arm, TrainConfig
from progrpo.errors import ConfigError, DataError, StorageError, TrainingError
from progrpo.metrics import JsonlSink
from progrpo.training.job import Job, error_of_ranks, read_job
from progrpo.training.launch import _relayed, launch

CONFIG = TrainConfig(steps=2, prompts_per_step=4, device="cpu", distributed={"num_processes": 2})


class Recorded:
    def __init__(self):
        self.rows = []

    def log(self, step, metrics):
        self.rows.append((step, dict(metrics)))

    def close(self):
        pass


@pytest.fixture
def failure(tmp_path):
    """Make the failure of a rank as the agent reports it: with the error file it wrote, or without one."""

    def make(rank, exitcode, error=None):
        path = tmp_path / f"error_{rank}.json"
        if error is not None:
            told = {"message": error, "extraInfo": {"py_callstack": f"Traceback of rank {rank}", "timestamp": "1"}}
            path.write_text(json.dumps({"message": told}))
        return ProcessFailure(local_rank=rank, pid=10**9 + rank, exitcode=exitcode, error_file=str(path))

    return make


def write_job(path, tmp_path):
    job = Job(
        arm=Arm(name="grpo", algorithm=GRPO()),
        seed=0,
        train=CONFIG,
        dataset=tmp_path / "dataset",
        checkpoint=tmp_path / "checkpoint",
        output=tmp_path / "output",
    )
    path.write_text(job.model_dump_json())
    return job


def test_a_job_comes_back_from_its_file(tmp_path):
    job = write_job(tmp_path / "job.json", tmp_path)
    assert read_job(tmp_path / "job.json") == job


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ('{"arm": 3}', "is not a job: arm: "),
        ("{", r"is not a job: \(the whole\)"),
    ],
)
def test_a_bad_job_file_is_explained(tmp_path, text, message):
    path = tmp_path / "job.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_job(path)


def test_the_users_error_is_the_cause_whatever_befell_the_other_ranks(failure):
    failures = {
        0: failure(0, 1, "ValueError: later"),
        1: failure(1, 2, "DataError: 3 problems: too few"),
        2: failure(2, -9),
    }
    error = error_of_ranks(failures)
    assert type(error) is DataError
    assert str(error) == "3 problems: too few"


def test_a_bug_keeps_its_traceback(failure):
    error = error_of_ranks({0: failure(0, -15), 1: failure(1, 1, "KeyError: 'x'")})
    assert type(error) is RuntimeError
    assert str(error) == "rank 1 failed.\nTraceback of rank 1"


def test_a_killed_rank_is_the_cause_of_the_silence_of_the_others(failure):
    error = error_of_ranks({0: failure(0, 1), 1: failure(1, -9)})  # rank 0 lost its peer and recorded nothing
    assert type(error) is TrainingError
    assert "rank 1 was killed" in str(error)


@pytest.mark.parametrize(("code", "status"), [(143, 143), (130, 130)])
def test_ranks_that_were_told_to_stop_did_not_fail(failure, code, status):
    error = error_of_ranks({0: failure(0, code), 1: failure(1, -15)})
    assert isinstance(error, SystemExit)
    assert error.code == status


def test_metrics_are_passed_on_once_each_to_the_last_line(tmp_path):
    path, sink = tmp_path / "metrics.jsonl", Recorded()
    with _relayed(path, [sink]):
        log = JsonlSink(path)
        log.log(1, {"train/reward": 0.5})
        log.log(2, {"train/reward": 0.75})
        log.close()
        with path.open("a") as file:
            file.write('{"step": 3, "train/rew')  # a rank that was killed as it wrote
    assert sink.rows == [(1, {"train/reward": 0.5}), (2, {"train/reward": 0.75})]


def test_ranks_do_not_wait_for_a_sink_that_fails(tmp_path, caplog):
    class Full(Recorded):
        def log(self, step, metrics):
            raise OSError("No space left on device")

    path = tmp_path / "metrics"
    with _relayed(path, [Full()]):
        log = JsonlSink(path)
        for step in range(2000):  # more than a pipe holds
            log.log(step, {"train/reward": 0.123456789, "train/entropy": 0.123456789})
        log.close()
    assert "No space left on device" in caplog.text


def test_an_error_of_the_ranks_is_raised_with_its_type_and_nothing_is_left(
    python, embedded_checkpoint, tiny_dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr(sys, "executable", python)  # of the ranks
    output = tmp_path / "output"
    output.mkdir()
    (output / "file").touch()
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(StorageError, match="is not empty: a training run needs a directory of its own"):
        launch(
            Arm(name="grpo", algorithm=GRPO()),
            0,
            CONFIG,
            dataset=tiny_dataset,
            checkpoint=embedded_checkpoint,
            output=output,
        )
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert not [child for child in psutil.Process().children(recursive=True) if "progrpo.training" in child.cmdline()]


def test_one_process_alone_exits_with_2_and_says_how_many_are_needed(tmp_path):
    write_job(tmp_path / "job.json", tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"}
    command = [sys.executable, "-m", "progrpo.training", "--job", tmp_path / "job.json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "num_processes is 2, but this is process 0 of 1" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_needs_no_torch():
    code = "import sys, progrpo.training.__main__, progrpo.training.launch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
