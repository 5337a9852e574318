"""Algorithms and verifiers from other installed packages, by entry points.

A name that is built in is looked up among the entry points too, so that nobody trains by another algorithm than they
think. Nothing of a package is imported before its name is used.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from progrpo.errors import ConfigError
from progrpo.settings import Config

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")
Model = TypeVar("Model", bound=Config)


@cache
def offered(group: str) -> tuple[EntryPoint, ...]:
    """Return the entry points of a group, in alphabetical order."""
    from importlib import metadata

    return tuple(sorted(metadata.entry_points(group=group), key=lambda point: (point.name, package_of(point))))


def package_of(point: EntryPoint) -> str:
    """Return name and version of the package that an entry point is of."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"


def closed_model(found: Any, name: str, base: type[Model]) -> type[Model]:
    """Return what an entry point names, if it is a model that a configuration can be checked against.

    Raises:
        TypeError: it is no subclass of ``base``, has another name, or takes unknown settings.
    """
    if not (isinstance(found, type) and issubclass(found, base)):
        raise TypeError(f"it is no subclass of {base.__module__}.{base.__name__}")
    if found.model_fields["type"].default != name:
        raise TypeError(f'its type must be declared as: type: Literal["{name}"] = "{name}"')
    if found.model_config.get("extra") != "forbid":
        raise TypeError("its model must be closed: leave model_config as it is")
    return found


def find(group: str, name: str, built_in: Collection[str], check: Callable[[Any, str], T]) -> T | None:
    """Load what an installed package offers under a name.

    Args:
        group: of the entry points, such as ``progrpo.algorithms``.
        name: as a configuration gives it.
        built_in: names that no package may take.
        check: takes what was loaded and the name; returns it, or raises a TypeError that says what is wrong with it.

    Returns:
        None if no package offers the name.

    Raises:
        ConfigError: the name is built in or offered twice, or what it names cannot be loaded or is not what it should
            be. The message names the package.
    """
    points = [point for point in offered(group) if point.name == name]
    if not points:
        return None
    packages = " and ".join(map(package_of, points))
    if name in built_in:
        raise ConfigError(f"{packages} offers {name!r} in {group}, but that is built in. Uninstall the package.")
    if len(points) > 1:
        raise ConfigError(f"{packages} both offer {name!r} in {group}. Uninstall one of them.")
    try:
        return check(points[0].load(), name)
    except Exception as error:  # whatever a module of others raises while it is imported
        raise ConfigError(
            f"{name!r} of the package {packages} cannot be used ({points[0].value}): {type(error).__name__}: {error}. "
            f"Mend or uninstall the package."
        ) from error
