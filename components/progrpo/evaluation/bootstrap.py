"""Percentile bootstrap intervals over problems and training seeds.

Every statistic is a ratio of sums over problems, which covers means (all denominators 1) and token-weighted means
(numerator: sum over a problem's tokens, denominator: their number). P problems, S training seeds, R resamples.

The interval is the percentile interval (Efron & Tibshirani 1993, chapter 13): quantiles of the resampled statistic.
The same seed gives the same interval, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from progrpo.errors import ConfigError, DataError

_Array = npt.NDArray[np.float64]
_CHUNK_ELEMENTS = 1 << 20  # draws held at a time, R x P


@dataclass(frozen=True)
class Interval:
    """A point estimate (of the data as they are, not a mean of resamples) with its interval."""

    value: float
    low: float
    high: float


def bootstrap_mean(values: npt.ArrayLike, *, num_resamples: int = 2000, level: float = 0.95, seed: int = 0) -> Interval:
    """Return the mean over problems and its interval.

    Args:
        values: [P], one number a problem.
        num_resamples: R.
        level: coverage asked of the interval, between 0 and 1.
        seed: of the resampling.

    Raises:
        DataError: no or non-finite values.
        ConfigError: a level or a number of resamples out of range.
    """
    return bootstrap_hierarchical([values], num_resamples=num_resamples, level=level, seed=seed)


def bootstrap_ratio(
    numerators: npt.ArrayLike,
    denominators: npt.ArrayLike,
    *,
    num_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return ``sum(numerators) / sum(denominators)`` and its interval; problems are resampled, each with both numbers.

    Args:
        numerators: [P].
        denominators: [P], > 0.
        num_resamples: see :func:`bootstrap_mean`, as ``level`` and ``seed``.
        level: see there.
        seed: see there.

    Raises:
        DataError: values that are missing, non-finite, of different lengths, or a denominator <= 0.
        ConfigError: a level or a number of resamples out of range.
    """
    return bootstrap_hierarchical([numerators], [denominators], num_resamples=num_resamples, level=level, seed=seed)


