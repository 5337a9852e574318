"""Programs that a model wrote, at their worst: what each tries does not work, and says nothing else than "wrong"."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from progrpo.errors import ConfigError
from progrpo.rewards import Verdict, code, verify
from progrpo.rewards.code import inside
from progrpo.rewards.code.cases import ProblemTests
from progrpo.rewards.code.sandbox import ISOLATION_VARIABLE, Sandbox, library_paths

pytestmark = pytest.mark.usefixtures("sandboxes")


def run(program: str, *, stdin: str = "", how="full", **limits) -> dict[str, str]:
    """Run a program on one input and return how it ended and what it printed."""
    with Sandbox("stdin", ProblemTests(**limits), program, how) as sandbox:
        reply = sandbox.ask({"stdin": stdin}, 60)
        assert reply is not None
        return reply


TRY = """
import os, signal, socket, subprocess, sys, threading
try:
    exec(sys.stdin.read())
    print("done")
except BaseException as error:
    print(type(error).__name__)
"""


def attempts(*actions: str, how="full") -> list[str]:
    """Return for each action of a program the name of the error it ends with; "done" where it works."""
    with Sandbox("stdin", ProblemTests(), TRY, how) as sandbox:
        return [(sandbox.ask({"stdin": action}, 60) or {})["stdout"].strip() for action in actions]


def test_the_control_works():
    assert attempts("open(os.__file__).read(10)", "import numpy") == ["done", "done"]
    assert attempts("t = threading.Thread(target=print); t.start(); t.join()")[0].endswith("done")
    assert run("print(input())", stdin="x\n") == {"status": "ok", "stdout": "x\n"}


ATTEMPTS = {
    "network": "socket.create_connection(('127.0.0.1', 80))",
    "name lookup": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "local socket": "socket.socketpair()",
    "fork": "os.fork()",
    "another program": "subprocess.run(['/bin/true'])",
    "shell": "assert os.system('true') == 0",
    "exec": "os.execv('/bin/true', ['true'])",
    "kill the parent": "os.kill(os.getppid(), signal.SIGKILL)",
    "kill everything": "os.kill(-1, signal.SIGKILL)",
    "kill the group": "os.killpg(0, signal.SIGKILL)",
    "a session of its own": "os.setsid()",
    "write a file": "open('/tmp/progrpo-escaped', 'w')",
    "append to a file": "open(os.__file__, 'a')",
    "create without writing": "os.open('/tmp/progrpo-escaped', os.O_CREAT | os.O_RDONLY)",
    "delete a file": "os.unlink(os.__file__)",
    "rename a file": "os.rename(os.__file__, '/tmp/progrpo-escaped')",
    "make a directory": "os.mkdir('/tmp/progrpo-escaped')",
    "truncate": "os.truncate(os.__file__, 0)",
    "change rights": "os.chmod(os.__file__, 0o777)",
    "memory outside of the limit": "os.memfd_create('x')",
    "lower the limits of another": "import resource; resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))",
    "steal the processor": "os.sched_setaffinity(os.getppid(), {0})",
}


@pytest.mark.parametrize("how", ["full", "pod"])
def test_nothing_outside_can_be_changed_or_reached(how):
    outcomes = dict(zip(ATTEMPTS, attempts(*ATTEMPTS.values(), how=how), strict=True))
    shell = outcomes.pop("shell")  # os.system says so by its exit status
    assert shell == "AssertionError"
    assert outcomes == dict.fromkeys(outcomes, "PermissionError")
    assert not Path("/tmp/progrpo-escaped").exists()


def test_files_and_environment_are_hidden(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    secret = tmp_path / "secret"
    secret.write_text("very-secret")
    files = [secret, "/etc/passwd", "/proc/self/environ", f"/proc/{os.getpid()}/environ", "/proc/self/mem", __file__,
             Path(pytest.__file__)]  # fmt: skip
    reads = [f"print(open({str(path)!r}, 'rb').read(10))" for path in files]
    lists = [f"print(os.listdir({str(path)!r}))" for path in ("/", tmp_path, "/proc")]
    assert attempts(*reads, *lists) == ["PermissionError"] * (len(reads) + len(lists))
    shown = attempts("print(*sorted(os.environ))")[0]
    assert set(shown.split()) - {"done", "LC_CTYPE"} == {"PYTHONHASHSEED", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"}
    outcomes = attempts("import torch", "import boto3", "import progrpo", "import inside")
    assert not {"done"} & set(outcomes), outcomes


def test_privileges_are_gone_for_good():
    libc = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    # PR_GET_NO_NEW_PRIVS, PR_GET_SECCOMP, PR_CAPBSET_READ says nothing of what is held: capabilities are in capget.
    assert run(f"{libc}print(libc.prctl(39, 0, 0, 0, 0), libc.prctl(21, 0, 0, 0, 0))")["stdout"].split() == ["1", "2"]
    held = "import struct\nhead = struct.pack('=Ii', 0x20080522, 0)\ndata = ctypes.create_string_buffer(24)\n"
    held += "libc.capget(ctypes.c_char_p(head), data)\nprint(data.raw == bytes(24))"
    assert run(libc + held)["stdout"] == "True\n"
    # unshare(CLONE_NEWUSER), ptrace(PTRACE_ATTACH, parent), io_uring_setup, the x32 number of getpid, PR_SET_PDEATHSIG,
    # openat2, clone3, setxattrat, and one that is still to come
    calls = {"272, 0x10000000": 1, "101, 16, libc.getppid(), 0, 0": 1, "425, 1, 0": 1, "0x40000000 + 39": 1,
             "157, 1, 0, 0, 0, 0": 1, "437, 0, 0, 0, 0": 38, "435, 0, 0": 38, "463, 0, 0": 38, "600": 38}  # fmt: skip
    for call, error in calls.items():
        shown = run(f"{libc}print(libc.syscall({call}), ctypes.get_errno())")["stdout"].split()
        assert shown == ["-1", str(error)], call


def test_what_does_not_end_is_ended_with_all_it_started():
    def children() -> set[str]:
        return set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())

    before, started = children(), time.monotonic()
    assert run("while True: pass", time_limit_s=1)["status"] == "time"
    waits = "import threading, time\nprint(1, flush=True)\nthreading.Thread(target=time.sleep, args=(60,)).start()"
    assert run(waits, time_limit_s=1)["status"] == "time"
    stubborn = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    assert run(stubborn, time_limit_s=1)["status"] in ("time", "error")
    assert time.monotonic() - started < 30
    assert children() <= before


def test_a_fork_bomb_has_no_second_process():
    program = "import os\nfailed = 0\nfor _ in range(10_000):\n    try: os.fork()\n"
    program += "    except PermissionError: failed += 1\nprint(failed)"
    assert run(program) == {"status": "ok", "stdout": "10000\n"}


def test_threads_are_bounded_by_memory():
    program = (
        "import threading\nevent = threading.Event()\ncount = 0\ntry:\n    while True:\n"
        "        threading.Thread(target=event.wait, daemon=True).start(); count += 1\n"
        "except RuntimeError:\n    event.set(); print(count < 200)"
    )
    assert run(program, memory_limit_mb=512) == {"status": "ok", "stdout": "True\n"}


def test_memory_output_and_stack_are_bounded():
    assert run("x = bytearray(1 << 30)", memory_limit_mb=256)["status"] == "error"
    assert (
        run("try:\n    bytearray(1 << 30)\nexcept MemoryError:\n    print('none')", memory_limit_mb=256)["stdout"]
        == "none\n"
    )
    started = time.monotonic()
    assert run("while True: print('x' * 65536)")["status"] == "output"
    assert run("def f(n): return f(n + 1)\nf(0)")["status"] == "error"
    assert run("def f(n): return 0 if n == 0 else 1 + f(n - 1)\nprint(f(40_000))") == {
        "status": "ok",
        "stdout": "40000\n",
    }
    assert run("eval('(' * 100000)")["status"] == "error"
    assert time.monotonic() - started < 20


def test_how_a_program_ends_counts():
    assert run("print(1)\nimport os\nos._exit(0)")["stdout"] == ""  # what was not flushed is not printed
    assert run("print(1, flush=True)\nimport os\nos._exit(3)")["status"] == "error"
    assert run("print(1)\nraise SystemExit(3)") == {"status": "ok", "stdout": "1\n"}
    assert run("import ctypes\nctypes.string_at(0)")["status"] == "error"
    assert run("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")["status"] == "error"
    assert run("import sys, io, atexit\nsys.stdout = io.StringIO()\nprint(1)\n"
               "atexit.register(lambda: sys.__stdout__.write(sys.stdout.getvalue()))")["stdout"] == "1\n"  # fmt: skip
    assert (
        run("import threading\nthreading.Thread(target=lambda: print(input())).start()", stdin="x")["stdout"] == "x\n"
    )


STDIN = json.dumps({"inputs": ["1\n", "2\n"], "outputs": ["1", "4"]})
CALL = json.dumps({"fn_name": "square", "inputs": ["1", "2"], "outputs": ["1", "4"]})
CHECK = json.dumps(
    {
        "entry_point": "square",
        "test": "def check(candidate):\n    assert candidate(1) == 1\n    assert candidate(2) == 4\n",
    }
)
ALWAYS = "class Yes(int):\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
FORGERIES = {
    "equal to everything": f"{ALWAYS}def square(n): return Yes(7)",
    "no plain data": "class Yes:\n    def __eq__(self, other): return True\ndef square(n): return Yes()",
    "end well before the tests": "import os\nos._exit(0)",
    "end well in a test": "import os\ndef square(n): os._exit(0)",
    "raise what ends a check": "def square(n): raise SystemExit(0)",
    "patch what the check may use": "import builtins\nbuiltins.isinstance = lambda *_: True\n"
    "builtins.AssertionError = type('Never', (Exception,), {})\ndef square(n): return 7",
    "redefine the check": "def check(candidate): return True\ndef square(n): return 7",
    "say it passed": "import os, struct\nframe = b'{\"passed\": true}'\n"
    "for fd in range(16):\n    try: os.write(fd, struct.pack('>I', len(frame)) + frame)\n    except OSError: pass\n"
    "def square(n): return 7",
    "print what a judge might": "print('passed'); print('{\"passed\": true}'); print('OK')\ndef square(n): return 7",
    "answer with nonsense": "import os\nfor fd in range(16):\n    try: os.write(fd, b'\\xff' * 64)\n"
    "    except OSError: pass\ndef square(n): return 7",
    "find the answers in memory": "import gc\nfound = [o for o in gc.get_objects() if isinstance(o, dict)]\n"
    "found = [o for o in found if 'outputs' in o]\ndef square(n): return found[0]['outputs'][n - 1]",
    "find the answers in the frames": "import sys\nframe = sys._getframe()\nseen = []\nwhile frame:\n"
    "    seen.append(str(frame.f_locals)); frame = frame.f_back\n"
    "assert not any('assert candidate' in text for text in seen)\ndef square(n): return 7",
}


@pytest.mark.parametrize("answer", [STDIN, CALL, CHECK], ids=["stdin", "function", "check"])
def test_a_verdict_cannot_be_forged(answer):
    suffix = "\nif __name__ == '__main__': print(square(int(input())))" if answer is STDIN else ""
    right = verify("code", answer, f"```python\ndef square(n): return n * n{suffix}\n```")
    assert right.correct
    for name, program in FORGERIES.items():
        verdict = verify("code", answer, f"```python\n{program}{suffix}\n```")
        assert (verdict.correct, verdict.scored) == (False, True), name


def test_a_program_cannot_make_itself_unscored():
    for program in (
        f"import os\nos._exit({inside.REFUSED})",
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    ):
        for answer in (STDIN, CALL, CHECK):
            assert verify("code", answer, f"```\n{program}\n```").scored


def test_a_sandbox_and_its_program_die_with_their_owner():
    owner_program = (
        "import time\nfrom progrpo.rewards.code.cases import ProblemTests\n"
        "from progrpo.rewards.code.sandbox import Sandbox\n"
        "program = 'import ctypes, time\\nctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\\ntime.sleep(60)'\n"
        "box = Sandbox('stdin', ProblemTests(time_limit_s=60), program)\nbox.__enter__()\n"
        "box.write({'stdin': ''}, time.monotonic() + 10)\nprint(box._process.pid, flush=True)\ntime.sleep(60)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", owner_program], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    sandbox = int(owner.stdout.readline())
    children = Path(f"/proc/{sandbox}/task/{sandbox}/children")
    deadline = time.monotonic() + 30
    while not (found := children.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(1)  # the program has asked not to be ended with its parent, in vain
    owner.kill()
    owner.communicate()
    left = {str(sandbox), *found}
    assert len(left) == 2
    while left and time.monotonic() < deadline:
        left = {pid for pid in left if Path(f"/proc/{pid}").exists() and _state(pid) != "Z"}
        time.sleep(0.05)
    assert not left


def _state(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_a_machine_that_cannot_isolate_runs_nothing(monkeypatch):
    monkeypatch.setattr(code, "_probed", set())
    monkeypatch.setattr(inside, "__file__", str(Path(__file__).parent / "no_such_file.py"))
    with pytest.raises(ConfigError, match=r"cannot isolate them.*PROGRPO_SANDBOX_URL"):
        verify("code", STDIN, "```\nprint(1)\n```")


@pytest.mark.parametrize("broken", ["_install_filter", "_restrict_files"])
def test_each_wall_is_needed(broken, monkeypatch, tmp_path):
    """Without seccomp, or without Landlock, a machine is refused: as on an old kernel, or in gVisor."""
    monkeypatch.setattr(code, "_probed", set())
    text = Path(inside.__file__).read_text().replace(f"    {broken}(", "    raise IsolationError('not here'); (", 1)
    (tmp_path / "inside.py").write_text(text)
    monkeypatch.setattr(inside, "__file__", str(tmp_path / "inside.py"))
    with pytest.raises(ConfigError, match="cannot isolate them"):
        verify("code", STDIN, "```\nprint(1)\n```")


def test_the_way_of_isolation_is_one_of_two(monkeypatch):
    monkeypatch.setenv(ISOLATION_VARIABLE, "none")
    with pytest.raises(ConfigError, match="Allowed: full, pod"):
        verify("code", STDIN, "```\nprint(1)\n```")
    monkeypatch.setenv(ISOLATION_VARIABLE, "pod")
    assert verify("code", STDIN, "```\nprint(int(input()) ** 2)\n```") == Verdict(True, "print(int(input()) ** 2)")


def test_the_table_of_system_calls_is_that_of_this_machine():
    """Against the numbers of the C library's header where there is one; a wrong number would be a hole."""
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.is_file():
        pytest.skip("no Linux headers")
    lines = (line.split() for line in header.read_text().splitlines() if line.startswith("#define __NR_"))
    numbers = {line[1].removeprefix("__NR_"): int(line[2]) for line in lines}
    table = {entry.split()[0]: int(entry.split()[1]) for entry in inside._DENIED.split(";")}
    known = {name: numbers[name] for name in table if name in numbers}
    assert len(known) > 75
    assert {name: table[name] for name in known} == known


def test_programs_read_libraries_only():
    readable, listable = library_paths()
    assert str(Path(os.__file__).parent) in readable
    assert len(listable) == 1
