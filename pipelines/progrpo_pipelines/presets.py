"""Settings of a pipeline run: defaults, then a preset, then a file, then ``--set``, each over the one before.

They are merged as :mod:`progrpo.config.merging` says; ``--set arms.1.algorithm.alpha=2`` reaches into a list.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from progrpo.config import PIPELINES, PreparePipeline, merge, parse
from progrpo.errors import ConfigError
from progrpo_components import form
from progrpo_components.form import defaults_of

_PRESETS = resources.files("progrpo_pipelines") / "presets"


def preset_names() -> list[str]:
    """Names of the presets that come with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _PRESETS.iterdir() if entry.name.endswith(".yaml"))


def describe_preset(name: str) -> str:
    """Return the preset's one-line description."""
    return str(_read_preset(name)["description"])


def resolve(
    pipeline: str,
    *,
    preset: str | None = None,
    params_file: Path | None = None,
    settings: Sequence[str] = (),
) -> PreparePipeline:
    """Return the checked settings of a run.

    Args:
        pipeline: a name in :data:`progrpo.config.PIPELINES`.
        preset: a name in :func:`preset_names`.
        params_file: YAML or JSON file with a mapping of parameters.
        settings: ``key=value`` texts; the key is a field of the form or a dotted setting, the value is YAML.

    Raises:
        ConfigError: an unknown pipeline, preset or key, a value that is not allowed, an unreadable file.
    """
    check_name("pipeline", pipeline, PIPELINES)
    model = PIPELINES[pipeline]
    sources = [f"parameters of {pipeline}"]
    values = defaults_of(pipeline)
    if preset is not None:
        values = merge(values, preset_parameters(preset, pipeline))
        sources.append(f"preset {preset}")
    if params_file is not None:
        sources.append(str(params_file))
        values = _over(pipeline, values, read_mapping(params_file), source=", ".join(sources))
    if settings:
        base = {**form.form_of(pipeline, values), **values}
        sources.append("--set")
        values = _over(pipeline, values, _parse_settings(settings, base), source=", ".join(sources))
    if preset is not None and (missing := required_fields(preset, pipeline) & _unset(pipeline, values)):
        keys = " ".join(f"--set {name}=..." for name in sorted(missing))
        raise ConfigError(f"preset {preset} is for a model and data of your own: give {keys}.")
    return parse(model, values, source=", ".join(sources))


def _over(pipeline: str, values: Mapping[str, Any], given: Mapping[Any, Any], *, source: str) -> dict[str, Any]:
    """Return ``values`` with those given over them; top-level names are settings' or the form's.

    Raises:
        ConfigError: a name that is neither; a setting under both its names.
    """
    fields, known = form.FIELDS[pipeline], PIPELINES[pipeline].model_fields
    for name in given:
        if name not in known and name not in fields:
            names = [*fields, *(form.PATHS[field] for field in fields), *known]
            close = [f"{other} ({form.PATHS[other]})" if other in form.PATHS else other
                     for other in difflib.get_close_matches(str(name), names, n=1)]  # fmt: skip
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ConfigError(
                f"{source}: {pipeline} has no {name!r}. Fields of the form: {', '.join(sorted(fields))}. "
                f"Settings, with dots below: {', '.join(sorted(known))}.{hint}"
            )
    said = {name: value for name, value in given.items() if name in fields and (name not in known or name == "arms")}
    rest = {name: value for name, value in given.items() if name not in said}
    for name in said:
        if form.read_path(rest, form.PATHS[name]) is not None:
            raise ConfigError(f"{source}: {name} is the form's name of {form.PATHS[name]}: give one of them.")
    if "dataset_task" in said and not said.keys() & {"dataset_train_uri", "dataset_eval_uri"}:  # of the file there is
        rest = merge({"dataset": {"source": {"task": said["dataset_task"]}}}, rest)
    merged: dict[str, Any] = merge(merge(values, form.settings_of(said)), rest)
    return merged


def _unset(pipeline: str, values: Mapping[str, Any]) -> set[str]:
    return {name for name, value in form.form_of(pipeline, values).items() if value == ""}


