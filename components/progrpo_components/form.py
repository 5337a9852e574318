"""The settings of a pipeline run: the create-run form, and how form, preset and ``overrides`` become one.

This is the one place where a field of the form is written (:data:`FIELDS`): signatures and docstrings of the pipelines,
the first task's inputs, the dropdowns and the tables of the documentation are made from it. A form's names are chosen
so that alphabetical order, which is the order Kubeflow shows, is the logical one. What it has no field for goes into
``overrides``, a mapping shaped like the settings (``{train: {group_size: 8}}``) that takes the form's names, too.

The settings of a run are the defaults, a preset over them, the form over that, and ``overrides`` over all.

A text field cannot be absent in Kubeflow (its form refuses to start a run without a default), so an empty one is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from inspect import Parameter, Signature
from typing import Any

from progrpo import rewards
from progrpo.algorithms import registry as algorithms
from progrpo.config import merge, parse
from progrpo.errors import ConfigError
from progrpo_components.settings import PIPELINES, PreparePipeline

# Built in, whatever is installed here; another algorithm or task is named in ``overrides``, or in ``arms``.
ALGORITHMS, _TASKS = tuple(algorithms.BUILT_IN), tuple(rewards.BUILT_IN)

_EVERY = ("compare", "evaluate", "prepare", "train-and-evaluate")
_RUNS = ("compare", "evaluate", "train-and-evaluate")
_TRAINS = ("compare", "train-and-evaluate")
_NULL = "null"
_EXAMPLE = '{"train": {"group_size": 8}}'


@dataclass(frozen=True)
class Field:
    """A field of the form.

    Attributes:
        name: in the form.
        path: the setting it stands for; empty: all of them.
        type: of its values; KFP knows text, number, list and mapping.
        what: one line of documentation.
        pipelines: that have it.
        literals: the only values it takes, which Kubeflow shows as a dropdown.
    """

    name: str
    path: str
    type: type
    what: str
    pipelines: tuple[str, ...] = _RUNS
    literals: tuple[str, ...] = ()


FIELDS: tuple[Field, ...] = (
    Field(
        "algorithm",
        "arm.algorithm.type",
        str,
        'What it is trained by; its own settings go into overrides: {"arm": {"algorithm": {...}}}.',
        ("train-and-evaluate",),
        ALGORITHMS,
    ),
    Field(
        "arms",
        "arms",
        list,
        "What is compared: names of algorithms, or {name, algorithm: {type, ...}} for one with settings.",
        ("compare",),
    ),
    Field(
        "checkpoint_uri",
        "checkpoint.uri",
        str,
        "What is trained or measured: a Hugging Face directory, s3://... or embedded://countdown-sft.",
        _EVERY,
    ),
    Field(
        "dataset_eval_uri",
        "dataset.source.eval_uri",
        str,
        "JSONL, parquet or CSV file with the held-out problems; empty: split off the training file.",
        _EVERY,
    ),
    Field(
        "dataset_task",
        "dataset.source.task",
        str,
        "How an answer is verified; of the files above and below.",
        _EVERY,
        _TASKS,
    ),
    Field(
        "dataset_train_uri",
        "dataset.source.train_uri",
        str,
        "File with the training problems, which held-out ones may not repeat; empty: the preset's.",
        _EVERY,
    ),
    Field(
        "eval_max_completion_tokens",
        "evaluation.max_completion_tokens",
        int,
        "Longest completion in tokens.",
        ("evaluate",),
    ),
    Field(
        "eval_num_samples",
        "evaluation.num_samples",
        int,
        "Completions for each held-out problem: the n of Pass@k.",
    ),
    Field("eval_temperature", "evaluation.temperature", float, "Sampling temperature.", ("evaluate",)),
    Field("experiment", "experiment", str, "MLflow experiment that the runs are logged into."),
    Field("gpu_count", "placement.gpu_count", int, "GPUs of each training and evaluation pod; 0: none."),
    Field(
        "gpu_type",
        "placement.gpu_type",
        str,
        "Resource name of the GPU, such as nvidia.com/gpu, nvidia.com/mig-3g.40gb or amd.com/gpu.",
    ),
    Field("overrides", "", dict, f"Every other setting, such as {_EXAMPLE}; checked by the first task.", _EVERY),
    Field(
        "placement_node_selector",
        "placement.node_selector",
        dict,
        'Labels of the GPU nodes, such as {"nvidia.com/gpu.product": "NVIDIA-L40S"}.',
    ),
    Field(
        "placement_tolerations",
        "placement.tolerations",
        list,
        "Taints of the GPU nodes to tolerate: a list of {key, operator, value, effect}.",
    ),
    Field("seed", "seed", int, "Training seed.", ("train-and-evaluate",)),
    Field("seeds", "seeds", list, "Training seeds: one training run for each arm and seed.", ("compare",)),
    Field("train_learning_rate", "train.learning_rate", float, "Learning rate of every arm.", _TRAINS),
    Field("train_steps", "train.steps", int, "Optimizer steps of every training run.", _TRAINS),
)

REQUIRED: dict[str, tuple[str, ...]] = {
    "compare": ("checkpoint_uri", "dataset_train_uri"),
    "evaluate": ("checkpoint_uri", "dataset_eval_uri"),
    "prepare": ("checkpoint_uri", "dataset_train_uri"),
    "train-and-evaluate": ("checkpoint_uri", "dataset_train_uri"),
}
"""Fields without a default where a preset is for a model and data of the user's own."""

