"""What a comparison could have found, and what it would take to find more."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Unpack

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from progrpo.evaluation.bootstrap import Runs, difference_terms, spread
from progrpo.evaluation.resampling import DEFAULT_LEVEL, Array, Bootstrap, bootstrap_terms, variance_parts, welch_df
from progrpo.evaluation.student import student_t_quantile

_MOST = 10**9  # problems or seeds beyond which nobody asks


class PowerNote(BaseModel):
    """What a comparison could have resolved of one metric, and what would resolve a difference."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    power: float = Field(description="probability to resolve, that of the other fields")
    detectable: float = Field(description="smallest true difference that is resolved, in the metric's unit")
    problems_needed: int | None = Field(description="with these seeds; None: no number is enough")
    seeds_needed: int | None = Field(description="of each arm, with these problems; None: none is enough or not known")


def power_note(
    arm: Runs,
    baseline: Runs,
    *,
    bounds: tuple[float, float] | None = None,
    target: float | None = None,
    power: float = 0.8,
    **bootstrap: Unpack[Bootstrap],
) -> PowerNote:
    """Return which differences this study resolves, and what would resolve ``target``.

    The half-width is that of the interval which :func:`progrpo.evaluation.bootstrap.bootstrap_difference` gives; the
    true difference must exceed it by the normal quantile of ``power`` times the standard error. More problems shrink
    the part of the variance that problems make, more seeds that of the training runs (and what seeds and problems
    make together, which is counted in both). The estimate is as good as the variances it starts from: with few
    seeds, a guess.

    Args:
        arm: S pairs of arrays [P].
        baseline: the same for the baseline.
        bounds: of one arm's ratio on a problem.
        target: a difference to ask for, not 0; absent: the one seen.
        power: probability to resolve it, between 0 and 1.
        **bootstrap: of the interval.

    Raises:
        DataError: as :func:`progrpo.evaluation.bootstrap.bootstrap_difference`.
        ConfigError: a level or a number of resamples out of range.
    """
    terms = difference_terms(arm, baseline)
    interval = bootstrap_terms(terms, spread(bounds), **bootstrap)
    _, problems, seeds = variance_parts(terms)
    difference = float(interval.value[0])
    half = max(float(interval.high[0]) - difference, difference - float(interval.low[0]))
    se = math.sqrt(float(problems[0]) + sum(float(part[0]) for part, _ in seeds))
    detectable = half + NormalDist().inv_cdf(power) * se
    wanted = abs(difference if target is None else target)
    num_problems = terms[0].num_SPK.shape[1]
    level = bootstrap.get("level", DEFAULT_LEVEL)
    unseen = 0.0 if bounds is None else bounds[1] - bounds[0]

    def reaches(more_problems: float, more_seeds: float) -> bool:
        parts = [(part / more_seeds, max(2, round(s * more_seeds))) for part, s in seeds]
        count = round(num_problems * more_problems)
        least = detectable_difference(problems / more_problems, parts, count, power, level, unseen)
        return least <= wanted

    needed_problems = _smallest(num_problems, lambda count: reaches(count / num_problems, 1.0)) if wanted else None
    needed_seeds = None
    if wanted and seeds:
        first = max(len(term.num_SPK) for term in terms)
        needed_seeds = _smallest(first, lambda count: reaches(1.0, count / first))
    return PowerNote(power=power, detectable=detectable, problems_needed=needed_problems, seeds_needed=needed_seeds)


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
