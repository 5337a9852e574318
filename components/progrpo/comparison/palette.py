"""One colour, dash and marker per arm, the same in every plot.

Okabe & Ito's colours, which stay apart under the common colour-vision deficiencies (Wong 2011, Nature Methods 8:441),
without yellow and those too pale to be seen on white; marker and dash tell arms apart without any colour.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from progrpo.config import START

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#7a68c4")
_MARKERS = ("circle", "diamond", "square", "triangle-up", "x", "star")
_START_COLOUR = "#808080"


@dataclass(frozen=True)
class Look:
    """How one arm is drawn."""

    colour: str
    marker: str
    dash: str

    def translucent(self, alpha: float) -> str:
        """Return the colour as CSS rgba()."""
        red, green, blue = (int(self.colour[i : i + 2], 16) for i in (1, 3, 5))
        return f"rgba({red},{green},{blue},{alpha})"


def looks(arms: Sequence[str]) -> dict[str, Look]:
    """Return the look of each arm, in the order of the comparison; the start checkpoint is grey and dashed."""
    trained = [arm for arm in arms if arm != START]
    result = {START: Look(_START_COLOUR, "circle-open", "dash")}
    for i, arm in enumerate(trained):
        turn = i % len(_COLOURS)
        result[arm] = Look(_COLOURS[turn], _MARKERS[turn], "solid")
    return result


def colour_by_name(arm: str) -> str:
    """Return an arm's colour where the other arms are not known: two may share one, but no arm has two.

    ``grpo`` and ``progrpo`` have those of a report in which they come first and second.
    """
    first = {START: _START_COLOUR, "grpo": _COLOURS[0], "progrpo": _COLOURS[1]}
    return first.get(arm) or _COLOURS[2 + zlib.crc32(arm.encode()) % (len(_COLOURS) - 2)]
