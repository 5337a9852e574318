"""Plots of what each evaluation measured itself: entropy by position, and what confidence says about correctness.

Both come from ``evaluation.json``, one line an arm and seed; they are left out where no evaluation has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from progrpo.comparison.charts import DASHES, Chart, add_band, error_bars, make_chart
from progrpo.comparison.palette import looks
from progrpo.comparison.result import Comparison
from progrpo.comparison.sources import Evaluation

_MAX_BANDS = 8  # more would hide each other
_LINEAR_UP_TO = 64  # tokens
_POSITION_TITLES = {
    "all": "Entropy by position",
    "correct": "Entropy by position, correct completions",
    "incorrect": "Entropy by position, wrong completions",
}


def position_charts(comparison: Comparison, evaluations: Mapping[str, Sequence[Evaluation]]) -> list[Chart]:
    """Entropy against the position in the completion: of all, of correct and of wrong completions."""
    charts = [_position_chart(comparison, evaluations, part) for part in _POSITION_TITLES]
    return [chart for chart in charts if chart is not None]


def _position_chart(comparison: Comparison, evaluations: Mapping[str, Sequence[Evaluation]], part: str) -> Chart | None:
    import plotly.graph_objects as go

    lines = [(e, e.summary.curves.entropy_by_position.get(part, ())) for of_arm in evaluations.values() for e in of_arm]
    lines = [(evaluation, bins) for evaluation, bins in lines if bins]
    if not lines:
        return None
    figure, words, longest = go.Figure(), [], max(bins[-1].end for _, bins in lines)
    for evaluation, bins in lines:
        look = looks(comparison.arm_names)[evaluation.arm]
        positions = [(each.start + each.end + 1) / 2 for each in bins]  # the first token is at 1
        if len(lines) <= _MAX_BANDS:
            low, high = [each.low for each in bins], [each.high for each in bins]
            add_band(figure, evaluation.arm, positions, low, high, look.translucent(0.12))
        figure.add_scatter(
            x=positions,
            y=[each.value for each in bins],
            mode="lines",
            **_line(comparison, evaluations, evaluation),
            hovertemplate="%{meta}, token %{x:.0f}: %{y:.3g} nats<extra></extra>",
        )
        words.append(f"{evaluation.label} from {bins[0].value:.3g} to {bins[-1].value:.3g}")
    figure.update_xaxes(title="token", type="linear" if longest <= _LINEAR_UP_TO else "log")
    figure.update_yaxes(title="Entropy (nats)", rangemode="tozero")
    caption = "Mean over the completions that reach a position; few reach the last ones."
    if len(lines) <= _MAX_BANDS:
        caption += f" Bands: {100 * comparison.level:g} % intervals over problems."
    small = part != "all"
    return make_chart(f"entropy-{part}", _POSITION_TITLES[part], caption, f"{'; '.join(words)}.", figure, small=small)


def calibration_chart(comparison: Comparison, evaluations: Mapping[str, Sequence[Evaluation]]) -> Chart | None:
    """How often completions of a confidence are correct: the reliability curve of c(o|q)."""
    import plotly.graph_objects as go

    measured = [e for of_arm in evaluations.values() for e in of_arm if e.summary.calibration is not None]
    if not measured:
        return None
    figure, words = go.Figure(), []
    for evaluation in measured:
        calibration = evaluation.summary.calibration
        assert calibration is not None
        look = looks(comparison.arm_names)[evaluation.arm]
        accuracy = [each.accuracy for each in calibration.bins]
        figure.add_scatter(
            x=[each.confidence for each in calibration.bins],
            y=[100 * each.value for each in accuracy],
            customdata=[each.num_completions for each in calibration.bins],
            mode="lines+markers",
            **_line(comparison, evaluations, evaluation),
            marker={"color": look.colour, "symbol": look.marker, "size": 7},
            error_y=error_bars(accuracy, 100, thickness=1, width=4, color=look.colour),
            hovertemplate="%{meta}: %{x:.3f}, %{y:.1f} % of %{customdata} correct<extra></extra>",
        )
        if calibration.auroc is not None:
            words.append(f"{evaluation.label} AUROC {calibration.auroc.value:.3f}")
    figure.update_xaxes(title="answer confidence c(o|q)", rangemode="tozero")
    figure.update_yaxes(title="correct (%)", range=[-3, 103])
    caption = (
        "Completions in groups of equal size by c(o|q), the signal that ProGRPO lowers advantages by. Where the line "
        "rises, confident completions are right more often. c(o|q) is no probability of being right: no diagonal."
    )
    return make_chart("calibration", "Reliability of c(o|q)", caption, f"{'; '.join(words) or 'no AUROC'}.", figure)


def _line(
    comparison: Comparison, evaluations: Mapping[str, Sequence[Evaluation]], evaluation: Evaluation
) -> dict[str, Any]:
    """Return the look of a line: its arm's colour, a dash a seed, and one entry an arm in the legend."""
    place = [each.seed for each in evaluations[evaluation.arm]].index(evaluation.seed)
    colour = looks(comparison.arm_names)[evaluation.arm].colour
    return {
        "name": evaluation.arm,
        "meta": evaluation.label,
        "legendgroup": evaluation.arm,
        "showlegend": place == 0,
        "line": {"color": colour, "width": 2, "dash": DASHES[place % len(DASHES)]},
    }


def auroc_rows(evaluations: Mapping[str, Sequence[Evaluation]]) -> list[dict[str, Any]]:
    """Return one row an evaluation with a calibration: its arm, seed and areas under the ROC curve."""
    return [
        {
            "arm": e.arm,
            "seed": e.seed,
            "auroc": e.summary.calibration.auroc,
            "auroc_within": e.summary.calibration.auroc_within,
        }
        for of_arm in evaluations.values()
        for e in of_arm
        if e.summary.calibration is not None
    ]
