"""The outcome of one look at something, in words that say how to mend it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from progrpo.redaction import redact

State = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: of the thing.
        state: ``failed`` keeps runs from working, ``warning`` may, ``skipped`` was not looked at.
        detail: what was found.
        mend: what to do about it.
    """

    name: str
    state: State
    detail: str
    mend: str = ""


def shown(text: object) -> str:
    """Return text of an error on one line, without user and password of a URI in it, and not too long."""
    line = redact(" ".join(str(text).split()))
    return line if len(line) <= 300 else f"{line[:300]}..."


def failed(name: str, error: Exception) -> Check:
    """Return the check of an error: its first sentence is what was found, the others what to do."""
    found, _, mend = str(error).partition(". ")
    return Check(name, "failed", shown(found), shown(mend))
