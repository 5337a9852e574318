"""The create-run form: the few parameters of a compiled pipeline, and the settings they stand for.

A form's names are chosen so that alphabetical order, which is the order Kubeflow shows, is the logical one. What it has
no field for goes into ``overrides``, a mapping shaped like the settings (``{train: {group_size: 8}}``). The settings of
a run are the defaults, the package's preset over them, the form over that, and ``overrides`` over all; but a setting
with a field in the form is set there and nowhere else.

A text field cannot be absent in Kubeflow (its form refuses to start a run without a default), so an empty one is.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from progrpo import rewards
from progrpo.algorithms import registry as algorithms
from progrpo.config import PIPELINES, PreparePipeline, difference, merge, parse
from progrpo.errors import ConfigError

PATHS: dict[str, str] = {
    "algorithm": "arm.algorithm.type",
    "arms": "arms",
    "checkpoint_uri": "checkpoint.uri",
    "dataset_eval_uri": "dataset.source.eval_uri",
    "dataset_task": "dataset.source.task",
    "dataset_train_uri": "dataset.source.train_uri",
    "eval_max_completion_tokens": "evaluation.max_completion_tokens",
    "eval_num_samples": "evaluation.num_samples",
    "eval_temperature": "evaluation.temperature",
    "experiment": "experiment",
    "gpu_count": "placement.gpu_count",
    "gpu_type": "placement.gpu_type",
    "placement_node_selector": "placement.node_selector",
    "placement_tolerations": "placement.tolerations",
    "seed": "seed",
    "seeds": "seeds",
    "train_learning_rate": "train.learning_rate",
    "train_steps": "train.steps",
}
"""The setting behind each field of a form."""

_DATASET = ("dataset_train_uri", "dataset_eval_uri")
_PREPARED = ("checkpoint_uri", "dataset_eval_uri", "dataset_task", "dataset_train_uri")
_PLACED = ("experiment", "gpu_count", "gpu_type", "placement_node_selector", "placement_tolerations")
_TRAINED = ("eval_num_samples", "train_learning_rate", "train_steps")

FIELDS: dict[str, tuple[str, ...]] = {
    "compare": (*_PREPARED, *_PLACED, *_TRAINED, "arms", "seeds"),
    "evaluate": (*_PREPARED, *_PLACED, "eval_max_completion_tokens", "eval_num_samples", "eval_temperature"),
    "prepare": _PREPARED,
    "train-and-evaluate": (*_PREPARED, *_PLACED, *_TRAINED, "algorithm", "seed"),
}
"""Fields of each pipeline's form, beside ``overrides``."""

REQUIRED: dict[str, tuple[str, ...]] = {
    "compare": ("checkpoint_uri", "dataset_train_uri"),
    "evaluate": ("checkpoint_uri", "dataset_eval_uri"),
    "prepare": ("checkpoint_uri", "dataset_train_uri"),
    "train-and-evaluate": ("checkpoint_uri", "dataset_train_uri"),
}
"""Fields without a default where a preset is for a model and data of the user's own."""

LITERALS: dict[str, tuple[str, ...]] = {
    "algorithm": tuple(algorithms.BUILT_IN),
    "dataset_task": tuple(rewards.BUILT_IN),
}
"""Fields with a closed set of values, which Kubeflow shows as a dropdown: built in, whatever is installed here. Another
algorithm or task is named in ``overrides``, or in ``arms``."""


def defaults_of(pipeline: str) -> dict[str, Any]:
    """Return every setting's default as JSON values; what is absent by default is left out (KFP knows no null)."""
    return PIPELINES[pipeline]().model_dump(mode="json", exclude_none=True)


