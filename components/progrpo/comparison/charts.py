"""The report's interactive plots, as Plotly figures without colours of a theme.

Text of figures passes through Plotly's pseudo-HTML, so whatever comes from data is escaped here; arm names are safe
by their pattern. Dimensions: P problems.
"""

from __future__ import annotations

import html
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from progrpo.comparison.curves import logged_metrics, training_curves
from progrpo.comparison.palette import Look, looks
from progrpo.comparison.result import Comparison, CurvePoint
from progrpo.comparison.sources import Evaluation, Floats, Training, read_prompts
from progrpo.comparison.tables import band_words, label
from progrpo.config import START
from progrpo.evaluation.resampling import Interval
from progrpo.metrics import TRAIN_METRICS, pass_at

DASHES = ("solid", "dash", "dot", "dashdot")
_MAX_SCATTER_PROBLEMS = 2000
_MAIN_TRAIN_METRICS = {"train/entropy": "Entropy (nats)", "train/reward": "Reward"}


@dataclass(frozen=True)
class Chart:
    """One plot: a Plotly figure and the words for those who do not see it."""

    id: str
    title: str
    caption: str  # shown below the plot
    description: str  # what a screen reader says instead of it
    figure: dict[str, Any] = field(repr=False)
    small: bool = False


def pass_at_k_chart(comparison: Comparison) -> Chart:
    """Pass@k against k, with the interval as a band."""
    curves = {arm.name: arm.curve for arm in comparison.arms}
    hover = "%{y:.1f} % [%{customdata[0]:.1f}, %{customdata[1]:.1f}]"
    figure = _k_figure(comparison, curves, ("low", "high"), "Pass@k (%)", hover)
    ends = "; ".join(
        f"{arm} {100 * curve[0].value:.1f} % to {100 * curve[-1].value:.1f} %" for arm, curve in curves.items()
    )
    caption = (
        f"The chance that at least one of k completions is correct; bands are {100 * comparison.level:g} % intervals "
        "at each k. Bands that overlap can hide a resolved difference, since differences are paired by problem."
    )
    return make_chart("pass-at-k", f"Every k up to {comparison.num_samples}", caption, f"Pass@k: {ends}.", figure)


def difference_chart(comparison: Comparison) -> Chart | None:
    """Pass@k of every trained arm minus the baseline's, with a band that holds at every k at once."""
    differences = [d for d in comparison.differences if d.arm != START or len(comparison.differences) == 1]
    if not differences:
        return None
    curves = {difference.arm: difference.curve for difference in differences}
    hover = "%{y:+.1f} points [%{customdata[0]:+.1f}, %{customdata[1]:+.1f}]"
    title = f"Pass@k minus {comparison.baseline} (points)"
    figure = _k_figure(comparison, curves, ("band_low", "band_high"), title, hover)
    figure.add_hline(y=0, line={"width": 1, "dash": "dot", "color": "#808080"})
    words = " ".join(band_words(difference, comparison.baseline) for difference in differences)
    caption = (
        f"Bands hold at every k at once with {100 * comparison.level:g} %: where one excludes 0, the difference is "
        f"resolved without a correction for many k. {words}"
    )
    return make_chart("difference", f"Difference to {comparison.baseline} at every k", caption, words, figure)


def _k_figure(
    comparison: Comparison, curves: Mapping[str, Sequence[CurvePoint]], ends: tuple[str, str], title: str, hover: str
) -> Any:
    """Draw percentages against k: a line an arm, marked at the k that are reported, in a band between ``ends``."""
    import plotly.graph_objects as go

    figure, styles = go.Figure(), looks(comparison.arm_names)
    for arm, curve in curves.items():
        look, ks = styles[arm], [point.k for point in curve]
        value, low, high = ([100 * getattr(point, name) for point in curve] for name in ("value", *ends))
        add_band(figure, arm, ks, low, high, look.translucent(0.18))
        figure.add_scatter(
            x=ks,
            y=value,
            customdata=list(zip(low, high, strict=True)),
            mode="lines+markers",
            name=arm,
            legendgroup=arm,
            line={"color": look.colour, "width": 2.5, "dash": look.dash},
            marker={
                "symbol": look.marker,
                "color": look.colour,
                "size": [8 if k in comparison.ks else 0 for k in ks],
                "line": {"width": 1, "color": look.colour},
            },
            hovertemplate=hover,
        )
    ks = list(comparison.ks)
    figure.update_xaxes(title="k, completions drawn (log scale)", type="log", tickvals=ks, ticktext=list(map(str, ks)))
    figure.update_yaxes(title=title)
    figure.update_layout(hovermode="x unified")
    return figure


