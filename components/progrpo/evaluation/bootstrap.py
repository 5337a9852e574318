"""Intervals over problems and training seeds, for one number, a difference of arms or a whole curve.

Every statistic is a ratio of sums over problems: means (all denominators 1), token-weighted means (numerator: sum over
a problem's tokens, denominator: their number), or a difference of such between arms. P problems, S training seeds,
K statistics (the points of a curve), R resamples. The same seed gives the same interval, bit for bit.
How intervals are made, and why so, is in :mod:`progrpo.evaluation.resampling`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import numpy as np
import numpy.typing as npt

from progrpo.errors import DataError
from progrpo.evaluation.resampling import Bootstrap, Bounds, Curve, Interval, Term, bootstrap_terms

Runs = Sequence[tuple[npt.ArrayLike, npt.ArrayLike | None]]
"""One arm: of each training seed the numerators and the denominators, None where all are 1."""


def bootstrap_mean(values: npt.ArrayLike, *, bounds: Bounds | None = None, **bootstrap: Unpack[Bootstrap]) -> Interval:
    """Return the mean over problems and its interval.

    Args:
        values: [P], one number a problem.
        bounds: least and greatest number a problem can have, (0, 1) for rates; None: it has none, and part 3 of the
            interval is left out.
        **bootstrap: level, R and seed, as all functions here take them.

    Raises:
        DataError: no or non-finite values, or values outside of the bounds.
        ConfigError: a level or a number of resamples out of range.
    """
    return bootstrap_hierarchical([values], bounds=bounds, **bootstrap)


def bootstrap_hierarchical(
    numerators: Sequence[npt.ArrayLike],
    denominators: Sequence[npt.ArrayLike] | None = None,
    *,
    bounds: Bounds | None = None,
    **bootstrap: Unpack[Bootstrap],
) -> Interval:
    """Return the ratio of sums pooled over training seeds and problems, and its interval over both.

    Seeds and problems are crossed, every seed having been measured on the same problems, so **one** draw of weights of
    problems is applied to all seeds: a hard problem is hard for each of them, and more seeds do not make the problems
    more (the "pigeonhole bootstrap" of Owen 2007, arXiv:0712.1111).

    With one seed the interval says nothing of another training run. With two, what their difference says of the
    spread between runs is a guess, and the t distribution answers with a wide interval where that spread matters.
    The completions of a problem are not resampled: their sampling noise is part of the spread between problems.

    Args:
        numerators: S arrays [P], one a training seed, the same problems in the same order.
        denominators: as ``numerators``, >= 0; absent: all 1, the statistic is a mean.
        bounds: of a problem's ratio; see :func:`bootstrap_mean`, also for ``**bootstrap``.

    Raises:
        DataError: values that are missing, non-finite, of different lengths, or denominators < 0 or all 0.
        ConfigError: a level or a number of resamples out of range.
    """
    return bootstrap_curve(numerators, denominators, bounds=bounds, **bootstrap).interval(0)


def bootstrap_difference(
    arm: Runs, baseline: Runs, *, bounds: Bounds | None = None, **bootstrap: Unpack[Bootstrap]
) -> Interval:
    """Return ``arm - baseline`` of the pooled ratio and its interval, paired by problem.

    One draw of weights of problems serves both arms and all their seeds, so that what makes a problem easy for both
    cancels; seeds are drawn for each arm on its own, since equal seed numbers of two arms are different runs. See
    :func:`bootstrap_hierarchical` for what few seeds cannot show.

    Args:
        arm: S pairs of arrays [P].
        baseline: the same for the baseline, S may differ; the same problems in the same order.
        bounds: of one arm's ratio on a problem; see :func:`bootstrap_mean`, also for ``**bootstrap``.

    Raises:
        DataError: values that are missing, non-finite, of different lengths, or denominators < 0 or all 0.
        ConfigError: a level or a number of resamples out of range.
    """
    return bootstrap_curve_difference(arm, baseline, bounds=bounds, **bootstrap).interval(0)


def bootstrap_curve(
    values: Sequence[npt.ArrayLike],
    denominators: Sequence[npt.ArrayLike] | None = None,
    *,
    bounds: Bounds | None = None,
    **bootstrap: Unpack[Bootstrap],
) -> Curve:
    """Return K ratios over the same problems, such as Pass@k at every k, with intervals and a simultaneous band.

    The band is the sup-t band: the largest standardised deviation over the curve stays within it in ``level`` of the
    resamples. A reader may look at any k, or at all, without a correction for many tests.

    Args:
        values: S arrays [P, K], one a training seed.
        denominators: as ``values``, >= 0, for each column one of them > 0; absent: all 1.
        bounds: of each entry's ratio; see :func:`bootstrap_mean`, also for ``**bootstrap``.

    Raises:
        DataError: as :func:`bootstrap_hierarchical`.
        ConfigError: a level or a number of resamples out of range.
    """
    term = _term("values", 1.0, values, denominators)
    return bootstrap_terms([term], bounds, **bootstrap)


def bootstrap_curve_difference(
    arm: Runs, baseline: Runs, *, bounds: Bounds | None = None, **bootstrap: Unpack[Bootstrap]
) -> Curve:
    """Return ``arm - baseline`` of K ratios, paired by problem, with intervals and a simultaneous band.

    Args:
        arm: S pairs of arrays [P, K].
        baseline: the same for the baseline.
        bounds: of one arm's entries; see :func:`bootstrap_curve`, as the rest.
        **bootstrap: see there.

    Raises:
        DataError: as :func:`bootstrap_difference`.
        ConfigError: a level or a number of resamples out of range.
    """
    terms = difference_terms(arm, baseline)
    return bootstrap_terms(terms, spread(bounds), **bootstrap)


def probability_of_superiority(
    arm: Sequence[npt.ArrayLike], baseline: Sequence[npt.ArrayLike], **bootstrap: Unpack[Bootstrap]
) -> Interval:
    """Return how probable it is that a run of the arm beats one of the baseline on a problem, ties counting half.

    ``mean over problems and pairs of seeds of [x > y] + [x = y] / 2``, the "probability of improvement" of Agarwal et
    al. 2021 (arXiv:2108.13264) with ties. 0.5 says that neither is better: resolved means ``excludes(0.5)``. Unlike a
    difference of means it does not ask by how much, so a few problems cannot decide it.

    Args:
        arm: S arrays [P], a score for each problem, such as Pass@1.
        baseline: the same for the baseline, S may differ.
        **bootstrap: see :func:`bootstrap_mean`.

    Raises:
        DataError: values that are missing, non-finite or of different lengths.
        ConfigError: a level or a number of resamples out of range.
    """
    (_, arm_SP1, _), (_, base_SP1, _) = difference_terms([(a, None) for a in arm], [(b, None) for b in baseline])
    a_SP, b_SP = arm_SP1[..., 0], base_SP1[..., 0]
    better_SSP = (a_SP[:, None] > b_SP).astype(np.float64) + 0.5 * (a_SP[:, None] == b_SP)
    # Its deviations to first order (Hájek's projection): those over problems, seeds of one arm and seeds of the other.
    of_arm, of_base = better_SSP.mean(1)[..., None], better_SSP.mean(0)[..., None]
    both = better_SSP.mean((0, 1))[None, :, None]
    terms = [Term(1.0, of_arm, None), Term(1.0, of_base, None), Term(-1.0, both, None)]
    return bootstrap_terms(terms, (0.0, 1.0), **bootstrap).interval(0)


def difference_terms(arm: Runs, baseline: Runs) -> list[Term]:
    """Return the terms of ``arm - baseline``; see :func:`bootstrap_difference`."""
    terms = [_term_of_pairs("arm", 1.0, arm), _term_of_pairs("baseline", -1.0, baseline)]
    problems = [term.num_SPK.shape[1:] for term in terms]
    if problems[0] != problems[1]:
        raise DataError(
            f"the arm has {problems[0][0]} problems and the baseline {problems[1][0]}: a paired difference needs "
            f"the same problems in the same order on both sides."
        )
    return terms


def spread(bounds: Bounds | None) -> Bounds | None:
    """Return the bounds of a difference of two values with these bounds."""
    return None if bounds is None else (bounds[0] - bounds[1], bounds[1] - bounds[0])


def _term_of_pairs(name: str, sign: float, pairs: Runs) -> Term:
    if all(denominator is None for _, denominator in pairs):
        return _term(name, sign, [numerator for numerator, _ in pairs], None)
    return _term(name, sign, [n for n, _ in pairs], [np.ones(np.shape(n)) if d is None else d for n, d in pairs])


def _term(
    name: str, sign: float, numerators: Sequence[npt.ArrayLike], denominators: Sequence[npt.ArrayLike] | None
) -> Term:
    rows = [np.asarray(row, np.float64) for row in (*numerators, *(denominators or ()))]
    fits = denominators is None or len(denominators) == len(numerators)
    if not fits or len({row.shape for row in rows}) != 1 or rows[0].ndim not in (1, 2):
        raise DataError(
            f"{name}: every training seed needs one value a problem, [P], or one row a problem, [P, K], for the same "
            f"problems; got shapes {[row.shape for row in rows]}."
        )
    stack = np.stack([row if row.ndim == 2 else row[:, None] for row in rows])
    num_SPK = stack[: len(numerators)]
    if not num_SPK.size or not np.isfinite(stack).all():
        raise DataError(f"{name}: values must be finite and at least one problem is needed, got shape {num_SPK.shape}.")
    if denominators is None:
        return Term(sign, num_SPK, None)
    den_SPK = stack[len(numerators) :]
    if (den_SPK < 0).any() or (den_SPK.sum((0, 1)) <= 0).any():
        raise DataError(f"{name}: denominators must be >= 0 and not all 0, the smallest is {den_SPK.min()}.")
    return Term(sign, num_SPK, den_SPK)
