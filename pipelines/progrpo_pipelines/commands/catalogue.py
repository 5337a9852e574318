"""``progrpo algorithms`` and ``progrpo tasks``: what a configuration can name, with its settings."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from progrpo.settings import Config


_INDENT, _WIDTH = " " * 4, 120


def algorithms() -> None:
    """List the algorithms, built in and of installed packages, with their settings.

    Every one also takes loss, dynamic_sampling and overlong_penalty, which replace those of train.
    """
    from progrpo.algorithms.registry import GROUP, all_algorithms

    typer.echo("\n".join(_lines(all_algorithms(), GROUP)))


def tasks() -> None:
    """List the tasks, built in and of installed packages, with what their answer column holds and their settings.

    A task with other settings than its defaults is named by a mapping: dataset.source.task={type: math, timeout_s: 30}.
    """
    from progrpo.rewards import GROUP, all_tasks

    found = all_tasks()
    typer.echo("\n".join(_lines(found, GROUP, {name: f"answers: {task.answers}" for name, task in found.items()})))


def _lines(models: Mapping[str, type[Config]], group: str, notes: Mapping[str, str] | None = None) -> Iterator[str]:
    from progrpo.algorithms import Algorithm
    from progrpo.plugins import offered, package_of
    from progrpo.settings import Config

    packages = {point.name: f" [{package_of(point)}]" for point in offered(group)}
    for name, model in models.items():
        meaning = (model.__doc__ or "").strip().splitlines()[0]
        yield f"{name}{packages.get(name, '')}: {meaning}".replace("``", "")
        if notes is not None:
            yield f"{_INDENT}{notes[name]}"
        for key, field in model.model_fields.items():
            if key == "type" or (key in Algorithm.model_fields and field.default is None):
                continue
            value = field.default.model_dump(mode="json") if isinstance(field.default, Config) else field.default
            text = f"{key} = {'absent' if value is None else value}" if not field.is_required() else f"{key}, required"
            text += f": {field.description}" if field.description else ""
            yield textwrap.fill(text, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT * 2)
