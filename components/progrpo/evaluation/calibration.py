"""Does the model know when it is right: answer confidence c(o|q), ProGRPO's own signal, against correctness.

P problems, n completions a problem, B bins of confidence, R resamples.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from progrpo.evaluation.bootstrap import bootstrap_curve, bootstrap_hierarchical
from progrpo.evaluation.resampling import Array, Bootstrap, Interval
from progrpo.evaluation.student import student_t_quantile
from progrpo.evaluation.table import RATE, ProblemTable

NUM_BINS = 10
_RANK_BINS = 32  # of the resampled AUROC; its value itself is exact


def calibration(table: ProblemTable, bootstrap: Bootstrap) -> dict[str, Any]:
    """Return the ``calibration`` of ``evaluation.json``.

    c(o|q) is no probability of being right, so it is not held against the diagonal: what counts is whether accuracy
    rises with it. Intervals are over problems.

    Args:
        table: of an evaluation.
        bootstrap: of the intervals.
    """
    confidence_Pn, correct_Pn = table.confidence_Pn, table.correct_Pn
    overall = within = None
    if 0 < correct_Pn.sum() < correct_Pn.size:
        overall = asdict(_auroc_interval(confidence_Pn, correct_Pn, **bootstrap))
    each_P = auroc_of_rows(confidence_Pn, correct_Pn)
    known_P = np.isfinite(each_P)
    if known_P.any():
        within = asdict(bootstrap_hierarchical([np.where(known_P, each_P, 0.0)], [known_P], bounds=RATE, **bootstrap))
    edges = np.unique(np.quantile(confidence_Pn, np.linspace(0, 1, NUM_BINS + 1)))
    bin_Pn = np.clip(np.searchsorted(edges, confidence_Pn, side="right") - 1, 0, max(len(edges) - 2, 0))
    num_bins = int(bin_Pn.max()) + 1
    count_PB, right_PB, sum_PB = (
        _bin_sums(bin_Pn, weights_Pn, num_bins) for weights_Pn in (np.ones_like(bin_Pn), correct_Pn, confidence_Pn)
    )
    used = np.flatnonzero(count_PB.sum(0))
    accuracy = bootstrap_curve([right_PB[:, used]], [count_PB[:, used]], bounds=RATE, **bootstrap)
    bins = [
        {
            "confidence_low": float(edges[b]),
            "confidence_high": float(edges[min(b + 1, len(edges) - 1)]),
            "confidence": float(sum_PB[:, b].sum() / count_PB[:, b].sum()),
            "accuracy": asdict(accuracy.interval(i)),
            "num_completions": int(count_PB[:, b].sum()),
        }
        for i, b in enumerate(map(int, used))
    ]
    return {"auroc": overall, "auroc_within": within, "bins": bins}


def auroc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the probability that a positive scores higher than a negative, ties counting half; nan if one lacks.

    Args:
        scores: [N].
        labels: [N], true for positives.
    """
    return float(auroc_of_rows(np.asarray(scores)[None], np.asarray(labels, bool)[None])[0])


def auroc_of_rows(scores_Pn: npt.NDArray[Any], labels_Pn: npt.NDArray[np.bool_]) -> Array:
    """Return the AUROC of each row on its own, [P]; nan where a row has one outcome only (Mann and Whitney 1947)."""
    from scipy.stats import rankdata

    ranks_Pn = rankdata(scores_Pn, axis=1)
    positive_P = labels_Pn.sum(1)
    negative_P = labels_Pn.shape[1] - positive_P
    excess_P = np.where(labels_Pn, ranks_Pn, 0.0).sum(1) - positive_P * (positive_P + 1) / 2
    pairs_P = (positive_P * negative_P).astype(np.float64)
    return np.where(pairs_P > 0, excess_P / np.maximum(pairs_P, 1), np.nan)


def _auroc_interval(
    confidence_Pn: npt.NDArray[np.float32],
    correct_Pn: npt.NDArray[np.bool_],
    num_resamples: int,
    level: float,
    seed: int,
) -> Interval:
    """Weigh problems as the Bayesian bootstrap does; ranks are binned for the resamples, the value is exact."""
    value, num_problems = auroc(confidence_Pn.ravel(), correct_Pn.ravel()), len(confidence_Pn)
    if num_problems == 1:
        return Interval(value, 0.0, 1.0)
    edges = np.unique(np.quantile(confidence_Pn, np.linspace(0, 1, _RANK_BINS + 1)[1:-1]))
    bin_Pn = np.searchsorted(edges, confidence_Pn, side="right")
    count_PB, right_PB = (
        _bin_sums(bin_Pn, weights_Pn, len(edges) + 1) for weights_Pn in (np.ones_like(bin_Pn), correct_Pn)
    )
    columns_PX = np.concatenate([right_PB, count_PB - right_PB], axis=1)
    rng, parts = np.random.default_rng(seed), [_binned_auroc(columns_PX.sum(0, keepdims=True))]
    chunk = max(1, (1 << 20) // num_problems)
    for start in range(0, num_resamples, chunk):
        weights_RP = rng.standard_exponential((min(chunk, num_resamples - start), num_problems))
        parts.append(_binned_auroc(weights_RP @ columns_PX))
    deviation = np.concatenate(parts[1:]) - parts[0]
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    t = student_t_quantile(tails[1], num_problems - 1) / student_t_quantile(tails[1], 1e9)
    stretch = t * np.sqrt((num_problems + 1) / (num_problems - 1))
    low, high = value + np.nanquantile(deviation, tails) * stretch
    return Interval(value, float(np.clip(low, 0, value)), float(np.clip(high, value, 1)))


def _binned_auroc(sums_RX: Array) -> Array:
    """AUROC [R] from the weight of positives and negatives in each bin, [R, 2 B], bins in ascending order."""
    positive_RB, negative_RB = np.split(sums_RX, 2, axis=1)
    below_RB = negative_RB.cumsum(1) - negative_RB
    with np.errstate(invalid="ignore"):
        pairs_R: Array = (positive_RB * (below_RB + negative_RB / 2)).sum(1)
        share_R: Array = pairs_R / (positive_RB.sum(1) * negative_RB.sum(1))
    return share_R


def _bin_sums(bin_Pn: npt.NDArray[np.int64], weights_Pn: npt.NDArray[Any], num_bins: int) -> Array:
    """Sum weights over the completions of each problem in each bin, [P, B]."""
    num_problems = len(bin_Pn)
    cells_Pn = bin_Pn + num_bins * np.arange(num_problems)[:, None]
    sums = np.bincount(cells_Pn.ravel(), weights_Pn.ravel().astype(np.float64), num_problems * num_bins)
    return sums.astype(np.float64).reshape(num_problems, num_bins)
