"""A Python whose programs start in hundredths of a second: a server has torch, TRL and KFP loaded, and forks for each.

Loading them costs a process 5 to 13 seconds, and a small pipeline run starts fifteen. :func:`preloaded_python` gives an
executable that takes what ``python`` takes (``-m MODULE``, ``-c CODE`` or a script); what its programs start by
``sys.executable`` is forked as well. Output, exit code, environment, working directory and signals are a process's own.
What is not: /proc shows the server's command and environment, the process is the server's child, and one whose client
is killed takes along what it started. So tests of processes themselves (who is left, what is imported) take
``sys.executable``.

    python preloaded.py serve SOCKET                    runs for the whole session
    python -I -S preloaded.py run SOCKET NAME ARGS...   what the executable NAME does
"""

import gc
import importlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_LOADED = (  # of others: our own modules load fast, and may read the environment when they do
    *("trl.trainer.grpo_trainer", "peft", "torch.distributed.run", "torch.distributed.fsdp", "sklearn.metrics"),
    *("kfp.dsl.executor_main", "kfp.local", "mlflow.tracking", "matplotlib.pyplot", "plotly.io", "scipy.stats"),
    *("boto3", "pyarrow.parquet", "typer", "rich.progress"),
)
_HEADER = 8  # bytes, the length of a request


def preloaded_python() -> str:
    """Return the executable; the first who asks starts the server."""
    from shared import made_once

    return made_once("preloaded", _start)


def _start(folder: Path) -> str:
    import shlex
    import time

    from shared import start_service

    address, log = folder / "socket", folder / "log"
    one_thread = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
    environment = {**os.environ, **one_thread, "PYTHONHASHSEED": "0"}
    server = start_service([sys.executable, __file__, "serve", str(address)], log, env=environment)
    deadline = time.monotonic() + 300
    while not address.exists():
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the preloaded Python did not start:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.1)
    python = folder / "python3"
    client = shlex.join([sys.executable, "-I", "-S", __file__, "run", str(address), str(python)])
    python.write_text(f'#!/bin/sh\nexec {client} "$@"\n')
    python.chmod(0o755)
    return str(python)


# --- the server ------------------------------------------------------------------------------------------------------


def serve(address: str) -> None:
    """Fork for every connection."""
    for module in _LOADED:
        importlib.import_module(module)
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would lose the other threads"  # noqa: PTH208
    gc.freeze()  # a collection in a fork would copy every page that it looks at
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen(64)
    Path(f"{address}.new").rename(address)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a watcher
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            _watch(connection)
        connection.close()


def _watch(connection: socket.socket) -> NoReturn:
    """Run one program in a child: pass signals on to it, its end to the client, and the client's end to it."""
    import select

    header, descriptors, _, _ = socket.recv_fds(connection, _HEADER, 3)
    request = json.loads(_receive(connection, int.from_bytes(header, "big")))
    pid = os.fork()
    if pid == 0:
        connection.close()
        _exit_as_after(_become, request, descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    program, poll = os.pidfd_open(pid), select.poll()
    poll.register(program, select.POLLIN)
    poll.register(connection, select.POLLIN)
    while program not in (ready := dict(poll.poll())):
        if connection.fileno() in ready:
            if signum := connection.recv(1):
                os.kill(pid, signum[0])
            else:
                _kill(pid)
                os._exit(0)
    _, status = os.waitpid(pid, 0)
    connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(2, "big", signed=True))
    os._exit(0)


def _kill(pid: int) -> None:
    """Kill a program and what it started, which for ranks the kernel would do if the program were their real parent."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(pid, signal.SIGKILL)
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGKILL)


def _receive(connection: socket.socket, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        parts += connection.recv(size - len(parts))
    return parts


def _become(request: dict, descriptors: list[int]) -> None:
    """Turn this fork into the program: what Python would set up at its start, then the program's own code."""
    import random
    import runpy

    import numpy as np

    os.setsid()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    buffering = 1 if os.environ.get("PYTHONUNBUFFERED") or os.isatty(1) else -1
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", buffering, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    random.seed()
    np.random.seed()
    sys.executable = request["python"]  # what the program starts is forked as well
    flag, *arguments = request["arguments"]
    sys.path[0:1] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if flag == "-m":
        sys.path.insert(0, request["cwd"])
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    elif flag == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *arguments[1:]]
        exec(compile(arguments[0], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102
    else:
        sys.path.insert(0, str(Path(flag).parent.resolve()))
        sys.argv = [flag, *arguments]
        runpy.run_path(flag, run_name="__main__")


def _exit_as_after(program: Callable[..., None], *arguments: Any) -> NoReturn:
    """Run it and end as the interpreter would, but for clearing every module, which takes longer than most programs."""
    import atexit
    import threading
    import traceback

    code: Any = 0
    try:
        program(*arguments)
    except SystemExit as stopped:
        code = stopped.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except KeyboardInterrupt:
        traceback.print_exc()
        code = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # waits for threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit((code or 0) & 0xFF)


# --- the executable --------------------------------------------------------------------------------------------------


def run(address: str, python: str, arguments: list[str]) -> None:
    """Have the server run a program with this process's files, folder and environment; end as the program ends."""
    while arguments and arguments[0] == "-u":
        arguments.pop(0)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    request = {"python": python, "arguments": arguments, "cwd": str(Path.cwd()), "environment": dict(os.environ)}
    content = json.dumps(request).encode()
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    socket.send_fds(connection, [len(content).to_bytes(_HEADER, "big")], [0, 1, 2])
    connection.sendall(content)
    for signum in _FORWARDED:
        signal.signal(signum, lambda number, _frame: connection.sendall(bytes([number])))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    code = connection.recv(2)
    if not code:
        sys.exit("the preloaded Python is gone")
    number = int.from_bytes(code, "big", signed=True)
    if number < 0:  # killed by a signal, so this is too
        signal.signal(-number, signal.SIG_DFL) if -number != signal.SIGKILL else None
        os.kill(os.getpid(), -number)
    os._exit(number)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        run(sys.argv[2], sys.argv[3], sys.argv[4:])