def bar_charts(comparison: Comparison) -> list[Chart]:
    """Distinct correct answers and entropy, one bar an arm, with intervals."""
    return [
        _bars(comparison, "eval/distinct_correct", "distinct-correct", "Distinct correct answers a problem"),
        _bars(comparison, "eval/entropy", "entropy", "Entropy of the evaluated policy"),
    ]


def _bars(comparison: Comparison, metric: str, chart_id: str, title: str) -> Chart:
    import plotly.graph_objects as go

    styles = looks(comparison.arm_names)
    estimates: dict[str, Interval] = {arm.name: arm.metrics[metric] for arm in comparison.arms}
    figure = go.Figure()
    for arm, estimate in estimates.items():
        figure.add_bar(
            x=[arm],
            y=[estimate.value],
            name=arm,
            showlegend=False,
            width=0.55,
            marker={"color": styles[arm].colour},
            customdata=[[estimate.low, estimate.high]],
            error_y=error_bars([estimate], thickness=1.5, width=6),
            hovertemplate="%{x}: %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]<extra></extra>",
        )
    figure.update_xaxes(type="category")
    figure.update_yaxes(title=label(metric), rangemode="tozero")
    words = "; ".join(f"{arm} {e.value:.3f} [{e.low:.3f}, {e.high:.3f}]" for arm, e in estimates.items())
    caption = f"Bars: the mean over seeds. Lines: {100 * comparison.level:g} % intervals."
    return make_chart(chart_id, title, caption, f"{title}: {words}.", figure, small=True)


def training_charts(comparison: Comparison, trainings: Sequence[Training]) -> tuple[list[Chart], list[Chart]]:
    """Return the curves of entropy and reward, and those of every other metric that was logged."""
    styles = looks(comparison.arm_names)
    known = [training for training in trainings if training.arm in styles]
    others = [metric for metric in logged_metrics(known) if metric not in _MAIN_TRAIN_METRICS]
    main, other = (
        [chart for name in names if (chart := _training_chart(name, known, styles)) is not None]
        for names in (_MAIN_TRAIN_METRICS, others)
    )
    return main, other


def _training_chart(metric: str, trainings: Sequence[Training], styles: Mapping[str, Look]) -> Chart | None:
    import plotly.graph_objects as go

    chart_id, curves = metric.replace("/", "-").replace("_", "-"), training_curves(trainings, metric)
    if not curves:
        return None
    figure = go.Figure()
    seeds = sorted({curve.seed for curve in curves})
    shown: set[str] = set()
    for curve in curves:
        look, dash = styles[curve.arm], DASHES[seeds.index(curve.seed) % len(DASHES)]
        common = {"x": curve.steps, "mode": "lines", "legendgroup": curve.arm}
        figure.add_scatter(
            **common,
            y=curve.raw,
            line={"color": look.translucent(0.28), "width": 1},
            showlegend=False,
            hoverinfo="skip",
        )
        figure.add_scatter(
            **common,
            y=curve.smoothed,
            line={"color": look.colour, "width": 2, "dash": dash},
            name=curve.arm,
            showlegend=curve.arm not in shown,
            meta=f"{curve.arm} seed {curve.seed}",
            hovertemplate="%{meta}, step %{x}: %{y:.4g}<extra></extra>",
        )
        shown.add(curve.arm)
    figure.update_xaxes(title="step")
    figure.update_yaxes(title=_MAIN_TRAIN_METRICS.get(metric))
    small = metric not in _MAIN_TRAIN_METRICS
    ends = "; ".join(f"{c.arm} seed {c.seed} from {c.smoothed[0]:.3g} to {c.smoothed[-1]:.3g}" for c in curves)
    meaning = TRAIN_METRICS.get(metric, "logged by the algorithm")
    caption = f"{meaning[0].upper()}{meaning[1:]}."
    return make_chart(chart_id, metric, caption, f"Over training: {ends}.", figure, small=small)