PATHS: dict[str, str] = {field.name: field.path for field in FIELDS if field.path}
"""The setting behind each field of a form."""

_DATASET = ("dataset_train_uri", "dataset_eval_uri")


def fields_of(pipeline: str) -> tuple[Field, ...]:
    """Return the fields of a pipeline's form, in its order."""
    return tuple(field for field in FIELDS if pipeline in field.pipelines)


def signature_of(pipeline: str) -> Signature:
    """Return the signature of a pipeline: its form, from which kfp reads names and types."""
    kind = Parameter.POSITIONAL_OR_KEYWORD
    return Signature([Parameter(field.name, kind, annotation=field.type) for field in fields_of(pipeline)])


def docstring_of(pipeline: str, summary: str) -> str:
    """Return the docstring of a pipeline, from which kfp reads the descriptions of its parameters."""
    return "\n".join([summary, "", "Args:", *(f"    {field.name}: {field.what}" for field in fields_of(pipeline))])


def defaults_of(pipeline: str) -> dict[str, Any]:
    """Return every setting's default as JSON values; what is absent by default is left out (KFP knows no null)."""
    return PIPELINES[pipeline]().model_dump(mode="json", exclude_none=True)


def form_of(pipeline: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that say ``values``, the settings of ``pipeline``; an absent text is empty."""
    fields = {field.name: get_path(values, field.path) for field in fields_of(pipeline) if field.path}
    if get_path(values, "dataset.source.type") == "countdown":
        fields["dataset_task"] = "countdown"
    for field in fields_of(pipeline):
        if field.literals and fields[field.name] is not None and fields[field.name] not in field.literals:
            fields[field.name] = field.literals[0]  # for the dropdown; overrides say what it cannot
    return {name: "" if value is None else value for name, value in fields.items()}


def settings_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was given, shaped like the settings.

    Args:
        given: values by the form's names, by dotted paths (``train.steps``) or by section (``train: {steps: 9}``); of
            the form, an empty text is absent.

    Raises:
        ConfigError: a setting by two of its names.
    """
    settings: dict[str, Any] = {}
    given = {key: value for key, value in given.items() if not (key in PATHS and value == "")}
    for key in sorted(given, key=lambda key: key in PATHS):
        path, value = PATHS.get(key, key), given[key]
        if path != key and get_path(settings, path) is not None:
            raise ConfigError(f"{key} is the form's name of {path}: give one of them.")
        if key == "dataset_task" and not any(name in given for name in _DATASET) and value == "countdown":
            continue  # the embedded problems' own, which are no file
        settings = merge(settings, nest(path, value))
        if key in _DATASET:
            settings = merge(settings, nest("dataset.source.type", "file"))
        elif key == "algorithm":
            settings = merge(settings, nest("arm.name", value))
    if isinstance(arms := settings.get("arms"), list):
        settings["arms"] = [{"name": arm, "algorithm": {"type": arm}} if isinstance(arm, str) else arm for arm in arms]
    return settings


def read_form(pipeline: str, form: Mapping[str, Any], preset: Mapping[str, Any]) -> PreparePipeline:
    """Return the settings of a run that was submitted with ``form``.

    Args:
        pipeline: its name.
        form: its fields, ``overrides`` among them; one that is absent leaves its setting as it was.
        preset: the settings that the compiled package brings along, which may be only some.

    Raises:
        ConfigError: an unknown pipeline or field, an unknown setting, a value not allowed.
    """
    if pipeline not in PIPELINES:
        raise ConfigError(f"unknown pipeline {pipeline!r}; there are {', '.join(sorted(PIPELINES))}.")
    known = [field.name for field in fields_of(pipeline)]
    if unknown := sorted(set(form) - set(known)):
        raise ConfigError(f"{unknown[0]!r} is no parameter of {pipeline}. There are: {', '.join(known)}.")
    overrides = form.get("overrides") or {}
    if not isinstance(overrides, Mapping):
        raise ConfigError(f"overrides is a {type(overrides).__name__}, but must be a mapping, such as {_EXAMPLE}.")
    if "experiment" in known and "experiment" in overrides:
        raise ConfigError("overrides.experiment: that is the parameter experiment; give it there.")
    fields = {name: value for name, value in form.items() if name != "overrides" and value != ""}
    base, over = merge(defaults_of(pipeline), preset), settings_of(_with_nulls(overrides))
    _check_dataset(fields, merge(base, over))
    values = merge(merge(base, settings_of(fields)), over)
    return parse(PIPELINES[pipeline], values, source=f"parameters of the {pipeline} pipeline")


def arguments_of(pipeline: str, given: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the KFP pipeline that say ``given``, over what its package brings along.

    A setting with a field stands in that field, where Kubeflow shows it; the rest goes into ``overrides``.

    Args:
        pipeline: its name.
        given: what :func:`settings_of` returns.
        settings: all those of the run.
    """
    form: dict[str, Any] = {}
    rest = dict(given)
    for field in fields_of(pipeline):
        value = get_path(rest, field.path) if field.path else None
        if field.literals and value not in field.literals:  # of an installed package: overrides can name it
            continue
        if field.name == "algorithm":
            if value is None or value != get_path(rest, "arm.name"):  # the field names the arm, too
                continue
            rest = _without(rest, "arm.name")
        if isinstance(value, (int, float) if field.type is float else field.type) and value != "":
            form[field.name] = value
            rest = _without(rest, field.path)
    if get_path(given, "dataset.source") is not None:
        form["dataset_task"] = form_of(pipeline, settings)["dataset_task"]
    if any(name in form for name in _DATASET) and get_path(rest, "dataset.source.type") == "file":
        rest = _without(rest, "dataset.source.type")  # which the fields say, too
    return {**form, "overrides": _without_nulls(rest)}


def _without_nulls(value: Any) -> Any:
    """Return a value of ``overrides`` for KFP, which knows no null: the text ``null`` takes a setting away."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return _NULL if value is None else value


def _with_nulls(value: Any) -> Any:
    """Return what :func:`_without_nulls` was given."""
    if isinstance(value, Mapping):
        return {key: _with_nulls(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_nulls(item) for item in value]
    return None if value == _NULL else value


def _check_dataset(fields: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse a task for which no file was given; the embedded problems have one of their own."""
    task, source = fields.get("dataset_task"), settings.get("dataset", {}).get("source", {})
    if any(name in fields for name in _DATASET) or not isinstance(source, Mapping) or source.get("type") != "countdown":
        return
    if task not in (None, "countdown"):
        raise ConfigError(
            f"dataset_task is {task!r}, but neither dataset_train_uri nor dataset_eval_uri is given, so the embedded "
            f"countdown problems would be used. Give the file with the problems."
        )


def nest(path: str, value: Any) -> dict[str, Any]:
    """Return ``value`` below the keys of a dotted path."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return dict(value)


def get_path(values: Any, path: str | Iterable[str]) -> Any:
    """Return what stands at a dotted path; None if nothing does. A number is a place in a list."""
    for key in path.split(".") if isinstance(path, str) else path:
        if isinstance(values, list) and key.isdecimal() and int(key) < len(values):
            values = values[int(key)]
        else:
            values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _without(values: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return ``values`` without the setting at ``path``, and without mappings that are empty then."""
    key, _, below = path.partition(".")
    rest = {name: value for name, value in values.items() if name != key}
    if below and (nested := _without(values[key], below)):
        rest[key] = nested
    return rest
