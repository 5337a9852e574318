"""A run that fails says why, with the failing component's own words, and leaves no process behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "progrpo_pipelines.cli", "run"]
# Long enough to be interrupted: minutes of sampling.
LONG = ["evaluate", "--preset", "smoke", "--set", "evaluation.num_samples=20000", "--set", "dataset.source.num_train=8"]
LONG += ["--set", "dataset.source.num_eval=64"]

needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in Linux's /proc")


def processes_of(output: Path) -> list[str]:
    """Every process that a run into ``output`` started: they have its progress directory in their environment."""
    mark, found = f"PROGRPO_PROGRESS_DIR={output}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " ")[:200])
        except OSError:
            continue  # it ended while we looked
    return found


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not (result := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return result


@pytest.fixture
def long_run(tmp_path):
    """A run in the middle of its evaluate step, and the id of that step's process."""
    output = tmp_path / "a run" / "python3"  # a path that kfp.local by itself cannot take
    process = subprocess.Popen(
        [*COMMAND, *LONG, "--output", str(output)],
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts its background jobs with SIGINT ignored, and what is ignored is inherited: also by this test.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    file = output / "progress" / "evaluate-start.jsonl"
    started = wait_for(lambda: process.poll() is not None or (file.is_file() and file.read_text()), 180)
    assert process.poll() is None, process.stderr.read()
    assert started, "the evaluate step did not start"
    yield process, output, json.loads(file.read_text().splitlines()[0])["pid"]
    process.kill()
    process.wait()
    process.stderr.close()


def test_a_users_mistake_in_the_data_is_the_message(python, tmp_path):
    data = tmp_path / "problems.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i} + {i}", "solution": 2 * i}) + "\n" for i in range(20)))
    command = [python, *COMMAND[1:], "evaluate", "--preset", "smoke", "--output", str(tmp_path / "run")]
    command += ["--set", f"dataset.source={{type: file, train_uri: {data}, task: exact}}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.startswith("error: validate-inputs failed: dataset: ")
    for part in (str(data), "answer", "solution"):
        assert part in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not list((tmp_path / "run").rglob("dataset/manifest.json"))  # nothing that a later step could take for whole
    assert not (tmp_path / "run" / "tmp").exists()


def test_a_fault_that_is_not_the_users_is_exit_code_1(python, tmp_path):
    blocker = tmp_path / "run" / "artifacts"
    command = [*COMMAND, "evaluate", "--preset", "smoke", "--output", str(tmp_path / "run")]
    code = "import sys, pathlib; from progrpo_pipelines.local import running as local\n"
    code += (
        f"original = local._environment\ndef broken(directory):\n    pathlib.Path({str(blocker)!r}).write_text('')\n"
    )
    code += "    return original(directory)\nlocal._environment = broken\n"
    code += f"from progrpo_pipelines.cli import main\nmain({command[3:]!r})"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "NotADirectoryError" in done.stderr or "FileExistsError" in done.stderr
    assert str(tmp_path / "run" / "pipeline.log") in done.stderr


@needs_proc
def test_a_killed_step_fails_the_run(long_run):
    process, output, pid = long_run
    os.kill(pid, signal.SIGKILL)
    _, message = process.communicate(timeout=30)
    assert process.returncode == 1
    assert message.startswith("error: evaluate (start) failed: its process ended without an error of its own")
    assert "out of memory" in message
    assert processes_of(output) == []


@needs_proc
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_a_run_stops_every_process(long_run, sent):
    process, output, _ = long_run
    assert processes_of(output)  # the test would see them
    process.send_signal(sent)
    _, message = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in message
    assert processes_of(output) == []


@needs_proc
def test_killing_the_command_leaves_no_process(long_run):
    process, output, _ = long_run
    process.kill()
    process.wait()
    assert wait_for(lambda: not processes_of(output), 20), processes_of(output)