def cost_chart(comparison: Comparison) -> Chart | None:
    """What training cost against what it gained over the start checkpoint, at the smallest and the largest k."""
    import plotly.graph_objects as go

    costs, title = training_costs(comparison)
    gains = {gain.arm: gain.metrics for gain in comparison.gains if gain.arm in costs}
    if not gains:
        return None
    styles = looks(comparison.arm_names)
    figure = go.Figure()
    words = []
    for arm, metrics in gains.items():
        names = [pass_at(k) for k in dict.fromkeys((comparison.ks[0], comparison.ks[-1]))]
        figure.add_scatter(
            x=[costs[arm]] * len(names),
            y=[100 * metrics[name].value for name in names],
            mode="lines+markers+text",
            name=arm,
            text=[label(name).partition(" (")[0] for name in names],
            textposition="middle right",
            line={"color": styles[arm].colour, "width": 1, "dash": "dot"},
            marker={"color": styles[arm].colour, "symbol": styles[arm].marker, "size": 9},
            error_y=error_bars([metrics[n] for n in names], 100, color=styles[arm].colour, thickness=1.5, width=6),
            hovertemplate=f"{arm}: %{{x:.3g}} h, %{{text}} %{{y:+.1f}} points<extra></extra>",
        )
        gained = ", ".join(f"{label(n).partition(' (')[0]} {100 * metrics[n].value:+.1f} points" for n in names)
        words.append(f"{arm} {costs[arm]:.3g} h: {gained}")
    figure.update_xaxes(title=title, rangemode="tozero")
    figure.update_yaxes(title=f"gain over {START} (points)", zeroline=True)
    caption = f"Means over seeds; lines are {100 * comparison.level:g} % intervals of the gain, paired by problem."
    return make_chart("cost", "Cost against gain", caption, f"{'; '.join(words)}.", figure)


def training_costs(comparison: Comparison) -> tuple[dict[str, float], str]:
    """Return the mean cost of training one seed of each arm, in hours, and what these hours are."""
    trained = [arm for arm in comparison.arms if arm.wall_time.train_s is not None]
    gpu_hours = {
        arm.name: [seed.train_gpu_hours for seed in arm.per_seed if seed.train_gpu_hours is not None] for arm in trained
    }
    if trained and all(len(gpu_hours[arm.name]) == len(arm.per_seed) for arm in trained):
        return {arm: float(np.mean(hours)) for arm, hours in gpu_hours.items()}, "GPU-hours of training a seed"
    hours = {arm.name: arm.wall_time.train_s / 3600 for arm in trained if arm.wall_time.train_s is not None}
    return hours, "hours of training a seed (wall time)"


def shown_problems(problem_ids: Sequence[str]) -> list[int]:
    """Choose the problems that the scatter plot shows: all, or so many at random that a browser keeps up."""
    chosen = np.random.default_rng(0).permutation(len(problem_ids))[:_MAX_SCATTER_PROBLEMS]
    return [int(p) for p in np.sort(chosen)]


