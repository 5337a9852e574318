"""What a session makes once is made once, fails for all, is gone at its end; a preloaded Python acts as Python does."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SESSION = """
import json, os, sys, time
from pathlib import Path
import pytest, shared

shared.begin()
folder = Path(os.environ["PROGRPO_TESTS_SHARED"])

def service(own):
    return shared.start_service(["sleep", "600"], own / "log").pid

def broken(own):
    raise ValueError("no such port")

found = []
for number in range(3):  # workers: each asks for the same, and is killed without a word
    read, write = os.pipe()
    if os.fork() == 0:
        told = [shared.made_once("service", service)]
        try:
            shared.made_once("broken", broken)
        except (ValueError, pytest.fail.Exception) as error:
            told.append(f"{type(error).__name__}: {error}")
        os.write(write, json.dumps(told).encode())
        os.kill(os.getpid(), 9)
    os.close(write)
    found.append(json.loads(os.read(read, 10_000)))
    os.wait()
os.kill(found[0][0], 0)  # it runs
shared.end()
print(json.dumps({"found": found, "folder": folder.exists()}))
"""


def run(python, *arguments, **options):
    return subprocess.run([python, *arguments], capture_output=True, text=True, timeout=120, **options)


def test_one_service_for_all_workers_which_outlives_them_and_not_the_session():
    done = run(sys.executable, "-c", SESSION, cwd=TESTS)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    pids = {pid for pid, _ in result["found"]}
    first, *later = (told for _, told in result["found"])
    assert len(pids) == 1
    assert first == "ValueError: no such port"
    assert later == ["Failed: broken could not be made for an earlier test: no such port"] * 2
    assert not result["folder"]
    state = Path(f"/proc/{pids.pop()}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"  # killed, and nobody has looked


CODES = {"sys.exit(7)": 7, "1 / 0": 1, "sys.exit('no')": 1, "sys.exit()": 0, "pass": 0, "os.kill(os.getpid(), 9)": -9}


@pytest.mark.parametrize("code", CODES)
def test_a_preloaded_python_ends_as_python_does(python, code):
    program = f"import os, sys; print('printed'); sys.stdout.flush(); {code}"
    preloaded, plain = (run(each, "-c", program) for each in (python, sys.executable))
    assert preloaded.returncode == plain.returncode == CODES[code]
    assert preloaded.stdout == plain.stdout == "printed\n"
    assert (preloaded.stderr.splitlines() or [""])[-1] == (plain.stderr.splitlines() or [""])[-1]


def test_it_has_the_callers_arguments_environment_folder_and_input(python, tmp_path):
    (tmp_path / "program.py").write_text(
        "import json, os, sys\nprint(json.dumps([sys.argv, os.environ['A'], os.getcwd(), sys.stdin.read(), __name__]))"
    )
    environment = {**os.environ, "A": "b"}
    done = run(python, "program.py", "-m", "x", cwd=tmp_path, env=environment, input="given")
    assert json.loads(done.stdout) == [["program.py", "-m", "x"], "b", str(tmp_path), "given", "__main__"]


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_caller_reaches_the_program_and_what_it_started(python, sent, tmp_path):
    child = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    process = subprocess.Popen(
        [python, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"]
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started = Path(f"/proc/{(tmp_path / 'pid').read_text()}")
    process.send_signal(sent)
    assert process.wait(30) == -sent
    if sent == signal.SIGKILL:
        while started.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    else:  # as of a real one, its child is left
        os.kill(int(started.name), signal.SIGKILL)
