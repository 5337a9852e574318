"""Which algorithms a configuration may name: those built in, and those of installed packages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field, SerializeAsAny, ValidatorFunctionWrapHandler, WrapValidator, field_validator

from progrpo.algorithms.base import Algorithm
from progrpo.algorithms.registry import BUILT_IN, plugin_algorithm
from progrpo.config.reading import parse
from progrpo.settings import ARM_NAME, START, Config


def _built_in_or_offered(value: Any, built_in: ValidatorFunctionWrapHandler) -> Algorithm:
    """Check the settings of an algorithm against its own model."""
    if isinstance(value, Algorithm):
        return value
    name = value.get("type") if isinstance(value, Mapping) else None
    found = plugin_algorithm(name) if isinstance(name, str) else None
    checked: Algorithm = built_in(value) if found is None else parse(found, value, source=str(name))
    return checked


if TYPE_CHECKING:
    AnyAlgorithm = Algorithm
else:
    AnyAlgorithm = Annotated[
        SerializeAsAny[Annotated[Union[tuple(BUILT_IN.values())], Field(discriminator="type")]],  # noqa: UP007
        WrapValidator(_built_in_or_offered),
    ]


class Arm(Config):
    """One side of a comparison: an algorithm under a name."""

    name: str = Field(pattern=ARM_NAME, description="shown in tables and MLflow")
    algorithm: AnyAlgorithm

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, name: str) -> str:
        if name == START:
            raise ValueError(f"{START!r} names the checkpoint before training; call the arm something else")
        return name
