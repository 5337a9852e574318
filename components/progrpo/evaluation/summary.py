"""From the table of an evaluation to the numbers of ``evaluation.json``, each with its interval.

P problems, n completions a problem, K statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np

from progrpo.evaluation.bootstrap import bootstrap_curve
from progrpo.evaluation.calibration import calibration
from progrpo.evaluation.resampling import Bootstrap, Curve, Term, bootstrap_terms
from progrpo.evaluation.table import RATE, MetricValues, ProblemTable, curve_ks, term
from progrpo.metrics import EVAL_METRICS

TAUS = (0.5, 0.75, 1.0)
KINDS = {"all": "", "correct": "/correct", "incorrect": "/incorrect"}
NUM_DIFFICULTIES = 5


BOOTSTRAP = Bootstrap(num_resamples=2000, level=0.95, seed=0)


def summarise(table: ProblemTable, ks: Sequence[int], bootstrap: Bootstrap = BOOTSTRAP) -> dict[str, Any]:
    """Return ``metrics``, ``curves``, ``calibration`` and ``difficulty`` of ``evaluation.json``.

    Args:
        table: of the evaluation.
        ks: k of Pass@k and its kin.
        bootstrap: of the intervals.
    """
    k_curves = {"pass_at_k": table.curve("pass_at_k"), "majority_at_k": table.curve("majority_at_k", ks)}
    k_curves |= {str(tau): table.curve("g_pass_at_k", ks, tau) for tau in TAUS}
    points = _k_curves(k_curves, dict.fromkeys(k_curves, ks) | {"pass_at_k": curve_ks(table.num_samples)}, bootstrap)
    return {
        "metrics": estimate(table, metric_names(ks), bootstrap),
        "curves": {
            "pass_at_k": points["pass_at_k"],
            "majority_at_k": points["majority_at_k"],
            "g_pass_at_k": {str(tau): points[str(tau)] for tau in TAUS},
            "entropy_by_position": _position_curves(table, bootstrap),
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
    defined = [name for name, metric in values.items() if np.isfinite(metric.value)]
    curve = bootstrap_terms([term([table], defined)], [values[name].bounds for name in defined], **bootstrap)
    return {name: asdict(curve.interval(i)) for i, name in enumerate(defined)}


def _band(curve: Curve, i: int) -> dict[str, float]:
    return {"band_low": float(curve.band_low[i]), "band_high": float(curve.band_high[i])}


def _k_curves(
    curves: Mapping[str, MetricValues], ks: Mapping[str, Sequence[int]], bootstrap: Bootstrap
) -> dict[str, list[dict[str, Any]]]:
    """Return the points of rates at several k, of one resampling, each curve with a band of its own."""
    num_PK = np.concatenate([curve.numerators for curve in curves.values()], axis=1)
    owners = [number for number, name in enumerate(curves) for _ in ks[name]]
    estimated = bootstrap_terms([Term(1.0, num_PK[None], None)], RATE, curves=owners, **bootstrap)
    points: dict[str, list[dict[str, Any]]] = {name: [] for name in curves}
    names = list(curves)
    for i, owner in enumerate(owners):
        of_curve = points[names[owner]]
        of_curve.append({"k": ks[names[owner]][len(of_curve)], **asdict(estimated.interval(i)), **_band(estimated, i)})
    return points


def _position_curves(table: ProblemTable, bootstrap: Bootstrap) -> dict[str, list[dict[str, Any]]]:
    """Return the mean entropy in each bin of positions that a completion reached: of all, correct and incorrect."""
    curves = {kind: table.curve("entropy_by_position" + suffix) for kind, suffix in KINDS.items()}
    num_PK = np.concatenate([curve.numerators for curve in curves.values()], axis=1)
    den_PK = np.concatenate([curve.all_denominators for curve in curves.values()], axis=1)
    tokens_K = den_PK.sum(0)
    reached = np.flatnonzero(tokens_K)
    estimated = bootstrap_terms([Term(1.0, num_PK[None, :, reached], den_PK[None, :, reached])], **bootstrap)
    points: dict[str, list[dict[str, Any]]] = {kind: [] for kind in curves}
    bins = list(pairwise(table.position_edges))
    for i, column in enumerate(map(int, reached)):
        kind, (start, end) = list(curves)[column // len(bins)], bins[column % len(bins)]
        points[kind].append(
            {"start": start, "end": end, **asdict(estimated.interval(i)), "num_tokens": int(tokens_K[column])}
        )
    return points


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
                "pass_at_1": asdict(curve.interval(0)),
                "pass_at_n": asdict(curve.interval(1)),
            }
        )
    return rows