def bootstrap_hierarchical(
    numerators: Sequence[npt.ArrayLike],
    denominators: Sequence[npt.ArrayLike] | None = None,
    *,
    num_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return the ratio of sums pooled over training seeds and problems, and its interval over both.

    Each resample draws S training seeds with replacement, then P problems with replacement. Seeds and problems are
    crossed, every seed having been measured on the same problems, so **one** draw of problems is applied to all
    drawn seeds: a hard problem is hard for each of them, and more seeds do not make the problems more (the
    "pigeonhole bootstrap" of Owen 2007, arXiv:0712.1111, whose variance is not too small for the problems' part).

    What is not resampled: the completions within a problem; their sampling noise is part of the spread between
    problems. With S seeds the bootstrap sees only (S - 1) / S of the variance between seeds: with one seed none of
    it, with two half of it. An interval from few seeds is too narrow for "another training run".

    Args:
        numerators: S arrays [P], one a training seed, the same problems in the same order.
        denominators: as ``numerators``, > 0; absent: all 1, the statistic is a mean.
        num_resamples: see :func:`bootstrap_mean`, as ``level`` and ``seed``.
        level: see there.
        seed: see there.

    Raises:
        DataError: values that are missing, non-finite, of different lengths, or a denominator <= 0.
        ConfigError: a level or a number of resamples out of range.
    """
    num_SP, den_SP = _stack("values", numerators, denominators)
    resampled_R = np.concatenate(
        [
            _ratio(num_SP, den_SP, _draw(rng, len(problems_RP), len(num_SP)), problems_RP)
            for rng, problems_RP in _resamples(num_SP.shape[1], num_resamples, seed)
        ]
    )
    return _interval(num_SP.sum() / den_SP.sum(), resampled_R, level)


def bootstrap_difference(
    arm: Sequence[tuple[npt.ArrayLike, npt.ArrayLike | None]],
    baseline: Sequence[tuple[npt.ArrayLike, npt.ArrayLike | None]],
    *,
    num_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return ``arm - baseline`` of the pooled ratio and its interval, paired by problem.

    Each resample draws P problems with replacement and applies the same draw to both arms and all their seeds, so
    that what makes a problem easy for both cancels; training seeds are drawn with replacement for each arm on its
    own, since equal seed numbers of two arms are different runs. See :func:`bootstrap_hierarchical` for what few
    seeds cannot show.

    Args:
        arm: S pairs, one a training seed, of numerators [P] and denominators [P] (None: all 1).
        baseline: the same for the baseline, S may differ; the same problems in the same order.
        num_resamples: see :func:`bootstrap_mean`, as ``level`` and ``seed``.
        level: see there.
        seed: see there.

    Raises:
        DataError: values that are missing, non-finite, of different lengths, or a denominator <= 0.
        ConfigError: a level or a number of resamples out of range.
    """
    arm_SP, arm_den_SP = _stack_pairs("arm", arm)
    base_SP, base_den_SP = _stack_pairs("baseline", baseline)
    if arm_SP.shape[1] != base_SP.shape[1]:
        raise DataError(
            f"the arm has {arm_SP.shape[1]} problems and the baseline {base_SP.shape[1]}: a paired difference needs "
            f"the same problems in the same order on both sides."
        )
    resampled_R = np.concatenate(
        [
            _ratio(arm_SP, arm_den_SP, _draw(rng, len(problems_RP), len(arm_SP)), problems_RP)
            - _ratio(base_SP, base_den_SP, _draw(rng, len(problems_RP), len(base_SP)), problems_RP)
            for rng, problems_RP in _resamples(arm_SP.shape[1], num_resamples, seed)
        ]
    )
    return _interval(arm_SP.sum() / arm_den_SP.sum() - base_SP.sum() / base_den_SP.sum(), resampled_R, level)


def _resamples(num_problems: int, num_resamples: int, seed: int) -> Iterator[tuple[np.random.Generator, _Array]]:
    """Yield the generator and how often each resample draws each problem, [rows, P], a bounded chunk at a time."""
    if num_resamples < 1:
        raise ConfigError(f"num_resamples = {num_resamples}, allowed is 1 or more.")
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_ELEMENTS // num_problems)
    for start in range(0, num_resamples, chunk):
        rows = min(chunk, num_resamples - start)
        draws_RP = rng.integers(num_problems, size=(rows, num_problems)) + num_problems * np.arange(rows)[:, None]
        counts = np.bincount(draws_RP.ravel(), minlength=rows * num_problems)
        yield rng, counts.reshape(rows, num_problems).astype(np.float64)


def _draw(rng: np.random.Generator, rows: int, num_seeds: int) -> npt.NDArray[np.int64]:
    """Return how often each training seed is drawn in each resample: [rows, S], rows summing to S."""
    return rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=rows)


def _ratio(num_SP: _Array, den_SP: _Array, seeds_RS: npt.NDArray[np.int64], problems_RP: _Array) -> _Array:
    num_R = (seeds_RS * (problems_RP @ num_SP.T)).sum(axis=1)
    den_R = (seeds_RS * (problems_RP @ den_SP.T)).sum(axis=1)
    ratio_R: _Array = num_R / den_R
    return ratio_R


def _interval(value: float, resampled_R: _Array, level: float) -> Interval:
    if not 0 < level < 1:
        raise ConfigError(f"level = {level}, allowed is a number between 0 and 1 such as 0.95.")
    low, high = np.quantile(resampled_R, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))


def _stack_pairs(name: str, pairs: Sequence[tuple[npt.ArrayLike, npt.ArrayLike | None]]) -> tuple[_Array, _Array]:
    numerators = [numerator for numerator, _ in pairs]
    return _stack(name, numerators, [np.ones(np.shape(n)) if d is None else d for n, d in pairs])


def _stack(
    name: str, numerators: Sequence[npt.ArrayLike], denominators: Sequence[npt.ArrayLike] | None
) -> tuple[_Array, _Array]:
    if denominators is None:
        denominators = [np.ones(np.shape(numerator)) for numerator in numerators]
    rows = [np.asarray(row, np.float64) for row in (*numerators, *denominators)]
    if len(numerators) != len(denominators) or len({row.shape for row in rows}) != 1 or rows[0].ndim != 1:
        raise DataError(
            f"{name}: every training seed needs one value a problem, [P], for the same problems; "
            f"got shapes {[row.shape for row in rows]}."
        )
    num_SP, den_SP = np.stack(rows[: len(numerators)]), np.stack(rows[len(numerators) :])
    if not num_SP.size or not np.isfinite(num_SP).all() or not np.isfinite(den_SP).all():
        raise DataError(f"{name}: values must be finite and at least one problem is needed, got shape {num_SP.shape}.")
    if (den_SP <= 0).any():
        raise DataError(f"{name}: denominators must be > 0, the smallest is {den_SP.min()}.")
    return num_SP, den_SP
