"""What runs inside the sandbox: this file alone, which :mod:`progrpo.rewards.code.sandbox` starts.

A program that is judged runs under

- a seccomp filter: no sockets, no new processes, no other programs, no signals to others, nothing written to or changed
  in any file system, no tracing, no namespaces;
- Landlock: only Python's libraries can be read;
- limits on CPU time, address space and open files; no capabilities, and no way to gain any.

None of it needs privileges or another package, so it also holds in a pod under the restricted security standard.

Frames on stdin and stdout are a length (4 bytes, big-endian) and JSON. The first frame in is the job. What a program
should have answered never comes in here, so that nothing it does can make it right.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import platform
import resource
import select
import signal
import struct
import sys
import threading
import time
import types
from typing import Any

MAX_FRAME = 256 << 20
MAX_STACK = 64 << 20  # of the main thread; grows as it is used
MAX_FILES = 64
REFUSED = 97  # exit status of a process that could not be isolated

# LiveCodeBench runs every program after these imports, in this order.
STAR_MODULES = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics", "itertools",
    "functools", "operator", "io", "sys", "json", "builtins", "typing",
)  # fmt: skip
RECURSION_LIMIT = 50_000

# --- frames and values -----------------------------------------------------------------------------------------------


class Opaque:
    """Stands for a value that is no plain data; equal to nothing but itself."""


def encode(value: Any) -> Any:
    """Turn plain data into JSON that keeps Python's types; whatever else, subclasses' own methods too, is left behind.

    Equality cannot be forged this way: an object whose ``__eq__`` says yes to everything arrives as :class:`Opaque`.
    """
    if value is None or type(value) in (bool, float, str):
        return value
    if isinstance(value, bool | int):
        number = int.__int__(value)
        return number if abs(number) < 1 << 63 else {"int": hex(number)}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, list):
        return [encode(each) for each in list.__iter__(value)]
    kind: Any
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [encode(each) for each in kind.__iter__(value)]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(each)] for key, each in dict.items(value)]}
    if isinstance(value, bytes):
        return {"bytes": bytes.hex(value)}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    return {"opaque": ""}


def decode(content: Any) -> Any:
    """Undo :func:`encode`.

    Raises:
        ValueError, TypeError: what :func:`encode` does not write.
    """
    if isinstance(content, list):
        return [decode(each) for each in content]
    if not isinstance(content, dict):
        return content
    ((kind, inner),) = content.items()
    if kind == "dict":
        return {decode(key): decode(value) for key, value in inner}
    if kind == "complex":
        return complex(*inner)
    if kind == "int":
        return int(inner, 16)
    if kind == "bytes":
        return bytes.fromhex(inner)
    if kind == "opaque":
        return Opaque()
    return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](decode(each) for each in inner)


def pack(message: Any) -> bytes:
    """Return a message as a frame."""
    body = json.dumps(message).encode()
    return struct.pack(">I", len(body)) + body


def receive(fd: int) -> Any:
    """Read one frame; None at the end of the stream."""
    header = _read(fd, 4)
    return json.loads(_read(fd, struct.unpack(">I", header)[0])) if len(header) == 4 else None


def send(fd: int, message: Any) -> None:
    """Write one frame."""
    data = memoryview(pack(message))
    while data:
        data = data[os.write(fd, data) :]


def _read(fd: int, size: int) -> bytes:
    parts = []
    while size and (part := os.read(fd, min(size, 1 << 20))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


# --- isolation -------------------------------------------------------------------------------------------------------

# name, number on x86-64, number on arm64 (-1: none). Denied with EPERM.
_DENIED = """
socket 41 198; socketpair 53 199; fork 57 -1; vfork 58 -1; execve 59 221; execveat 322 281; tkill 200 130;
rt_sigqueueinfo 129 138; rt_tgsigqueueinfo 297 240; pidfd_send_signal 424 424; pidfd_open 434 434; pidfd_getfd 438 438;
ptrace 101 117; process_vm_readv 310 270; process_vm_writev 311 271; kcmp 312 272; setsid 112 157; setpgid 109 154;
creat 85 -1; truncate 76 45; rename 82 -1; renameat 264 38; renameat2 316 276; mkdir 83 -1; mkdirat 258 34; rmdir 84 -1;
link 86 -1; linkat 265 37; unlink 87 -1; unlinkat 263 35; symlink 88 -1; symlinkat 266 36; mknod 133 -1; mknodat 259 33;
chmod 90 -1; fchmod 91 52; fchmodat 268 53; chown 92 -1; fchown 93 55; lchown 94 -1; fchownat 260 54;
setxattr 188 5; lsetxattr 189 6; fsetxattr 190 7; removexattr 197 14; lremovexattr 198 15; fremovexattr 199 16;
utime 132 -1; utimes 235 -1; futimesat 261 -1; utimensat 280 88; shmget 29 194; semget 64 190; msgget 68 186;
mq_open 240 180; memfd_create 319 279; memfd_secret 447 447; setpriority 141 140; sched_setparam 142 118;
sched_setscheduler 144 119; sched_setaffinity 203 122; sched_setattr 314 274; ioprio_set 251 30; move_pages 279 239;
migrate_pages 256 238; unshare 272 97; setns 308 268; pivot_root 155 41; chroot 161 51; mount 165 40; umount2 166 39;
mount_setattr 442 442; open_tree 428 428; move_mount 429 429; fsopen 430 430; fsconfig 431 431; fsmount 432 432;
fspick 433 433; swapon 167 224; swapoff 168 225; reboot 169 142; sethostname 170 161; acct 163 89; quotactl 179 60;
init_module 175 105; finit_module 313 273; kexec_load 246 104; kexec_file_load 320 294; bpf 321 280;
perf_event_open 298 241; userfaultfd 323 282; io_uring_setup 425 425; io_uring_enter 426 426; io_uring_register 427 427;
add_key 248 217; request_key 249 218; keyctl 250 219; name_to_handle_at 303 264; open_by_handle_at 304 265
"""
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the table, AUDIT_ARCH
_LD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_CLONE_THREAD = 0x10000
_FIRST_UNKNOWN = 450  # Python needs none of the later system calls, and what those still to come do is not known
_OPEN_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

_libc = ctypes.CDLL(None, use_errno=True)


class IsolationError(Exception):
    """This machine cannot isolate a program."""


def _call(what: str, result: int) -> int:
    if result < 0:
        raise IsolationError(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _filter(machine: str) -> list[tuple[int, int, int, int]]:
    """Return the seccomp filter as (code, jump if true, jump if false, k), for the calling process."""
    column, arch = _MACHINES[machine]
    rules = [(_LD, 0, 0, 4), (_JEQ, 1, 0, arch), (_RET, 0, 0, _KILL), (_LD, 0, 0, 0)]
    if machine == "x86_64":
        rules += [(_JGE, 0, 1, 0x40000000), (_RET, 0, 0, _ERRNO | _EPERM)]  # the x32 ABI has numbers of its own
    rules += [(_JGE, 0, 1, _FIRST_UNKNOWN), (_RET, 0, 0, _ERRNO | _ENOSYS)]
    for entry in _DENIED.split(";"):
        number = int(entry.split()[1 + column])
        if number >= 0:
            rules += [(_JEQ, 0, 1, number), (_RET, 0, 0, _ERRNO | _EPERM)]
    for number in (435, 437):  # clone3, openat2: their arguments cannot be filtered, and the C library does without
        rules += [(_JEQ, 0, 1, number), (_RET, 0, 0, _ERRNO | _ENOSYS)]

    def only(number: int, argument: int, test: tuple[int, int, int, int]) -> None:
        """Allow a call only where ``test``, of the low half of an argument, goes on to the next instruction."""
        load = (_LD, 0, 0, 16 + 8 * argument)
        rules.extend([(_JEQ, 0, 4, number), load, test, (_RET, 0, 0, _ALLOW), (_RET, 0, 0, _ERRNO | _EPERM)])

    only((56, 220)[column], 0, (_JSET, 0, 1, _CLONE_THREAD))  # clone: threads
    only((62, 129)[column], 0, (_JEQ, 0, 1, os.getpid()))  # kill: itself
    only((234, 131)[column], 0, (_JEQ, 0, 1, os.getpid()))  # tgkill
    only((302, 261)[column], 0, (_JEQ, 0, 1, 0))  # prlimit64: itself
    only((157, 167)[column], 0, (_JEQ, 1, 0, 1))  # prctl: not PR_SET_PDEATHSIG
    only((257, 56)[column], 2, (_JSET, 1, 0, _OPEN_TO_WRITE))  # openat: to read
    if machine == "x86_64":
        only(2, 1, (_JSET, 1, 0, _OPEN_TO_WRITE))  # open
    return [*rules, (_RET, 0, 0, _ALLOW)]


def _install_filter() -> None:
    machine = platform.machine()
    if machine not in _MACHINES:
        raise IsolationError(f"no seccomp filter for {machine}")
    rules = _filter(machine)
    code = b"".join(struct.pack("=HBBI", *rule) for rule in rules)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(rules), ctypes.addressof(buffer))
    _call("seccomp", _libc.prctl(22, 2, ctypes.c_char_p(program), 0, 0))  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def _restrict_files(readable: list[str], listable: list[str]) -> None:
    """Let this process and its children read what is beneath ``readable`` and nothing else (Landlock)."""
    abi = _call("Landlock", _libc.syscall(444, None, ctypes.c_size_t(0), 1))
    handled = (1 << (13 if abi == 1 else 14 if abi == 2 else 15 if abi < 5 else 16)) - 1
    attributes = struct.pack("=Q", handled)
    ruleset = _call("Landlock", _libc.syscall(444, ctypes.c_char_p(attributes), ctypes.c_size_t(8), 0))
    read_file, read_dir = 1 << 2, 1 << 3
    for paths, access in ((readable, read_file | read_dir), (listable, read_dir)):
        for path in filter(os.path.isdir, paths):
            parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rule = struct.pack("=Qi", access, parent)
            _call("Landlock", _libc.syscall(445, ruleset, 1, ctypes.c_char_p(rule), 0))
            os.close(parent)
    _call("Landlock", _libc.syscall(446, ruleset, 0))
    os.close(ruleset)


def die_with_parent() -> None:
    """No sandbox outlives who asked for it; a forked child has to ask for this again."""
    _call("PR_SET_PDEATHSIG", _libc.prctl(1, signal.SIGKILL, 0, 0, 0))


def prepare(job: dict[str, Any]) -> None:
    """Give up privileges and the file system; what is left to :func:`confine` is what a parent of programs needs."""
    die_with_parent()
    _call("PR_SET_DUMPABLE", _libc.prctl(4, 0, 0, 0, 0))  # nobody reads this process through /proc
    header, nothing = struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", *[0] * 6)
    _call("capset", _libc.capset(ctypes.c_char_p(header), ctypes.c_char_p(nothing)))
    _call("PR_SET_NO_NEW_PRIVS", _libc.prctl(38, 1, 0, 0, 0))
    if job["restrict_files"]:
        _restrict_files(job["readable"], job["listable"])


def confine(job: dict[str, Any]) -> None:
    """Take the rest away from this process, for good."""
    memory = job["memory_mb"] << 20
    # No RLIMIT_NPROC: it counts all processes of the user, here and elsewhere. The filter allows none, and threads are
    # bounded by the address space of their stacks.
    for limit, value in {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: MAX_FILES,
        resource.RLIMIT_CORE: 0,
    }.items():
        resource.setrlimit(limit, (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (job["cpu_s"], job["cpu_s"] + 1))
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    resource.setrlimit(resource.RLIMIT_STACK, (MAX_STACK if hard < 0 else min(MAX_STACK, hard), hard))
    _install_filter()


# --- programs --------------------------------------------------------------------------------------------------------


def new_module(name: str) -> types.ModuleType:
    """Return the module a program becomes."""
    module = types.ModuleType(name)
    for star in STAR_MODULES:
        exec(f"from {star} import *\nimport {star}", module.__dict__)  # noqa: S102 - names from the list above
    module.__dict__["__name__"] = name
    return module


def run_program(source: str, module: types.ModuleType) -> dict[str, Any]:
    """Run a program as a module and return its globals."""
    sys.modules[module.__name__] = module  # dataclasses and typing look it up
    sys.setrecursionlimit(RECURSION_LIMIT)
    exec(compile(source, "program.py", "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - what this is for
    return module.__dict__


def run_on_stdin(job: dict[str, Any], module: types.ModuleType, stdin: str, null: int) -> dict[str, Any]:
    """Run the job's program as ``module`` in a process of its own.

    Returns:
        ``{"status": "ok" | "error" | "time" | "output" | "refused", "stdout": text}``.
    """
    source = os.memfd_create("stdin")
    with os.fdopen(os.dup(source), "wb") as file:
        file.write(stdin.encode("utf-8", "surrogatepass"))
    os.lseek(source, 0, os.SEEK_SET)
    output, child_output = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become_program(job, module, source, child_output, null)
    os.close(source)
    os.close(child_output)
    process = os.pidfd_open(pid)
    deadline, parts, size, ended = time.monotonic() + job["wall_s"], [], 0, False
    status = "ok"
    waiting = [output, process]
    while waiting:
        left = deadline - time.monotonic()
        ready = select.select(waiting, [], [], max(0.0, left))[0]
        if not ready:
            status = "time"
            break
        if output in ready:
            part = os.read(output, 1 << 16)
            parts.append(part)
            size += len(part)
            if size > job["output_bytes"]:
                status = "output"
                break
            if not part:
                waiting.remove(output)
        elif process in ready:
            waiting.remove(process)
            ended = True
    if not ended:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(process)
    os.close(output)
    if status == "ok" and code:
        status = "refused" if code == REFUSED else "time" if -code == signal.SIGXCPU else "error"
    return {"status": status, "stdout": b"".join(parts).decode("utf-8", "replace")}


def _become_program(job: dict[str, Any], module: types.ModuleType, stdin: int, stdout: int, stderr: int) -> None:
    code = 1
    try:
        for fd, wanted in enumerate((stdin, stdout, stderr)):
            os.dup2(wanted, fd)
        os.closerange(3, 1024)
        sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115
        sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115
        sys.stderr = sys.__stderr__ = open(2, "w", encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115
        try:
            die_with_parent()
            confine(job)
        except (IsolationError, OSError, ValueError):
            os._exit(REFUSED)
        with contextlib.suppress(SystemExit):  # LiveCodeBench judges what was printed before
            run_program(job["program"], module)
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as an interpreter that ends does
        atexit._run_exitfuncs()
        for file in (sys.stdout, sys.__stdout__):  # a program may have put another in the place of the first
            file.flush()
        code = 0
    finally:
        os._exit(code)


def serve_calls(job: dict[str, Any], requests: int, replies: int) -> None:
    """Load the job's program and answer calls of its function until the requests end."""
    module = new_module("program")
    module.__dict__.pop(job["function"], None)  # operator.add, from the imports above, is nothing the program wrote
    confine(job)
    send(replies, {"ready": True})
    names = run_program(job["program"], module)
    owner = names.get("Solution")
    function = getattr(owner(), job["function"]) if isinstance(owner, type) else names[job["function"]]
    while (request := receive(requests)) is not None:
        try:
            reply = {"value": encode(function(*decode(request["arguments"])))}
        except Exception as error:
            reply = {"raised": type(error).__name__}
        send(replies, reply)


