"""Verifier of the ``code`` task: the last Python block of a completion, run against the tests of its problem.

Programs run in sandboxes on this machine, or on a server where ``PROGRPO_SANDBOX_URL`` names one; there is no way
to run them without either. See :mod:`progrpo.rewards.code.inside` for what a sandbox keeps from a program.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, Literal

from progrpo.errors import ConfigError
from progrpo.rewards.code.cases import ProblemTests, parse_answer
from progrpo.rewards.code.judge import passes
from progrpo.rewards.code.program import normalised_program, python_blocks
from progrpo.rewards.code.sandbox import Isolation, Sandbox, SandboxError, cannot_isolate, isolation
from progrpo.rewards.task import Task
from progrpo.rewards.verdict import UNSCORED, Verdict

VERSION = "1"
URL_VARIABLE = "PROGRPO_SANDBOX_URL"
MAX_PROGRAM = 1 << 20
"""Characters. A longer program is wrong."""
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
NUM_WORKERS = max(1, _CORES // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
"""Programs at once: a core each, shared among the ranks of a node, whose number torchrun sets."""

logger = logging.getLogger(__name__)
_lock = threading.Lock()
_probed: set[Isolation] = set()


class Code(Task):
    """The last Python block of a completion, run against the tests of its problem."""

    type: Literal["code"] = "code"
    version: ClassVar[str] = VERSION
    answers: ClassVar[str] = "JSON: the tests, in one of three forms (progrpo.rewards.code.cases)"
    json_answers: ClassVar[bool] = True

    def verify_all(self, items: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Run every program once."""
        return verify_all(items)

    def check_answer(self, answer: str) -> None:
        """It must have one of the three forms."""
        parse_answer(answer)

    def check_ready(self) -> None:
        """There must be a sandbox here, or a server."""
        check_ready()


def verify_all(items: Sequence[tuple[str, str]]) -> list[Verdict]:
    """Verify (answer column, completion) pairs; equal programs of one problem run once.

    A completion without a program is wrong. ``scored=False``: the machine got in the way, twice.

    Raises:
        ConfigError: no machine here or there that isolates programs.
        DataError: an answer column that cannot be read.
    """
    programs = [next(reversed(python_blocks(completion)), None) for _, completion in items]
    for answer in {answer for answer, _ in items}:
        parse_answer(answer)
    keys = list(
        dict.fromkeys(
            (answer, program)
            for (answer, _), program in zip(items, programs, strict=True)
            if program is not None and len(program) <= MAX_PROGRAM
        )
    )
    passed: dict[tuple[str, str], bool | None] = {}
    if keys:
        if url := os.environ.get(URL_VARIABLE):
            from progrpo.rewards.code.client import run_remotely

            outcomes = run_remotely(url, keys)
        else:
            outcomes = run_here(keys)
        passed = dict(zip(keys, outcomes, strict=True))
    shown = {program: normalised_program(program) for program in set(programs) if program is not None}
    return [
        Verdict(correct=False, answer=None)
        if program is None
        else _verdict(passed.get((answer, program), False), shown[program])
        for (answer, _), program in zip(items, programs, strict=True)
    ]


def check_ready() -> None:
    """Refuse a machine that has neither a sandbox nor a server for programs.

    Raises:
        ConfigError: likewise.
    """
    if url := os.environ.get(URL_VARIABLE):
        from progrpo.rewards.code.client import check_server

        check_server(url)
    else:
        check_isolation(isolation())


def _verdict(passed: bool | None, answer: str) -> Verdict:
    return UNSCORED if passed is None else Verdict(correct=passed, answer=answer)


def run_here(programs: Sequence[tuple[str, str]], num_workers: int = NUM_WORKERS) -> list[bool | None]:
    """Run (answer column, program) pairs in sandboxes of this machine, ``num_workers`` at a time.

    Returns:
        whether each passes; None: its sandbox was ended from outside, twice.

    Raises:
        ConfigError: this machine cannot isolate programs.
    """
    how = isolation()
    check_isolation(how)

    def run(item: tuple[str, str]) -> bool | None:
        tests = parse_answer(item[0])
        for _ in range(2):
            try:
                return passes(item[1], tests, how)
            except SandboxError as error:
                logger.warning("a program could not be judged: %s", error)
        return None

    with ThreadPoolExecutor(max(1, min(num_workers, len(programs)))) as threads:
        return list(threads.map(run, programs))


def check_isolation(how: Isolation) -> None:
    """Run a program once a process and way of isolation, to know that it is isolated.

    Raises:
        ConfigError: it is not, or it does not run.
    """
    with _lock:
        if how in _probed:
            return
        program = "import socket\ntry:\n    socket.socket()\nexcept PermissionError:\n    print(input())"
        try:
            with Sandbox("stdin", ProblemTests(), program, how) as sandbox:
                reply = sandbox.ask({"stdin": "isolated"}, 60) or {}
        except SandboxError as error:
            raise ConfigError(cannot_isolate(str(error))) from None
        if reply.get("status") != "ok" or reply.get("stdout") != "isolated\n":
            raise ConfigError(cannot_isolate(reply.get("refused") or "a seccomp filter does not take hold"))
        _probed.add(how)
