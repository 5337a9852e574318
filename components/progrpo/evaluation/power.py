"""What a comparison could have found, and what it would take to find more."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from progrpo.evaluation.bootstrap import difference_terms, spread
from progrpo.evaluation.resampling import Array, bootstrap_terms, variance_parts, welch_df
from progrpo.evaluation.student import student_t_quantile

_MOST = 10**9  # problems or seeds beyond which nobody asks


@dataclass(frozen=True)
class Power:
    """A power note, see :func:`power_note`.

    Attributes:
        difference: arm minus baseline, as seen.
        detectable: the smallest true difference that a study like this one resolves with probability ``power``.
        target: the difference that ``problems_needed`` and ``seeds_needed`` are for.
        power: see ``detectable``.
        num_problems: P.
        num_seeds: of the arm and of the baseline.
        problems_needed: with these seeds, to resolve ``target`` with ``power``; None: no number is enough, the spread
            between training runs alone hides it.
        seeds_needed: of each arm, with these problems; None: no number is enough, or the runs are one of each arm and
            say nothing of their spread.
        text: all of it in words.
    """

    difference: float
    detectable: float
    target: float
    power: float
    num_problems: int
    num_seeds: tuple[int, int]
    problems_needed: int | None
    seeds_needed: int | None
    text: str


def power_note(
    arm: Sequence[tuple[npt.ArrayLike, npt.ArrayLike | None]],
    baseline: Sequence[tuple[npt.ArrayLike, npt.ArrayLike | None]],
    *,
    bounds: tuple[float, float] | None = None,
    target: float | None = None,
    power: float = 0.8,
    num_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Power:
    """Return which differences this study resolves, and what would resolve ``target``.

    The half-width is that of the interval which :func:`progrpo.evaluation.bootstrap.bootstrap_difference` gives; the
    true difference must exceed it by the normal quantile of ``power`` times the standard error. More problems shrink
    the part of the variance that problems make, more seeds that of the training runs (and what seeds and problems
    make together, which is counted in both). The estimate is as good as the variances it starts from: with few
    seeds, a guess.

    Args:
        arm: S pairs, one a training seed, of numerators [P] and denominators [P] (None: all 1).
        baseline: the same for the baseline.
        bounds: of one arm's ratio on a problem.
        target: a difference to ask for, not 0; absent: the one seen.
        power: probability to resolve it, between 0 and 1.
        num_resamples: of the interval, as ``level`` and ``seed``.
        level: see there.
        seed: see there.

    Raises:
        DataError: as :func:`progrpo.evaluation.bootstrap.bootstrap_difference`.
        ConfigError: a level or a number of resamples out of range.
    """
    terms = difference_terms(arm, baseline)
    interval = bootstrap_terms(terms, spread(bounds), num_resamples=num_resamples, level=level, seed=seed)
    _, problems, seeds = variance_parts(terms)
    difference = float(interval.value[0])
    half = max(float(interval.high[0]) - difference, difference - float(interval.low[0]))
    se = math.sqrt(float(problems[0]) + sum(float(part[0]) for part, _ in seeds))
    detectable = half + NormalDist().inv_cdf(power) * se
    wanted = abs(difference if target is None else target)
    num_problems, num_seeds = terms[0].num_SPK.shape[1], (len(terms[0].num_SPK), len(terms[1].num_SPK))
    unseen = 0.0 if bounds is None else bounds[1] - bounds[0]

    def reaches(more_problems: float, more_seeds: float) -> bool:
        parts = [(part / more_seeds, max(2, round(s * more_seeds))) for part, s in seeds]
        count = round(num_problems * more_problems)
        least = detectable_difference(problems / more_problems, parts, count, power, level, unseen)
        return least <= wanted

    needed_problems = _smallest(num_problems, lambda count: reaches(count / num_problems, 1.0)) if wanted else None
    needed_seeds = None
    if wanted and seeds:
        first = max(num_seeds)
        needed_seeds = _smallest(first, lambda count: reaches(1.0, count / first))
    return Power(
        difference=difference,
        detectable=detectable,
        target=wanted,
        power=power,
        num_problems=num_problems,
        num_seeds=num_seeds,
        problems_needed=needed_problems,
        seeds_needed=needed_seeds,
        text=_text(detectable, wanted, power, num_problems, num_seeds, needed_problems, needed_seeds),
    )


def detectable_difference(
    problems: Array,
    seeds: Sequence[tuple[Array, int]],
    num_problems: int,
    power: float,
    level: float,
    unseen_range: float,
) -> float:
    """Return the smallest true difference that is resolved with probability ``power``, given the variances.

    Args:
        problems: variance that another draw of problems makes, [1].
        seeds: for each arm with several seeds the variance of other seeds [1], and their number.
        num_problems: P.
        power: probability to resolve it.
        level: of the interval.
        unseen_range: how much a problem can differ, for what no sample of P problems shows; 0: not allowed for.
    """
    variance = problems + sum((part for part, _ in seeds), np.zeros(1))
    se = math.sqrt(float(variance[0]))
    df = welch_df(num_problems, problems, seeds)
    half = max(
        float(student_t_quantile((1 + level) / 2, df)[0]) * se,
        unseen_range * (1 - (1 - level) ** (1 / num_problems)),
    )
    return float(half + NormalDist().inv_cdf(power) * se)


def _smallest(start: int, enough: Callable[[int], bool]) -> int | None:
    """Return the smallest whole number from ``start`` on that is enough, by doubling and halving; None: none is."""
    low = high = start
    while not enough(high):
        if high > _MOST:
            return None
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return start if enough(start) else high


def _text(
    detectable: float,
    wanted: float,
    power: float,
    num_problems: int,
    num_seeds: tuple[int, int],
    problems: int | None,
    seeds: int | None,
) -> str:
    arms = f"{num_seeds[0]}" if num_seeds[0] == num_seeds[1] else f"{num_seeds[0]} and {num_seeds[1]}"
    text = (
        f"With {num_problems} problems and {arms} training seeds an arm, a true difference under {detectable:.3g} is "
        f"resolved in less than {power:.0%} of such studies."
    )
    if not wanted or (problems is not None and problems <= num_problems):
        return text
    ways = [
        f"{problems} problems" if problems is not None else "",
        f"{seeds} seeds an arm" if seeds is not None else "",
    ]
    named = " or ".join(way for way in ways if way)
    if not named:
        return text + f" Neither more problems nor more seeds alone would resolve {wanted:.3g}."
    return text + f" To resolve {wanted:.3g} would take about {named}."
