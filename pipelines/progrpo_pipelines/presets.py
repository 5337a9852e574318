"""Parameters of a pipeline run: defaults, then a preset, then a file, then ``--set``, each over the one before.

Mappings are merged key by key and lists replaced, except that a mapping with another ``type`` replaces the whole (an
algorithm's or a source's keys mean nothing to another), and ``--set arms.1.algorithm.alpha=2`` reaches into a list.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from progrpo.config import PIPELINES, EvaluatePipeline, parse
from progrpo.errors import ConfigError

_PRESETS = resources.files("progrpo_pipelines") / "presets"


def defaults_of(pipeline: str) -> dict[str, Any]:
    """Return every parameter's default as JSON values; what is absent by default is left out (KFP knows no null)."""
    return PIPELINES[pipeline]().model_dump(mode="json", exclude_none=True)


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
) -> EvaluatePipeline:
    """Return the checked parameters of a run.

    Args:
        pipeline: a name in :data:`progrpo.config.PIPELINES`.
        preset: a name in :func:`preset_names`.
        params_file: YAML or JSON file with a mapping of parameters.
        settings: ``key=value`` texts; the key is dotted, the value is YAML.

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
        values = merge(values, read_mapping(params_file))
        sources.append(str(params_file))
    if settings:
        values = merge(values, _parse_settings(settings, values))
        sources.append("--set")
    return parse(model, values, source=", ".join(sources))


def arguments_of(parameters: EvaluatePipeline) -> dict[str, Any]:
    """Return the parameters as arguments of the KFP pipeline."""
    return parameters.model_dump(mode="json", exclude_none=True)


def preset_parameters(name: str, pipeline: str) -> dict[str, Any]:
    """Return the part of a preset that ``pipeline`` has parameters for."""
    parameters = _read_preset(name)["parameters"]
    return {key: value for key, value in parameters.items() if key in PIPELINES[pipeline].model_fields}


@cache
def _read_preset(name: str) -> dict[str, Any]:
    check_name("preset", name, preset_names())
    content = yaml.safe_load((_PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))
    known = {field for model in PIPELINES.values() for field in model.model_fields}
    assert set(content) == {"description", "parameters"}, name  # noqa: S101
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


def merge(base: Any, over: Any) -> Any:
    """Return ``base`` overridden by ``over``; neither is changed."""
    if not isinstance(over, Mapping):
        return over
    if isinstance(base, list) and over and all(key in range(len(base)) for key in over):
        return [merge(item, over[i]) if i in over else item for i, item in enumerate(base)]
    if not isinstance(base, Mapping) or over.get("type", base.get("type")) != base.get("type"):
        base = {}
    return {**base, **{key: merge(base.get(key), value) for key, value in over.items()}}


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
