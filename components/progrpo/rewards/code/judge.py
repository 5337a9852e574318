"""Judge one program. The verdict is made out here: what a program should answer never enters its sandbox."""

from __future__ import annotations

import time

from progrpo.rewards.code.cases import ProblemTests, same_output, same_value
from progrpo.rewards.code.inside import decode, encode
from progrpo.rewards.code.sandbox import Isolation, Sandbox, SandboxError


def passes(program: str, tests: ProblemTests, how: Isolation = "full") -> bool:
    """Run a program against its tests until one fails.

    Out of time, out of memory, an exception or too much output is a failed case, as everywhere in the field.

    Raises:
        SandboxError: the machine, not the program, got in the way.
        ConfigError: this machine cannot isolate programs.
    """
    if tests.check is not None:
        return _passes_check(program, tests, how)
    return _prints(program, tests, how) if tests.function is None else _returns(program, tests, how)


def _prints(program: str, tests: ProblemTests, how: Isolation) -> bool:
    with Sandbox("stdin", tests, program, how) as sandbox:
        for given, expected in zip(tests.inputs, tests.outputs, strict=True):
            # The limit is kept inside, by a process that no program can reach; this one only guards against its end.
            reply = sandbox.ask({"stdin": given}, sandbox.case_wall_s + 30)
            if reply is None or "status" not in reply:
                raise SandboxError("a sandbox ended before its program did")
            if reply["status"] != "ok" or not same_output(reply["stdout"], expected):
                return False
    return True


def _returns(program: str, tests: ProblemTests, how: Isolation) -> bool:
    with Sandbox("call", tests, program, how) as sandbox:
        for arguments, expected in zip(tests.inputs, tests.outputs, strict=True):
            reply = sandbox.ask({"arguments": encode(arguments)}, sandbox.case_wall_s)
            try:
                if reply is None or not same_value(decode(reply["value"]), expected):
                    return False
            except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
                return False  # an exception of the program, or a reply that it forged
    return True


def _passes_check(program: str, tests: ProblemTests, how: Isolation) -> bool:
    """Let the check run in one sandbox and the program in another, and carry calls between them.

    So the program cannot touch what judges it, and only plain data comes back: no object whose ``__eq__`` says yes.
    """
    with Sandbox("call", tests, program, how) as candidate, Sandbox("check", tests, how=how) as check:
        deadline = time.monotonic() + check.case_wall_s
        while (message := check.read(deadline)) is not None:
            if "passed" in message:
                return message["passed"] is True
            if "arguments" not in message:
                return False
            reply = candidate.ask(message, deadline - time.monotonic())
            if reply is None or not check.write(reply, deadline):
                return False
    return False
