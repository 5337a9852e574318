"""Check settings that were read from somewhere, with errors that say what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from progrpo.errors import ConfigError
from progrpo.settings import Config

Model = TypeVar("Model", bound=Config)


def parse(model: type[Model], values: Mapping[str, Any], *, source: str) -> Model:
    """Check ``values`` against ``model``.

    KFP turns integers inside lists and structs into floats; an integral float is taken for the integer it was.

    Args:
        model: the settings expected.
        values: what was read from a file, a command line or a pipeline parameter.
        source: where it came from, named in the error.

    Raises:
        ConfigError: every offending key with what was given and what is allowed.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        # A tuple whose item failed also counts as too short: say only what the user got wrong.
        errors = [item for item in error.errors() if item["type"] != "too_short" or not item["input"]]
        lines = [_explain(model, item) for item in errors]
        raise ConfigError(f"{source}: " + ("\n  ".join(["", *lines]) if len(lines) > 1 else lines[0])) from None


def _explain(model: type[BaseModel], item: Mapping[str, Any]) -> str:
    path, here = _follow(model, item["loc"])
    key = ".".join(map(str, path)) or "(the whole)"
    if item["type"] == "extra_forbidden":
        allowed = sorted({name for option in here for name in option.model_fields})
        close = difflib.get_close_matches(str(item["loc"][-1]), allowed, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return f"{key}: unknown key. Allowed here: {', '.join(allowed) or 'none'}.{hint}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"{key}: required, but not given."
    given = "" if item["type"] == "value_error" and isinstance(item["input"], dict) else f" Given: {item['input']!r}."
    return f"{key}: {message}.{given}"


def _follow(model: type[BaseModel], loc: Sequence[str | int]) -> tuple[list[str | int], list[type[BaseModel]]]:
    """Return the keys of a path as the user wrote them, and the models that its last key was looked up in.

    pydantic puts the tag of a union into the path, which nobody wrote there.
    """
    path: list[str | int] = []
    inside: list[type[BaseModel]] = [model]
    here: list[type[BaseModel]] = inside
    for part in loc:
        tagged = [m for m in inside if "type" in m.model_fields and m.model_fields["type"].default == part]
        if tagged and not any(part in m.model_fields for m in inside):
            inside = tagged
            continue
        path.append(part)
        if isinstance(part, str):
            here = inside
            inside = [
                found for m in inside if part in m.model_fields for found in _models(m.model_fields[part].annotation)
            ]
    return path, here


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models an annotation may hold, through unions, tuples and ``Annotated``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _models(argument)]
