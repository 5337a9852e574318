"""What every interval of :mod:`progrpo.evaluation.bootstrap` is made of: sums of ratios of sums, resampled together.

P problems, S training seeds, K statistics, R resamples. An interval is the union of three, each of which covers where
the others fail (docs/evaluation.md has the simulation):

1. The Bayesian bootstrap (Rubin 1981): weights of problems and of seeds are exponential, quantiles of the resampled
   statistic, stretched about the value so that they are those of a t distribution with the standard error and the
   degrees of freedom of Welch and Satterthwaite. Without the stretch, 10 problems give 90 % instead of 95 %.
2. The same, unstretched, with two thirds of a problem more: of the most favourable kind seen for the upper end, of the
   least favourable for the lower; it is what a skewed sample needs. For problems that are only ever solved or not
   these are Beta quantiles between Jeffreys' and Clopper and Pearson's; 2/3 is what holds 93 % at every rate.
3. For values with ``bounds``, the problems that no sample of P shows: a kind with more than ``1 - a^(1/P)`` of all
   problems is absent with probability below a only ("rule of three"), so each end moves towards its bound by at
   least that share, a = 1 - level. Ten problems of which none is solved do not show that none ever is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from progrpo.errors import ConfigError, DataError
from progrpo.evaluation.student import student_t_quantile

Array = npt.NDArray[np.float64]
Bounds = tuple[float, float]
DEFAULT_LEVEL = 0.95
_CHUNK_ELEMENTS = 1 << 20  # weights held at a time, R x P
_EXTREME_WEIGHT = 2 / 3  # of the pseudo-problem, part 2 of the interval


class Bootstrap(TypedDict, total=False):
    """The settings that all functions share, and what they are if left out.

    ``num_resamples``: R, 2000. ``level``: coverage asked of an interval, between 0 and 1, 0.95. ``seed``: of the
    resampling, 0.
    """

    num_resamples: int
    level: float
    seed: int


@dataclass(frozen=True)
class Interval:
    """A point estimate (of the data as they are, not a mean of resamples) with its interval."""

    value: float
    low: float
    high: float

    def excludes(self, value: float = 0.0) -> bool:
        """Whether ``value`` lies outside: a difference whose interval excludes 0 is resolved."""
        return not self.low <= value <= self.high


@dataclass(frozen=True)
class Curve:
    """K estimates. ``low`` and ``high`` hold for each point alone, ``band_low`` and ``band_high`` for all at once."""

    value: Array
    low: Array
    high: Array
    band_low: Array
    band_high: Array

    def interval(self, i: int) -> Interval:
        """Return estimate ``i`` of the K."""
        return Interval(float(self.value[i]), float(self.low[i]), float(self.high[i]))


class Term(NamedTuple):
    """One arm's part in a statistic: ``sign`` times the ratio of sums over its seeds and problems.

    ``num_SPK`` [S, P, K]; ``den_SPK`` the same shape, or None where all denominators are 1.
    """

    sign: float
    num_SPK: Array
    den_SPK: Array | None

    def ratio(self) -> Array:
        """Return the ratio of the pooled sums, [K]."""
        total_K: Array = self.num_SPK.sum((0, 1))
        count = self.num_SPK.shape[0] * self.num_SPK.shape[1]
        ratio_K: Array = total_K / (count if self.den_SPK is None else self.den_SPK.sum((0, 1)))
        return ratio_K


def bootstrap_terms(
    terms: Sequence[Term],
    bounds: Bounds | Sequence[Bounds | None] | None = None,
    *,
    curves: Sequence[int] | None = None,
    num_resamples: int = 2000,
    level: float = DEFAULT_LEVEL,
    seed: int = 0,
) -> Curve:
    """Return the K sums of the terms' ratios with their intervals: what all functions above are made of.

    Args:
        terms: at least one, with the same P and K.
        bounds: of the sum on one problem, for all K or, as a list, for each.
        curves: the number of the curve that each of the K belongs to, whose band it shares; absent: one curve.
        num_resamples: R.
        level: between 0 and 1.
        seed: of the resampling.

    Raises:
        ConfigError: a level or a number of resamples out of range.
        DataError: values outside of the bounds.
    """
    if num_resamples < 1:
        raise ConfigError(f"num_resamples = {num_resamples}, allowed is 1 or more.")
    if not 0 < level < 1:
        raise ConfigError(f"level = {level}, allowed is a number between 0 and 1 such as 0.95.")
    value_K = sum((term.sign * term.ratio() for term in terms), np.zeros(terms[0].num_SPK.shape[2]))
    influence_PK, problems_K, seeds_K = variance_parts(terms)
    plain_RK, low_RK, high_RK = _resample(terms, influence_PK, num_resamples, seed)

    tails = [(1 - level) / 2, (1 + level) / 2]
    spread_K = plain_RK.std(0)
    se_K = np.sqrt(problems_K + sum(part_K for part_K, _ in seeds_K))
    quantile_K = student_t_quantile(tails[1], welch_df(len(influence_PK), problems_K, seeds_K))
    rounding_K = 1e-12 * (1 + np.abs(value_K))
    stretch_K = np.where(spread_K > rounding_K, quantile_K / _z(tails[1]) * se_K / np.maximum(spread_K, 1e-300), 1.0)
    low_K, high_K = (value_K + (np.quantile(plain_RK, tail, axis=0) - value_K) * stretch_K for tail in tails)
    # Equal problems differ by rounding only, which is not a width.
    still_K = spread_K <= rounding_K
    low_K = np.where(still_K, value_K, np.minimum(low_K, np.quantile(low_RK, tails[0], axis=0)))
    high_K = np.where(still_K, value_K, np.maximum(high_K, np.quantile(high_RK, tails[1], axis=0)))
    deviation_RK = np.abs(plain_RK - value_K) / np.where(still_K, np.inf, spread_K)
    curve_K = np.zeros(len(value_K), np.int64) if curves is None else np.asarray(curves)
    largest_K = np.empty(len(value_K))
    for curve in np.unique(curve_K):
        largest_K[curve_K == curve] = np.quantile(deviation_RK[:, curve_K == curve].max(1), level)
    half_K = largest_K * spread_K * stretch_K
    band_low_K, band_high_K = value_K - half_K, value_K + half_K

    least_K, greatest_K = _bounds(bounds, len(value_K))
    if (outside := np.flatnonzero((value_K < least_K - rounding_K) | (value_K > greatest_K + rounding_K))).size:
        k = outside[0]
        raise DataError(f"the value {value_K[k]} is outside of its bounds {least_K[k]} ... {greatest_K[k]}.")
    unseen = 1 - (1 - level) ** (1 / len(influence_PK))
    with np.errstate(invalid="ignore"):  # inf where there is no bound
        low_K = np.where(np.isinf(least_K), low_K, np.minimum(low_K, value_K - (value_K - least_K) * unseen))
        high_K = np.where(np.isinf(greatest_K), high_K, np.maximum(high_K, value_K + (greatest_K - value_K) * unseen))
    low_K, high_K = np.clip(low_K, least_K, value_K), np.clip(high_K, value_K, greatest_K)
    return Curve(
        value_K,
        low_K,
        high_K,
        np.clip(np.minimum(band_low_K, low_K), least_K, None),
        np.clip(np.maximum(band_high_K, high_K), None, greatest_K),
    )


def variance_parts(terms: Sequence[Term]) -> tuple[Array, Array, list[tuple[Array, int]]]:
    """Split the variance of the sum of the terms' ratios, to first order.

    Returns:
        the influence of each problem on the sum [P, K]; the variance that another draw of problems makes [K]; and for
        each term with several seeds the variance that other seeds make [K], with S. What seeds and problems make
        together is counted in both, so the sum is not too small.
    """
    num_problems = terms[0].num_SPK.shape[1]
    influence_PK: Array = np.zeros(terms[0].num_SPK.shape[1:])
    seeds_K = []
    for sign, num_SPK, den_SPK in terms:
        num_seeds, ratio_K = len(num_SPK), Term(sign, num_SPK, den_SPK).ratio()
        mean_den_K = 1.0 if den_SPK is None else den_SPK.mean((0, 1))
        influence_SPK = sign * (num_SPK - ratio_K * (1.0 if den_SPK is None else den_SPK)) / mean_den_K
        influence_PK += influence_SPK.mean(0)
        if num_seeds > 1:
            seeds_K.append((influence_SPK.mean(1).var(0, ddof=1) / num_seeds, num_seeds))
    # One problem tells nothing of the spread between problems: its interval is what bounds allow.
    problems_K = influence_PK.var(0, ddof=1) / num_problems if num_problems > 1 else 0 * influence_PK[0]
    return influence_PK, problems_K, seeds_K


def welch_df(num_problems: int, problems_K: Array, seeds_K: Sequence[tuple[Array, int]]) -> Array:
    """Return the degrees of freedom of a variance made of parts (Satterthwaite 1946, Welch 1947), [K]."""
    total_K = problems_K + sum(part_K for part_K, _ in seeds_K)
    weighted_K = problems_K**2 / max(num_problems - 1, 1) + sum(part_K**2 / (s - 1) for part_K, s in seeds_K)
    return np.where(weighted_K > 0, total_K**2 / np.maximum(weighted_K, 1e-300), max(num_problems - 1, 1))


def _resample(terms: Sequence[Term], influence_PK: Array, num_resamples: int, seed: int) -> tuple[Array, Array, Array]:
    """Return the sum [R, K] three times: plain, with part of a problem more of the lowest kind, of the highest."""
    num_problems, num_stats = influence_PK.shape
    rng = np.random.default_rng(seed)
    columns = [_columns(term) for term in terms]
    extremes = influence_PK.argmin(0), influence_PK.argmax(0)
    chunk = max(1, _CHUNK_ELEMENTS // num_problems)
    parts = []
    for start in range(0, num_resamples, chunk):
        rows = min(chunk, num_resamples - start)
        weights_RP = rng.standard_exponential((rows, num_problems))
        extra_R1 = rng.standard_gamma(_EXTREME_WEIGHT, rows)[:, None]
        sums_3RK = np.zeros((3, rows, num_stats))
        for term, columns_PX in zip(terms, columns, strict=True):
            num_seeds = len(term.num_SPK)
            seeds_RS = rng.standard_exponential((rows, num_seeds)) if num_seeds > 1 else np.ones((rows, 1))
            num_RK, den_RK = _weighted(term, weights_RP @ columns_PX, weights_RP.sum(1), seeds_RS)
            sums_3RK[0] += term.sign * num_RK / den_RK
            for i, extreme_K in enumerate(extremes, start=1):
                more_num_RK, more_den_RK = _at(term, extreme_K, seeds_RS)
                with np.errstate(invalid="ignore"):
                    sums_3RK[i] += term.sign * (num_RK + extra_R1 * more_num_RK) / (den_RK + extra_R1 * more_den_RK)
        parts.append(sums_3RK)
    plain_RK, low_RK, high_RK = np.concatenate(parts, axis=1)
    return plain_RK, low_RK, high_RK


def _columns(term: Term) -> Array:
    """Return numerators and denominators side by side, [P, S K] or [P, 2 S K]."""
    stacks = [term.num_SPK] if term.den_SPK is None else [term.num_SPK, term.den_SPK]
    num_problems = term.num_SPK.shape[1]
    return np.concatenate([stack.transpose(1, 0, 2).reshape(num_problems, -1) for stack in stacks], axis=1)


def _weighted(term: Term, sums_RX: Array, weight_R: Array, seeds_RS: Array) -> tuple[Array, Array]:
    """Return numerators and denominators [R, K] from the sums over problems of :func:`_columns`."""
    num_seeds, _, num_stats = term.num_SPK.shape
    sums_RXSK = sums_RX.reshape(len(sums_RX), -1, num_seeds, num_stats)
    num_RK = np.einsum("rs,rsk->rk", seeds_RS, sums_RXSK[:, 0])
    if term.den_SPK is None:
        return num_RK, (weight_R * seeds_RS.sum(1))[:, None]
    return num_RK, np.einsum("rs,rsk->rk", seeds_RS, sums_RXSK[:, 1])


def _at(term: Term, problem_K: npt.NDArray[np.int64], seeds_RS: Array) -> tuple[Array, Array]:
    """Return numerators and denominators [R, K] of one problem for each statistic, weighted over seeds."""
    stats_K = np.arange(len(problem_K))
    num_RK = seeds_RS @ term.num_SPK[:, problem_K, stats_K]
    if term.den_SPK is None:
        return num_RK, seeds_RS.sum(1, keepdims=True)
    return num_RK, seeds_RS @ term.den_SPK[:, problem_K, stats_K]


def _z(probability: float) -> float:
    return NormalDist().inv_cdf(probability)


def _bounds(bounds: Bounds | Sequence[Bounds | None] | None, num_stats: int) -> tuple[Array, Array]:
    each = bounds if isinstance(bounds, list) else [bounds] * num_stats
    pairs = np.array([(-np.inf, np.inf) if pair is None else pair for pair in each], np.float64)
    return pairs[:, 0], pairs[:, 1]