def scatter_chart(comparison: Comparison, evaluations: Mapping[str, Sequence[Evaluation]]) -> Chart | None:
    """Success rate of every problem: the baseline's against each other arm's.

    The points carry the place of their problem in :func:`shown_problems`; the last trace marks the chosen one.
    """
    import plotly.graph_objects as go

    others = [name for name in comparison.arm_names if name != comparison.baseline]
    if not others:
        return None
    styles = looks(comparison.arm_names)
    ids = evaluations[comparison.baseline][0].problem_ids
    prompts = read_prompts(evaluations[comparison.baseline][0].directory)
    chosen = shown_problems(ids)
    rates = {arm: success_rates(of_arm)[chosen] for arm, of_arm in evaluations.items()}
    baseline_P = rates[comparison.baseline]
    # Rates are multiples of 1 / n; half a step of jitter shows how many problems share a point.
    jitter = 0.35 / comparison.num_samples
    rng = np.random.default_rng(0)
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 100], y=[0, 100], mode="lines", line={"width": 1, "dash": "dot", "color": "#808080"},
        showlegend=False, hoverinfo="skip",
    )  # fmt: skip
    for arm in others:
        arm_P = rates[arm]
        shift_2P = rng.uniform(-jitter, jitter, size=(2, len(chosen)))
        figure.add_scatter(
            x=(100 * (baseline_P + shift_2P[0])).round(2).tolist(),
            y=(100 * (arm_P + shift_2P[1])).round(2).tolist(),
            customdata=list(range(len(chosen))),
            mode="markers",
            name=arm,
            marker={"color": styles[arm].colour, "symbol": styles[arm].marker, "size": 7, "opacity": 0.55},
            text=[
                _hover_text(ids[p], prompts.get(ids[p]))
                + f"<br>{comparison.baseline} {100 * x:.0f} %, {arm} {100 * y:.0f} %"
                for p, x, y in zip(chosen, baseline_P, arm_P, strict=True)
            ],
            hovertemplate="%{text}<extra></extra>",
            visible=True if arm != START or len(others) == 1 else "legendonly",
        )
    figure.add_scatter(
        x=[None], y=[None], mode="markers", showlegend=False, hoverinfo="skip",
        marker={"symbol": "circle-open", "size": 16, "line": {"width": 3}},
    )  # fmt: skip
    figure.update_xaxes(title=f"{comparison.baseline}: correct completions (%)", range=[-3, 103])
    figure.update_yaxes(title="other arm: correct completions (%)", range=[-3, 103])
    figure.update_layout(hovermode="closest")
    words = "; ".join(
        f"{arm} is above on {int((rates[arm] > baseline_P).sum())} and below on "
        f"{int((rates[arm] < baseline_P).sum())} of {len(chosen)} problems"
        for arm in others
    )
    caption = (
        f"One point a problem{'' if len(chosen) == len(ids) else f' ({len(chosen)} of {len(ids)}, drawn at random)'}, "
        f"moved a little so that equal points show. Above the dotted line the arm solves the problem more often than "
        f"{comparison.baseline}. Click a point to read the completions."
    )
    return make_chart("per-problem", "Success rate of each problem", caption, f"{words}.", figure)


def _hover_text(problem_id: str, prompt: str | None) -> str:
    """Escape for Plotly, which would take tags for formatting and links, and break long lines."""
    lines = textwrap.wrap(prompt or "", 70, max_lines=2, placeholder=" …")
    return "<br>".join(html.escape(line) for line in [problem_id, *lines])


def success_rates(evaluations: Sequence[Evaluation]) -> Floats:
    """Return the fraction of correct completions of each problem [P], over all seeds of an arm."""
    rates: Floats = np.mean([e.table.num_correct_P / e.table.num_samples for e in evaluations], axis=0)
    return rates


def add_band(figure: Any, arm: str, x: Sequence[float], low: Sequence[float], high: Sequence[float], fill: str) -> None:
    """Fill the place between two lines of an arm, with the CSS colour ``fill``."""
    figure.add_scatter(
        x=[*x, *reversed(x)],
        y=[*high, *reversed(low)],
        fill="toself",
        fillcolor=fill,
        line={"width": 0},
        mode="lines",
        legendgroup=arm,
        showlegend=False,
        hoverinfo="skip",
    )


def error_bars(estimates: Sequence[Interval], scale: float = 1, **style: Any) -> dict[str, Any]:
    """Return the intervals as Plotly's ``error_y``, in ``1 / scale`` of their unit."""
    high = [scale * (estimate.high - estimate.value) for estimate in estimates]
    low = [scale * (estimate.value - estimate.low) for estimate in estimates]
    return {"type": "data", "symmetric": False, "array": high, "arrayminus": low, **style}


def make_chart(chart_id: str, title: str, caption: str, description: str, figure: Any, *, small: bool = False) -> Chart:
    """Lay a Plotly figure out as every plot of the report is."""
    figure.update_layout(
        template="none",
        margin={"l": 56, "r": 12, "t": 12, "b": 48},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        dragmode=False,  # a finger on a phone scrolls the page
        hoverlabel={"align": "left"},
    )
    figure.update_xaxes(zeroline=False, automargin=True)
    figure.update_yaxes(zeroline=False, automargin=True)
    values = json.loads(figure.to_json())
    values["layout"].pop("template", None)
    return Chart(chart_id, title, caption, description, values, small)
