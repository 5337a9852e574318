"""Settings of a pipeline run: defaults, then a preset, then a file, then ``--set``, each over the one before.

They are merged as :mod:`progrpo.config.merging` says; ``--set arms.1.algorithm.alpha=2`` reaches into a list.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from progrpo.config import merge, parse
from progrpo.errors import ConfigError
from progrpo_components.form import (
    PATHS,
    REQUIRED,
    arguments_of,
    defaults_of,
    fields_of,
    form_of,
    get_path,
    settings_of,
)
from progrpo_components.settings import PIPELINES, PreparePipeline

_PRESETS = resources.files("progrpo_pipelines.packaging") / "presets"


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
    """Return the checked settings of a run; see :func:`request`."""
    return request(pipeline, preset=preset, params_file=params_file, settings=settings).settings


@dataclass(frozen=True)
class Request:
    """A run that is asked for.

    Attributes:
        pipeline: its name.
        preset: that its package brings along.
        settings: all of them, checked.
        arguments: of the KFP pipeline: the form.
    """

    pipeline: str
    preset: str | None
    settings: PreparePipeline
    arguments: dict[str, Any]


def request(
    pipeline: str,
    *,
    preset: str | None = None,
    params_file: Path | None = None,
    settings: Sequence[str] = (),
) -> Request:
    """Return what is asked for, once checked.

    Args:
        pipeline: a name in :data:`progrpo_components.settings.PIPELINES`.
        preset: a name in :func:`preset_names`.
        params_file: YAML or JSON file with a mapping of parameters.
        settings: ``key=value`` texts; the key is a field of the form or a dotted path, the value is YAML.

    Raises:
        ConfigError: an unknown pipeline, preset or key, a value that is not allowed, an unreadable file.
    """
    check_name("pipeline", pipeline, PIPELINES)
    sources = [f"parameters of {pipeline}", *([f"preset {preset}"] if preset else [])]
    brought = {} if preset is None else preset_parameters(preset, pipeline)
    values, given = merge(defaults_of(pipeline), brought), {}
    if params_file is not None:
        sources.append(str(params_file))
        given = _named(pipeline, read_mapping(params_file), ", ".join(sources))
        values = _merged(values, given, ", ".join(sources))
    if settings:
        said = _parse_settings(pipeline, settings, values)
        values, given = _merged(values, said, "--set"), merge(given, said)
        sources.append("--set")
    if preset is not None and (missing := required_fields(preset, pipeline) & _unset(pipeline, values)):
        keys = " ".join(f"--set {name}=..." for name in sorted(missing))
        raise ConfigError(f"preset {preset} is for a model and data of your own: give {keys}.")
    checked = parse(PIPELINES[pipeline], values, source=", ".join(sources))
    arguments = {
        **form_defaults(pipeline, preset),
        **arguments_of(pipeline, given, checked.model_dump(mode="json", exclude_none=True)),
    }
    return Request(pipeline, preset, checked, arguments)


def _named(pipeline: str, given: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return what was given, shaped like the settings; every name must be a field of the form or a section."""
    fields, known = {field.name: field.path for field in fields_of(pipeline)}, PIPELINES[pipeline].model_fields
    for key in given:
        if key not in fields and key.partition(".")[0] not in known:
            word, dot, _ = key.partition(".")
            close = difflib.get_close_matches(word, known if dot else [*fields, *fields.values(), *known], n=1)
            other = fields.get(close[0]) if close else None
            hint = f" Did you mean {close[0]!r}{f' ({other})' if other else ''}?" if close else ""
            raise ConfigError(
                f"{source}: {key}: unknown key; {pipeline} has no such setting. Fields of the form: "
                f"{', '.join(fields)}. Settings, with dots below: {', '.join(sorted(known))}.{hint}"
            )
    try:
        return settings_of(given)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _merged(base: dict[str, Any], over: dict[str, Any], source: str) -> dict[str, Any]:
    try:
        return dict(merge(base, over))
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _unset(pipeline: str, values: Mapping[str, Any]) -> set[str]:
    return {name for name, value in form_of(pipeline, values).items() if value == ""}


def form_defaults(pipeline: str, preset: str | None = None) -> dict[str, Any]:
    """Return the arguments that a compiled pipeline has as its defaults; what must be given is left out."""
    brought = {} if preset is None else preset_parameters(preset, pipeline)
    required = set() if preset is None else required_fields(preset, pipeline)
    fields = form_of(pipeline, merge(defaults_of(pipeline), brought))
    return {**{name: value for name, value in fields.items() if name not in required}, "overrides": {}}


def preset_parameters(name: str, pipeline: str) -> dict[str, Any]:
    """Return the part of a preset that ``pipeline`` has settings for."""
    parameters = _read_preset(name)["parameters"]
    return {key: value for key, value in parameters.items() if key in PIPELINES[pipeline].model_fields}


def required_fields(name: str, pipeline: str) -> set[str]:
    """Return the fields of the form that have no default in a preset."""
    return set(REQUIRED[pipeline]) if _read_preset(name).get("own_inputs") else set()


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


def _parse_settings(pipeline: str, settings: Sequence[str], base: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``key=value`` texts say, by the form's names or dotted paths, shaped like the settings."""
    given: dict[str, Any] = {}
    names: dict[tuple[str, ...], str] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")):
            raise ConfigError(f"--set {setting}: expected KEY=VALUE, such as train_steps=200 or train.group_size=8.")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(f"--set {setting}: the value is not valid YAML: {error}") from None
        path = PATHS.get(key, key).split(".")
        if (said := names.setdefault(tuple(path), key)) != key:
            raise ConfigError(f"--set {setting}: {key} and {said} are names of one setting: give one of them.")
        for i in range(1, len(path)):
            if isinstance(get_path(given, path[:i]), str | int | float):
                raise ConfigError(f"--set {setting}: {'.'.join(path[:i])} was already set as a whole.")
        if isinstance(get_path(base, path), str) and not isinstance(value, str):
            value = text  # --set experiment=2024 means the text, as the parameter is one
        given = merge(given, _named(pipeline, {key: value}, "--set"))
    return given
