"""The same curves as PNG files for papers and issue trackers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progrpo.comparison.curves import training_curves
from progrpo.comparison.palette import looks
from progrpo.comparison.result import Comparison
from progrpo.comparison.sources import Evaluation, Training
from progrpo.config import START

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DASHES = ("-", "--", ":", "-.")


def write_pngs(
    comparison: Comparison,
    evaluations: Mapping[str, Sequence[Evaluation]],
    trainings: Sequence[Training],
    directory: Path,
) -> list[Path]:
    """Write pass_at_k.png and, where there is something to show, the other plots.

    difference.png; entropy_by_position.png and calibration.png where evaluations have them; training_entropy.png and
    training_reward.png where training runs logged them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written = [_pass_at_k(comparison, directory / "pass_at_k.png")]
    for draw, name in ((_position, "entropy_by_position"), (_calibration, "calibration")):
        if draw(comparison, evaluations, directory / f"{name}.png"):
            written.append(directory / f"{name}.png")
    if _difference(comparison, directory / "difference.png"):
        written.append(directory / "difference.png")
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
    _k_axis(axes, comparison)
    axes.set_ylabel("Pass@k (%)")
    axes.legend(frameon=False)
    figure.savefig(path)
    return path


def _k_axis(axes: Axes, comparison: Comparison) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(comparison.ks), labels=[str(k) for k in comparison.ks])
    axes.set_xlabel("k")


def _difference(comparison: Comparison, path: Path) -> bool:
    """Draw the differences at every k with their simultaneous bands."""
    differences = [d for d in comparison.differences if d.arm != START]
    if not differences:
        return False
    figure, axes = _new_figure()
    styles = looks([arm.name for arm in comparison.arms])
    axes.axhline(0, color="#808080", linewidth=0.8, linestyle=":")
    for difference in differences:
        colour, curve = styles[difference.arm].colour, difference.curve
        ks = [point.k for point in curve]
        low, high = [100 * p.band_low for p in curve], [100 * p.band_high for p in curve]
        axes.fill_between(ks, low, high, color=colour, alpha=0.18, lw=0)
        axes.plot(ks, [100 * p.value for p in curve], color=colour, label=difference.arm)
    _k_axis(axes, comparison)
    axes.set_ylabel(f"Pass@k minus {comparison.baseline} (points)")
    axes.legend(frameon=False)
    figure.savefig(path)
    return True


def _position(comparison: Comparison, evaluations: Mapping[str, Sequence[Evaluation]], path: Path) -> bool:
    figure, axes = _new_figure()
    for evaluation, style in _styled(comparison, evaluations):
        bins = evaluation.summary.curves.entropy_by_position.get("all", ())
        if bins:
            axes.plot([(b.start + b.end + 1) / 2 for b in bins], [b.value for b in bins], **style)
    axes.set_xlabel("Token")
    axes.set_ylabel("Entropy (nats)")
    axes.set_ylim(bottom=0)
    return _save(figure, axes, path)


def _calibration(comparison: Comparison, evaluations: Mapping[str, Sequence[Evaluation]], path: Path) -> bool:
    figure, axes = _new_figure()
    for evaluation, style in _styled(comparison, evaluations):
        if (calibration := evaluation.summary.calibration) is not None:
            bins = calibration.bins
            accuracy = [100 * b.accuracy.value for b in bins]
            axes.plot([b.confidence for b in bins], accuracy, marker=".", **style)
    axes.set_xlabel("Answer confidence c(o|q)")
    axes.set_ylabel("Correct (%)")
    return _save(figure, axes, path)


def _styled(
    comparison: Comparison, evaluations: Mapping[str, Sequence[Evaluation]]
) -> Iterator[tuple[Evaluation, dict[str, Any]]]:
    styles = looks([arm.name for arm in comparison.arms])
    for arm, of_arm in evaluations.items():
        for place, evaluation in enumerate(of_arm):
            dash = _DASHES[place % len(_DASHES)]
            yield evaluation, {"color": styles[arm].colour, "linestyle": dash, "label": evaluation.label}


def _save(figure: Figure, axes: Axes, path: Path) -> bool:
    if not axes.lines:
        return False
    axes.legend(frameon=False)
    figure.savefig(path)
    return True


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
