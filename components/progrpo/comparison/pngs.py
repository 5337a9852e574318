"""The report's main plots as PNG files, for papers and issue trackers: the same Plotly figures, drawn by matplotlib.

Plotly itself needs a browser to make pictures. Of its figures only what these plots consist of is understood: lines,
markers, filled bands, error bars and horizontal lines.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from progrpo.comparison.charts import Chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMES = {
    "pass-at-k": "pass_at_k",
    "difference": "difference",
    "entropy-all": "entropy_by_position",
    "calibration": "calibration",
    "train-entropy": "training_entropy",
    "train-reward": "training_reward",
}
_DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
_MARKERS = {
    "circle": "o", "circle-open": "o", "diamond": "D", "square": "s", "triangle-up": "^", "x": "X", "star": "*",
}  # fmt: skip


def write_pngs(charts: Iterable[Chart], directory: Path) -> None:
    """Write those of the charts that have a PNG file, each under its name."""
    # Not pyplot: it keeps figures in global state and may pick a backend that needs a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    directory.mkdir(parents=True, exist_ok=True)
    for chart in charts:
        if chart.id not in _NAMES:
            continue
        figure = Figure(figsize=(6, 4), dpi=200, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.grid(visible=True, color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        for trace in chart.figure["data"]:
            _draw(trace, axes)
        _lay_out(chart.figure["layout"], axes)
        figure.savefig(directory / f"{_NAMES[chart.id]}.png")


def _draw(trace: dict[str, Any], axes: Axes) -> None:
    x, y = _numbers(trace["x"]), _numbers(trace["y"])
    if trace.get("fill"):
        axes.fill(x, y, color=_colour(trace["fillcolor"]), lw=0)
        return
    line, marker = trace["line"], trace.get("marker", {})
    sizes = marker.get("size", 0)
    axes.plot(
        x,
        y,
        color=_colour(line["color"]),
        linewidth=0.75 * line["width"],  # points for pixels
        linestyle=_DASHES[line.get("dash", "solid")],
        marker=_MARKERS.get(marker.get("symbol", "")),
        markersize=5,
        markevery=[i for i, size in enumerate(sizes) if size] if isinstance(sizes, list) else None,
        label=trace.get("meta", trace.get("name")),
    )
    if bars := trace.get("error_y"):
        ends, colour = [bars["arrayminus"], bars["array"]], line["color"]
        axes.errorbar(x, y, ends, fmt="none", ecolor=colour, elinewidth=0.75, capsize=2)


def _lay_out(layout: dict[str, Any], axes: Axes) -> None:
    x, y = layout["xaxis"], layout["yaxis"]
    if x.get("type") == "log":
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    if "tickvals" in x:
        axes.set_xticks(x["tickvals"], labels=x["ticktext"])
    if y.get("rangemode") == "tozero":
        axes.set_ylim(bottom=0)
    for shape in layout.get("shapes", ()):
        axes.axhline(shape["y0"], color=shape["line"]["color"], linewidth=0.8, linestyle=_DASHES[shape["line"]["dash"]])
    axes.set_xlabel(x["title"]["text"])
    axes.set_ylabel(y["title"]["text"])
    axes.legend(frameon=False)


def _numbers(values: Any) -> Any:
    """Return numbers as they are, or out of the base64 that Plotly makes of an array."""
    return values if isinstance(values, list) else np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"])


def _colour(css: str) -> str | tuple[float, ...]:
    """Return a colour of CSS, ``#rrggbb`` or ``rgba(...)``, as matplotlib takes it."""
    parts = re.fullmatch(r"rgba\((\d+),(\d+),(\d+),([\d.]+)\)", css)
    return css if parts is None else (*(int(part) / 255 for part in parts.groups()[:3]), float(parts[4]))
