"""Settings over settings: the rule by which defaults, presets, files, forms and ``--set`` are put together.

Mappings are merged key by key and lists replaced, except that a mapping with another ``type`` replaces the whole: an
algorithm's or a source's keys mean nothing to another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merge(base: Any, over: Any) -> Any:
    """Return ``base`` overridden by ``over``; neither is changed. An integer key of ``over`` reaches into a list."""
    if not isinstance(over, Mapping):
        return over
    if isinstance(base, list) and over and all(key in range(len(base)) for key in over):
        return [merge(item, over[i]) if i in over else item for i, item in enumerate(base)]
    if not _same_type(base, over):
        base = {}
    return {**base, **{key: merge(base.get(key), value) for key, value in over.items()}}


def difference(base: Any, target: Mapping[str, Any]) -> dict[str, Any]:
    """Return the smallest mapping that :func:`merge` turns ``base`` into ``target`` with.

    A key that ``target`` lacks is None there, which the settings take for absent.
    """
    if not _same_type(base, target) or ("type" in target and "type" not in base):
        return dict(target)
    changed: dict[str, Any] = {key: None for key in base if key not in target and base[key] is not None}
    for key, value in target.items():
        if key in base and base[key] == value:
            continue
        nested = isinstance(value, Mapping) and isinstance(base.get(key), Mapping) and _same_type(base[key], value)
        changed[key] = difference(base[key], value) if nested else value
    return changed


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested mappings into one with dotted keys; an empty one is a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def _same_type(base: Any, over: Mapping[Any, Any]) -> bool:
    return isinstance(base, Mapping) and over.get("type", base.get("type")) == base.get("type")