def run_check(job: dict[str, Any], requests: int, replies: int) -> None:
    """Run a program that checks a function which lives in another sandbox: calls go out as frames."""
    module = new_module("check")
    confine(job)
    send(replies, {"ready": True})

    def candidate(*arguments: Any) -> Any:
        send(replies, {"arguments": encode(list(arguments))})
        reply = receive(requests)
        if "value" in reply:
            return decode(reply["value"])
        raised = getattr(sys.modules["builtins"], reply["raised"], None)
        if isinstance(raised, type) and issubclass(raised, Exception):
            raise raised
        raise RuntimeError(reply["raised"])

    module.__dict__[job["function"]] = candidate
    passed = False
    try:
        if callable(check := run_program(job["check"], module).get("check")):
            check(candidate)
        passed = True
    except BaseException:  # an assertion; whatever else a check ends with is no pass either
        passed = False
    send(replies, {"passed": passed})


def main() -> None:
    """Do one job; what is wrong with the machine is said in the first reply."""
    requests, replies, null = os.dup(0), os.dup(1), os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    job = receive(requests)
    sys.path += job["listable"]  # where numpy lies
    for name in STAR_MODULES:
        __import__(name)
    try:
        prepare(job)
    except (IsolationError, OSError) as error:
        send(replies, {"refused": str(error)})
        return
    try:
        if job["kind"] == "call":
            serve_calls(job, requests, replies)
        elif job["kind"] == "check":
            run_check(job, requests, replies)
        else:
            module = new_module("__main__")
            send(replies, {"ready": True})
            while (request := receive(requests)) is not None:
                send(replies, run_on_stdin(job, module, request["stdin"], null))
    except (IsolationError, OSError) as error:
        send(replies, {"refused": str(error)})


if __name__ == "__main__":
    main()
