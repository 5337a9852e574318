"""From the table of an evaluation to the numbers of ``evaluation.json``, each with its interval.

P problems, n completions a problem, K statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from progrpo.evaluation.bootstrap import Bootstrap, Curve, Term, bootstrap_curve, bootstrap_terms
from progrpo.evaluation.calibration import calibration
from progrpo.evaluation.table import MetricValues, ProblemTable, curve_ks
from progrpo.metrics import EVAL_METRICS

TAUS = (0.5, 0.75, 1.0)
NUM_DIFFICULTIES = 5


BOOTSTRAP = Bootstrap(num_resamples=2000, level=0.95, seed=0)


def summarise(table: ProblemTable, ks: Sequence[int], bootstrap: Bootstrap = BOOTSTRAP) -> dict[str, Any]:
    """Return ``metrics``, ``curves``, ``calibration`` and ``difficulty`` of ``evaluation.json``.

    Args:
        table: of the evaluation.
        ks: k of Pass@k and its kin.
        bootstrap: of the intervals.
    """
    return {
        "metrics": estimate(table, metric_names(ks), bootstrap),
        "curves": {
            "pass_at_k": _k_curve(table, "pass_at_k", curve_ks(table.num_samples), bootstrap),
            "majority_at_k": _k_curve(table, "majority_at_k", ks, bootstrap),
            "g_pass_at_k": {str(tau): _k_curve(table, "g_pass_at_k", ks, bootstrap, tau) for tau in TAUS},
            "entropy_by_position": {
                kind: _position_curve(table, "entropy_by_position" + suffix, bootstrap)
                for kind, suffix in (("all", ""), ("correct", "/correct"), ("incorrect", "/incorrect"))
            },
        },
        "calibration": calibration(table, bootstrap),
        "difficulty": _by_difficulty(table, bootstrap),
    }


def metric_names(ks: Sequence[int]) -> list[str]:
    """Return the names of :data:`progrpo.metrics.EVAL_METRICS` with every k filled in."""
    return [name.format(k=k) for name in EVAL_METRICS for k in (ks if "{k}" in name else [None])]


def estimate(table: ProblemTable, names: Sequence[str], bootstrap: Bootstrap) -> dict[str, dict[str, float]]:
    """Return metrics with their intervals, of one resampling; those that are not defined here are left out."""
    values = {name: table.values(name) for name in names}
    defined = {name: metric for name, metric in values.items() if np.isfinite(metric.value)}
    num_PK = np.stack([metric.numerators for metric in defined.values()], axis=1)
    den_PK = np.stack([_denominators(metric) for metric in defined.values()], axis=1)
    bounds = [metric.bounds for metric in defined.values()]
    curve = bootstrap_terms([Term(1.0, num_PK[None], den_PK[None])], bounds, **bootstrap)
    return {name: _point(curve, i) for i, name in enumerate(defined)}


def _denominators(metric: MetricValues) -> np.ndarray:
    return np.ones(len(metric.numerators)) if metric.denominators is None else metric.denominators


def _point(curve: Curve, i: int) -> dict[str, float]:
    return {"value": float(curve.value[i]), "low": float(curve.low[i]), "high": float(curve.high[i])}


def _band(curve: Curve, i: int) -> dict[str, float]:
    return {"band_low": float(curve.band_low[i]), "band_high": float(curve.band_high[i])}


def _k_curve(
    table: ProblemTable, name: str, ks: Sequence[int], bootstrap: Bootstrap, tau: float = 0.5
) -> list[dict[str, Any]]:
    points = table.curve(name, ks, tau)
    curve = bootstrap_curve([points.numerators], bounds=points.bounds, **bootstrap)
    return [{"k": k, **_point(curve, i), **_band(curve, i)} for i, k in enumerate(ks)]


def _position_curve(table: ProblemTable, name: str, bootstrap: Bootstrap) -> list[dict[str, Any]]:
    points = table.curve(name)
    assert points.denominators is not None
    reached = np.flatnonzero(points.denominators.sum(0))
    if not len(reached):
        return []
    curve = bootstrap_curve([points.numerators[:, reached]], [points.denominators[:, reached]], **bootstrap)
    edges, tokens_B = table.position_edges, points.denominators.sum(0)
    return [
        {"start": edges[b], "end": edges[b + 1], **_point(curve, i), "num_tokens": int(tokens_B[b])}
        for i, b in enumerate(reached)
    ]


def _by_difficulty(table: ProblemTable, bootstrap: Bootstrap) -> list[dict[str, Any]] | None:
    """Coverage by difficulty: Pass@1 and Pass@n of up to five equally large classes of problems, ascending."""
    difficulty_P = table.difficulty_P
    known = np.isfinite(difficulty_P)
    if not known.any():
        return None
    edges = np.unique(np.quantile(difficulty_P[known], np.linspace(0, 1, NUM_DIFFICULTIES + 1)))
    class_P = np.clip(np.searchsorted(edges, difficulty_P, side="right") - 1, 0, max(len(edges) - 2, 0))
    points = table.curve("pass_at_k", [1, table.num_samples])
    rows = []
    for number in range(max(len(edges) - 1, 1)):
        chosen = known & (class_P == number)
        if not chosen.any():
            continue
        curve = bootstrap_curve([points.numerators[chosen]], bounds=points.bounds, **bootstrap)
        rows.append(
            {
                "low": float(difficulty_P[chosen].min()),
                "high": float(difficulty_P[chosen].max()),
                "num_problems": int(chosen.sum()),
                "pass_at_1": _point(curve, 0),
                "pass_at_n": _point(curve, 1),
            }
        )
    return rows
