"""The same curves as PNG files for papers and issue trackers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from progrpo.comparison.curves import training_curves
from progrpo.comparison.palette import looks
from progrpo.comparison.result import Comparison
from progrpo.comparison.sources import Training

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DASHES = ("-", "--", ":", "-.")


def write_pngs(comparison: Comparison, trainings: Sequence[Training], directory: Path) -> list[Path]:
    """Write pass_at_k.png and, where training runs logged them, training_entropy.png and training_reward.png."""
    directory.mkdir(parents=True, exist_ok=True)
    written = [_pass_at_k(comparison, directory / "pass_at_k.png")]
    for metric, title in (("train/entropy", "Entropy (nats)"), ("train/reward", "Reward")):
        path = directory / f"{metric.replace('train/', 'training_')}.png"
        if _training(comparison, trainings, metric, title, path):
            written.append(path)
    return written


def _new_figure() -> tuple[Figure, Axes]:
    # Not pyplot: it keeps figures in global state and may pick a backend that needs a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _pass_at_k(comparison: Comparison, path: Path) -> Path:
    figure, axes = _new_figure()
    styles = looks([arm.name for arm in comparison.arms])
    for arm in comparison.arms:
        look = styles[arm.name]
        ks = [point.k for point in arm.curve]
        axes.fill_between(
            ks, [100 * p.low for p in arm.curve], [100 * p.high for p in arm.curve], color=look.colour, alpha=0.18, lw=0
        )
        axes.plot(
            ks,
            [100 * p.value for p in arm.curve],
            color=look.colour,
            linestyle="--" if look.dash == "dash" else "-",
            marker=look.matplotlib_marker,
            markevery=[i for i, k in enumerate(ks) if k in comparison.ks],
            markersize=5,
            label=arm.name,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(comparison.ks), labels=[str(k) for k in comparison.ks])
    axes.set_xlabel("k")
    axes.set_ylabel("Pass@k (%)")
    axes.legend(frameon=False)
    figure.savefig(path)
    return path


def _training(comparison: Comparison, trainings: Sequence[Training], metric: str, title: str, path: Path) -> bool:
    styles = looks([arm.name for arm in comparison.arms])
    curves = training_curves([t for t in trainings if t.arm in styles], metric)
    if not curves:
        return False
    figure, axes = _new_figure()
    seeds = sorted({curve.seed for curve in curves})
    for curve in curves:
        colour = styles[curve.arm].colour
        axes.plot(curve.steps, curve.raw, color=colour, alpha=0.25, linewidth=0.7)
        axes.plot(
            curve.steps,
            curve.smoothed,
            color=colour,
            linestyle=_DASHES[seeds.index(curve.seed) % len(_DASHES)],
            label=f"{curve.arm}, seed {curve.seed}",
        )
    axes.set_xlabel("Step")
    axes.set_ylabel(title)
    axes.legend(frameon=False)
    figure.savefig(path)
    return True
