"""Settings over settings: the rule by which defaults, presets, files, forms and ``--set`` are put together.

Mappings are merged key by key and lists replaced, except that a mapping of another ``type`` replaces the whole: an
algorithm's or a source's keys mean nothing to another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from progrpo.errors import ConfigError


def merge(base: Any, over: Any, path: str = "") -> Any:
    """Return ``base`` overridden by ``over``; neither is changed.

    A number as a key of ``over``, also as a text, as JSON has it, reaches into a list.

    Args:
        base: settings, or None.
        over: settings, which may be only some.
        path: where they stand, named in errors.

    Raises:
        ConfigError: a place that a list does not have.
    """
    if not isinstance(over, Mapping):
        return over
    if isinstance(base, list) and over:
        return _merge_list(base, over, path)
    if not _same_type(base, over):
        base = {}
    return {**base, **{key: merge(base.get(key), value, f"{path}.{key}".lstrip(".")) for key, value in over.items()}}


def _merge_list(base: list[Any], over: Mapping[Any, Any], path: str) -> list[Any]:
    if unknown := [key for key in over if not str(key).isdecimal() or int(key) >= len(base)]:
        raise ConfigError(
            f"{path}.{unknown[0]}: {path} is a list of {len(base)}; give a place from 0 to {len(base) - 1}, or the "
            f"whole list, such as {path}=[...]."
        )
    changed = list(base)
    for key, value in over.items():
        changed[int(key)] = merge(base[int(key)], value, f"{path}.{key}")
    return changed


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested mappings into one with dotted keys; an empty one is a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def _same_type(base: Any, over: Mapping[Any, Any]) -> bool:
    return isinstance(base, Mapping) and ("type" not in base or over.get("type", base["type"]) == base["type"])
