"""Durations as people read them."""

from __future__ import annotations

import re

from progrpo.errors import ConfigError

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str, *, name: str) -> float:
    """Return the seconds in ``90``, ``90s``, ``15m``, ``36h`` or ``2d``.

    Args:
        text: what the user wrote.
        name: of the option, for the message.

    Raises:
        ConfigError: it is none of these, or not above zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip())
    if match is None or not float(match[1]):
        raise ConfigError(f"{name} {text!r}: expected a time above zero, such as 90s, 15m, 36h or 2d.")
    return float(match[1]) * _UNITS[match[2]]


def duration(seconds: float) -> str:
    """Return ``42 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