def arguments_of(parameters: PreparePipeline, *, preset: str | None = None) -> dict[str, Any]:
    """Return the settings of a run as arguments of the KFP pipeline: the form's fields and ``overrides``.

    Args:
        parameters: the settings.
        preset: that the pipeline was compiled with.
    """
    pipeline = next(name for name, model in PIPELINES.items() if type(parameters) is model)
    return form.arguments_of(pipeline, parameters, {} if preset is None else preset_parameters(preset, pipeline))


def form_defaults(pipeline: str, preset: str | None = None) -> dict[str, Any]:
    """Return the arguments that a compiled pipeline has as its defaults; what must be given is left out."""
    brought = {} if preset is None else preset_parameters(preset, pipeline)
    required = set() if preset is None else required_fields(preset, pipeline)
    fields = form.form_of(pipeline, merge(defaults_of(pipeline), brought))
    return {**{name: value for name, value in fields.items() if name not in required}, "overrides": {}}


def preset_parameters(name: str, pipeline: str) -> dict[str, Any]:
    """Return the part of a preset that ``pipeline`` has settings for."""
    parameters = _read_preset(name)["parameters"]
    return {key: value for key, value in parameters.items() if key in PIPELINES[pipeline].model_fields}


def required_fields(name: str, pipeline: str) -> set[str]:
    """Return the fields of the form that have no default in a preset."""
    return set(form.REQUIRED[pipeline]) if _read_preset(name).get("own_inputs") else set()


@cache
def _read_preset(name: str) -> dict[str, Any]:
    check_name("preset", name, preset_names())
    content = yaml.safe_load((_PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))
    known = {field for model in PIPELINES.values() for field in model.model_fields}
    assert set(content) - {"own_inputs"} == {"description", "parameters"}, name  # noqa: S101
    assert set(content["parameters"]) <= known, name  # noqa: S101
    return dict(content)


def check_name(what: str, name: str, allowed: Iterable[str]) -> None:
    """Raise :class:`ConfigError` listing the names allowed if ``name`` is none of them."""
    names = sorted(allowed)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"unknown {what} {name!r}. There are: {', '.join(names)}.{hint}")


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML or JSON file that holds a mapping.

    Raises:
        ConfigError: no such file, not UTF-8, not YAML, or not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}.") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date such as 2026-02-30
        raise ConfigError(f"{path} is not valid YAML or JSON: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{path} must hold a mapping of names to values, not a {type(content).__name__}.")
    return content


def _parse_settings(settings: Sequence[str], base: Mapping[str, Any]) -> dict[str | int, Any]:
    """Turn ``a.b=1`` texts into a nested mapping; a number in the path is a place in a list."""
    result: dict[str | int, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path):
            raise ConfigError(
                f"--set {setting}: expected KEY=VALUE, such as train.steps=200 or arms.1.algorithm.alpha=2."
            )
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(f"--set {setting}: the value is not valid YAML: {error}") from None
        node: dict[str | int, Any] = result
        current: Any = base
        for i in range(len(path)):
            place = _place(setting, path[: i + 1], current)
            current = current[place] if _has(current, place) else None
            if i == len(path) - 1:
                # --set experiment=2024 means the text, as the parameter is one.
                node[place] = text if isinstance(current, str) and not isinstance(value, str) else value
                break
            node = node.setdefault(place, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--set {setting}: {'.'.join(path[: i + 1])} was already set as a whole.")
    return result


def _has(container: Any, place: str | int) -> bool:
    return place in container if isinstance(container, Mapping) else isinstance(container, list)


def _place(setting: str, path: Sequence[str], container: Any) -> str | int:
    if not isinstance(container, list):
        return path[-1]
    if not path[-1].isdecimal() or int(path[-1]) >= len(container):
        raise ConfigError(
            f"--set {setting}: {'.'.join(path[:-1])} is a list of {len(container)}; "
            f"give a place from 0 to {len(container) - 1}, or the whole list, such as {'.'.join(path[:-1])}=[...]."
        )
    return int(path[-1])