def form_of(pipeline: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that say ``values``, the settings of ``pipeline``; an absent text is empty."""
    fields = {name: _get(values, PATHS[name]) for name in FIELDS[pipeline]}
    if _get(values, "dataset.source.type") == "countdown":
        fields["dataset_task"] = "countdown"
    for name, allowed in LITERALS.items():
        if fields.get(name) is not None and fields[name] not in allowed:
            fields[name] = allowed[0]  # for the dropdown; overrides say what it cannot
    return {name: "" if value is None else value for name, value in sorted(fields.items())}


def arguments_of(pipeline: str, settings: PreparePipeline, preset: Mapping[str, Any]) -> dict[str, Any]:
    """Return the form that :func:`read_form` makes ``settings`` of.

    Args:
        pipeline: its name.
        settings: the settings of a run.
        preset: the settings that the compiled package brings along.
    """
    target = settings.model_dump(mode="json", exclude_none=True)
    form = form_of(pipeline, target)
    base = merge(merge(defaults_of(pipeline), preset), _settings_of(form))
    with suppress(ValidationError):  # then overrides spell out some defaults
        base = PIPELINES[pipeline].model_validate(base).model_dump(mode="json", exclude_none=True)
    return {**form, "overrides": difference(base, target)}


def read_form(pipeline: str, form: Mapping[str, Any], preset: Mapping[str, Any]) -> PreparePipeline:
    """Return the settings of a run that was submitted with ``form``.

    Args:
        pipeline: its name.
        form: its fields, ``overrides`` among them; one that is absent leaves its setting as it was.
        preset: the settings that the compiled package brings along, which may be only some.

    Raises:
        ConfigError: an unknown pipeline or field, a setting given twice, an unknown setting, a value not allowed.
    """
    if pipeline not in PIPELINES:
        raise ConfigError(f"unknown pipeline {pipeline!r}; there are {', '.join(sorted(PIPELINES))}.")
    known = (*FIELDS[pipeline], "overrides")
    if unknown := sorted(set(form) - set(known)):
        raise ConfigError(f"{unknown[0]!r} is no parameter of {pipeline}. There are: {', '.join(sorted(known))}.")
    given = {name: value for name, value in form.items() if name != "overrides" and value != ""}
    overrides = form.get("overrides") or {}
    if not isinstance(overrides, Mapping):
        raise ConfigError(f"overrides is a {type(overrides).__name__}, but must be a mapping, such as {_EXAMPLE}.")
    if "experiment" in known and "experiment" in overrides:
        raise ConfigError("overrides.experiment: that is the parameter experiment; give it there.")
    base = merge(defaults_of(pipeline), preset)
    _check_dataset(given, merge(base, overrides))
    said = _settings_of(given)
    settings = merge(merge(base, said), overrides)
    _check_said_once(given, said, settings)
    return parse(PIPELINES[pipeline], settings, source=f"parameters of the {pipeline} pipeline")


_EXAMPLE = '{"train": {"group_size": 8}}'


def _settings_of(form: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the fields that are given say, shaped like the settings."""
    settings: dict[str, Any] = {}
    given = {name: value for name, value in form.items() if value != ""}
    if not any(name in given for name in _DATASET):
        given.pop("dataset_task", None)  # of a file; without one the source stays as it is
    else:
        _set(settings, "dataset.source.type", "file")
    for name, value in given.items():
        if name == "arms" and isinstance(value, list):
            value = [_arm(item) for item in value]
        elif name == "algorithm":
            _set(settings, "arm.name", value)
        _set(settings, PATHS[name], value)
    return settings


def _arm(item: Any) -> Any:
    """Expand the name of an algorithm to an arm of that name."""
    return {"name": item, "algorithm": {"type": item}} if isinstance(item, str) else item


def _check_dataset(given: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse a task for which no file was given; the embedded problems have one of their own."""
    task, source = given.get("dataset_task"), settings.get("dataset", {}).get("source", {})
    if any(name in given for name in _DATASET) or not isinstance(source, Mapping) or source.get("type") != "countdown":
        return
    if task not in (None, "countdown"):
        raise ConfigError(
            f"dataset_task is {task!r}, but neither dataset_train_uri nor dataset_eval_uri is given, so the embedded "
            f"countdown problems would be used. Give the file with the problems."
        )


def _check_said_once(given: Mapping[str, Any], said: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse a setting that a field says and ``overrides`` says otherwise."""
    for name in sorted(given):
        wanted, found = _get(said, PATHS[name]), _get(settings, PATHS[name])
        is_plugin = name in LITERALS and found not in LITERALS[name]
        if wanted is not None and found != wanted and not is_plugin:
            raise ConfigError(
                f"{name} is {wanted!r}, but overrides makes {PATHS[name]} {found!r}. What has a parameter of its own "
                f"is set there: give {name}, and leave {PATHS[name]} out of overrides."
            )


def _get(values: Any, path: str) -> Any:
    for key in path.split("."):
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _set(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for key in parents:
        values = values.setdefault(key, {})
    values[last] = value
