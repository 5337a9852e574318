"""Verifiable rewards: is a completion's answer right?

Tasks: ``countdown``, ``exact``, ``math`` (math-verify, in worker processes that are killed when they take too long),
``code`` (programs, run in sandboxes), and those that installed packages offer as ``progrpo.tasks``. A problem names its
task by a text: its name, or its settings as JSON.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from progrpo import plugins
from progrpo.errors import ConfigError
from progrpo.rewards.code import Code
from progrpo.rewards.countdown import Countdown
from progrpo.rewards.exact import Exact
from progrpo.rewards.mathematics import Math
from progrpo.rewards.task import Task
from progrpo.rewards.verdict import Verdict

__all__ = ["BUILT_IN", "GROUP", "Task", "Verdict", "all_tasks", "check_verifiers", "task_of", "verify", "verify_batch"]

logger = logging.getLogger(__name__)

GROUP = "progrpo.tasks"
BUILT_IN: dict[str, type[Task]] = {task.model_fields["type"].default: task for task in (Math, Exact, Countdown, Code)}


def task_text(given: str | Mapping[str, Any]) -> str:
    """Return a task as problems name it: by its name, or as JSON where its settings are not the defaults.

    Raises:
        ConfigError: an unknown task or setting, or a package that offers it but cannot be used.
    """
    task = task_of(given if isinstance(given, str) else json.dumps(given))
    settings = task.model_dump(mode="json", exclude_defaults=True)
    return json.dumps({"type": task.type, **settings}) if set(settings) - {"type"} else task.type


@lru_cache(maxsize=64)
def task_of(text: str) -> Task:
    """Return the task that a problem names.

    Raises:
        ConfigError: see :func:`task_text`.
    """
    values = {"type": text}
    if text.startswith("{"):
        with suppress(ValueError):  # then it is the name of no task
            values = json.loads(text)
    name = values.get("type")
    found = plugins.find(GROUP, str(name), BUILT_IN, _checked) or BUILT_IN.get(str(name))
    if found is None:
        raise ConfigError(f"unknown task {name!r}. Allowed: {', '.join(sorted({*BUILT_IN, *_offered()}))}.")
    try:
        return found.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        allowed = ", ".join(found.model_fields)
        raise ConfigError(
            f"task {name}: {'.'.join(map(str, first['loc']))}: {first['msg']}. Its settings are: {allowed}."
        ) from None


def all_tasks() -> dict[str, type[Task]]:
    """Return every task by name, loading those of other packages."""
    found = {name: plugins.find(GROUP, name, BUILT_IN, _checked) for name in _offered()}
    return {**BUILT_IN, **{name: task for name, task in found.items() if task is not None}}


def check_verifiers(tasks: Collection[str]) -> None:
    """Refuse a machine that could not verify these tasks, before anything is sampled for them.

    Raises:
        ConfigError: programs can neither be isolated here nor sent to a server, for example.
    """
    for task in sorted(tasks):
        task_of(task).check_ready()


def verify(task: str, answer: str, completion: str) -> Verdict:
    """Verify one completion; see :func:`verify_batch`."""
    return verify_batch([(task, answer, completion)])[0]


def verify_batch(items: Sequence[tuple[str, str, str]]) -> list[Verdict]:
    """Verify completions; those of a problem that are the same text once.

    Args:
        items: (task, right answer, completion).

    Returns:
        One verdict an item, in their order.

    Raises:
        ConfigError: an unknown task, a verifier that is not installed or does not start, or no sandbox for programs.
        DataError: an answer its task cannot read.
    """
    pairs: dict[str, list[tuple[str, str]]] = {}
    for task, answer, completion in dict.fromkeys(items):
        pairs.setdefault(task, []).append((answer, completion))
    verdicts: dict[tuple[str, str, str], Verdict] = {}
    for task, of_task in pairs.items():
        results = task_of(task).verify_all(of_task)
        verdicts.update({(task, *pair): verdict for pair, verdict in zip(of_task, results, strict=True)})
    found = [verdicts[item] for item in items]
    for task in pairs:
        judged = [verdict for item, verdict in zip(items, found, strict=True) if item[0] == task]
        if unscored := sum(not verdict.scored for verdict in judged):
            logger.warning("%d of %d %s completions could not be verified", unscored, len(judged), task_of(task).type)
    return found


def _offered() -> list[str]:
    return [point.name for point in plugins.offered(GROUP)]


def _checked(found: Any, name: str) -> type[Task]:
    task: type[Task] = plugins.closed_model(found, name, Task)
    if not (isinstance(getattr(task, "version", None), str) and isinstance(getattr(task, "answers", None), str)):
        raise TypeError("its class attributes version and answers must be texts")
    if task.verify is Task.verify and task.verify_all is Task.verify_all:
        raise TypeError("it has neither verify nor verify_all")
    return task
