"""Majority@k: how often the most frequent answer of k completions is right, without bias from the n there are.

P problems, n completions a problem, G groups of equal answers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from progrpo.errors import ConfigError, DataError
from progrpo.evaluation.pass_at_k import at_least_correct

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
_CHUNK = 512  # problems at a time: their polynomials stay in the cache
_NEGLIGIBLE = 1e-14  # probability of a vote that is not followed up


def majority_at_k(num_samples: int, wrong_PG: npt.ArrayLike, right_PG: npt.ArrayLike, k: int) -> Array:
    """Return, for each problem, the probability that the plurality vote of k of the n completions is right.

    The mean over all k-subsets of the completions, computed in closed form, so unbiased for every k <= n. A tie is
    broken by lot among the answers that lead. Completions without an answer do not vote; if none votes the vote is
    wrong.

    With y marking a tied answer, the subsets in which an answer of c completions wins with t votes are counted by
    ``C(c, t) x^t`` times the product over the other answers g of ``sum_{s<t} C(c_g, s) x^s + y C(c_g, t) x^t``, and
    integrating over y from 0 to 1 turns r ties into the share 1 / (r + 1). The integrand is a polynomial in y:
    Gauss and Legendre's rule gives the integral exactly. Binomials are weighted as those of draws with probability
    k / n, so that no number leaves [0, 1].

    Args:
        num_samples: n, completions a problem.
        wrong_PG: [P, G'] how many completions give each wrong answer, zeros where a problem has fewer answers.
        right_PG: [P, G''] the same for right answers, of which a problem may have several.
        k: completions that vote, ``1 <= k <= n``.

    Returns:
        [P], float64.

    Raises:
        ConfigError: k below 1 or above n.
        DataError: counts that are negative or sum to more than n.
    """
    wrong_PG, right_PG = np.asarray(wrong_PG, np.int64), np.asarray(right_PG, np.int64)
    if not 1 <= k <= num_samples:
        raise ConfigError(f"k = {k}, but Majority@k needs 1 <= k <= n = {num_samples} completions a problem.")
    silent_P = num_samples - wrong_PG.sum(1) - right_PG.sum(1)
    if min(wrong_PG.min(initial=0), right_PG.min(initial=0), silent_P.min(initial=0)) < 0:
        raise DataError(f"counts of answers must be >= 0 and sum to at most n = {num_samples} for each problem.")
    if k == num_samples:
        return _vote_of_all(wrong_PG, right_PG)
    result_P, pmf = np.zeros(len(wrong_PG)), _binomials(num_samples, k / num_samples, k)
    lead_P = np.maximum(wrong_PG.max(1, initial=0), right_PG.max(1, initial=0))
    most_P = right_PG.max(1, initial=0)
    at_least = at_least_correct(num_samples, np.arange(num_samples + 1), k)  # votes of an answer, by its completions
    for t in range(1, min(k, int(most_P.max(initial=0))) + 1):
        beaten_P = at_least[lead_P, t + 1] > 1 - _NEGLIGIBLE if t < k else np.zeros(len(lead_P), bool)
        rows = np.flatnonzero((at_least[most_P, t] > _NEGLIGIBLE) & ~beaten_P)
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            result_P[chunk] += _wins(pmf, wrong_PG[chunk], right_PG[chunk], silent_P[chunk], k, t)
    return np.clip(result_P, 0.0, 1.0)


def _vote_of_all(wrong_PG: Counts, right_PG: Counts) -> Array:
    """The vote of all n completions: the right share of the answers that lead."""
    lead_P = np.maximum(wrong_PG.max(1, initial=0), right_PG.max(1, initial=0))[:, None]
    right_P, wrong_P = ((groups == lead_P).sum(1) for groups in (right_PG, wrong_PG))
    return np.where(lead_P[:, 0] > 0, right_P / np.maximum(right_P + wrong_P, 1), 0.0)


def _wins(pmf: Array, wrong_PG: Counts, right_PG: Counts, silent_P: Counts, k: int, t: int) -> Array:
    """Return the probability [P] that a right answer wins with exactly t votes, ties shared."""
    wrong, right = _ordered(wrong_PG), _ordered(right_PG)
    # Of the leading answers all but the winner bring a factor y: a rule of r points is exact up to y^(2r - 1).
    num_leaders = min(k // t, int(((wrong_PG >= t).sum(1) + (right_PG >= t).sum(1)).max()))
    points, weights = np.polynomial.legendre.leggauss((num_leaders + 1) // 2)
    total_P = np.zeros(len(silent_P))
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        # Polynomials in x, one row a power, so that the problems of a row lie side by side.
        product_XP = np.ascontiguousarray(pmf[silent_P].T)
        derivative_XP = np.zeros_like(product_XP)
        for rows, counts_P in wrong:
            product_XP[:, rows] = _multiply(product_XP[:, rows], _factor(pmf, counts_P, t, point))
        for rows, counts_P in right:
            # d/dz of (L + y z E) at z = 1, over y: this answer is one of the winners
            factor_XP, winner_P = _factor(pmf, counts_P, t, point), pmf[counts_P, t]
            derived_XP = _multiply(derivative_XP[:, rows], factor_XP)
            derived_XP[t:] += product_XP[: k + 1 - t, rows] * winner_P
            derivative_XP[:, rows] = derived_XP
            product_XP[:, rows] = _multiply(product_XP[:, rows], factor_XP)
        total_P += weight * derivative_XP[k]
    # All draws are independent so far; given that they are k in all, every k-subset is equally likely.
    share_P: Array = total_P / pmf[-1, k]
    return share_P


def _ordered(groups_PG: Counts) -> list[tuple[npt.NDArray[np.int64], Counts]]:
    """Each problem's largest group, second largest, …: the problems that have one, and its completions."""
    ordered_PG = -np.sort(-groups_PG, axis=1)
    columns = [(np.flatnonzero(column), column) for column in ordered_PG.T]
    return [(rows, column[rows]) for rows, column in columns if len(rows)]


def _factor(pmf: Array, counts_P: Counts, t: int, point: float) -> Array:
    """The polynomial of one answer that gets fewer than t votes, or t and is tied: [up to t + 1, P]."""
    factor_XP: Array = pmf[counts_P, : min(t, int(counts_P.max())) + 1].T.copy()
    if len(factor_XP) == t + 1:
        factor_XP[t] *= point
    return factor_XP


def _multiply(left_XP: Array, right_XP: Array) -> Array:
    """Multiply polynomials problem by problem, dropping powers above k."""
    product_XP: Array = left_XP * right_XP[0]
    for power in range(1, len(right_XP)):
        product_XP[power:] += left_XP[:-power] * right_XP[power]
    return product_XP


def _binomials(num_samples: int, probability: float, k: int) -> Array:
    """Return ``C(c, s) q^s (1 - q)^(c - s)`` for c = 0 ... n and s = 0 ... k."""
    pmf = np.zeros((num_samples + 1, k + 1))
    pmf[0, 0] = 1.0
    for c in range(1, num_samples + 1):
        pmf[c] = pmf[c - 1] * (1 - probability)
        pmf[c, 1:] += pmf[c - 1, :-1] * probability
    return pmf
