"""Bootstrap intervals against theory, simulation and each other."""

from math import comb

import numpy as np
import pytest

from progrpo.errors import ConfigError, DataError
from progrpo.evaluation import resampling
from progrpo.evaluation.bootstrap import (
    bootstrap_curve,
    bootstrap_curve_difference,
    bootstrap_difference,
    bootstrap_hierarchical,
    bootstrap_mean,
    probability_of_superiority,
)
from progrpo.evaluation.resampling import Interval, Term, bootstrap_terms


def _width(interval: Interval) -> float:
    return interval.high - interval.low


def test_constant_values_have_no_width() -> None:
    assert bootstrap_mean([0.25] * 7) == Interval(0.25, 0.25, 0.25)


def test_two_problems_that_disagree() -> None:
    # The standard error of 0 and 1 is 1/2, t with one degree of freedom 12.7: two problems say nothing within [0, 1].
    assert bootstrap_mean([0, 1], bounds=(0, 1)) == Interval(0.5, 0.0, 1.0)
    low, high = 0.5 - 12.706 / 2, 0.5 + 12.706 / 2
    wide = bootstrap_mean([0, 1], num_resamples=200_000)
    # weights of two problems are uniform, whose 2.5 % quantile lies 0.95 / (2 x 1.96 x 0.2887) = 0.8395 as far out
    assert (wide.low, wide.high) == pytest.approx((0.5 + (low - 0.5) * 0.8395, 0.5 + (high - 0.5) * 0.8395), rel=0.01)


def test_problems_no_sample_shows_are_allowed_for() -> None:
    # A kind of problem with more than 1 - 0.05^(1/10) = 25.9 % of all is absent among 10 with probability 5 %.
    unsolved = bootstrap_mean(np.zeros(10), bounds=(0, 1))
    assert unsolved == Interval(0.0, 0.0, pytest.approx(1 - 0.05**0.1))
    assert bootstrap_mean(np.ones(10), bounds=(0, 1)) == Interval(1.0, pytest.approx(0.05**0.1), 1.0)
    # two arms that agree everywhere: one could still win on what was not seen
    none = [(np.zeros(10), None)]
    assert bootstrap_difference(none, none, bounds=(0, 1)).high == pytest.approx(1 - 0.05**0.1)
    # without bounds nothing is known of what was not seen
    assert bootstrap_mean(np.zeros(10)) == Interval(0.0, 0.0, 0.0)


def test_values_outside_of_their_bounds() -> None:
    with pytest.raises(DataError, match=r"5\.0 is outside of its bounds 0\.0 \.\.\. 1\.0"):
        bootstrap_mean([4, 6], bounds=(0, 1))


def test_width_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=2000)
    interval = bootstrap_mean(values, num_resamples=4000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def _coverage(values_PM: np.ndarray, truth: float, bounds: tuple[float, float] | None) -> float:
    """Fraction of M data sets whose interval holds the truth."""
    curve = bootstrap_terms([Term(1.0, values_PM[None], None)], bounds, num_resamples=600)
    return float(((curve.low <= truth + 1e-12) & (truth - 1e-12 <= curve.high)).mean())


@pytest.mark.parametrize("num_problems", [10, 20, 30, 100])
def test_exact_coverage_where_problems_are_solved_or_not(num_problems: int) -> None:
    """Every rate from 0.001 to 0.999, no simulation: the binomial law of how many are solved, by its closed form."""
    solved = (np.arange(num_problems)[:, None] < np.arange(num_problems + 1)).astype(float)
    curve = bootstrap_terms([Term(1.0, solved[None], None)], (0, 1), num_resamples=8000)
    rates = np.linspace(0.001, 0.999, 999)[:, None]
    binomials = [comb(num_problems, c) for c in range(num_problems + 1)]
    counts = np.arange(num_problems + 1)
    law = np.array(binomials, float) * rates**counts * (1 - rates) ** (num_problems - counts)
    coverage = (law * ((curve.low <= rates) & (rates <= curve.high))).sum(1)
    assert coverage.min() >= 0.93
    if num_problems == 100:
        assert coverage[300:700].max() <= 0.975


# How hard problems are: Beta distributions, and mixtures in which some are never or always solved.
_POPULATIONS: dict[str, list[tuple[float, tuple[float, float] | float]]] = {
    "uniform": [(1.0, (1, 1))],
    "middling": [(1.0, (5, 5))],
    "u-shaped": [(1.0, (0.2, 0.2))],
    "equally hard": [(1.0, 0.5)],
    "hard": [(1.0, (0.5, 2))],
    "very hard": [(1.0, (0.1, 10))],
    "rarely possible": [(0.95, (1, 20)), (0.05, 1.0)],
    "mostly never, some always": [(0.6, 0.0), (0.1, (2, 2)), (0.3, 1.0)],
    "easy but for a few": [(0.97, (20, 1)), (0.03, 0.0)],
    "one in a hundred": [(0.99, 0.0), (0.01, 1.0)],
}
_MODERATE = {"uniform", "middling", "u-shaped", "equally hard", "mostly never, some always"}


def _population(name: str, rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, float]:
    parts = _POPULATIONS[name]
    kind = rng.choice(len(parts), p=[weight for weight, _ in parts], size=size)
    draws = [rng.beta(*of, size=size) if isinstance(of, tuple) else np.full(size, of) for _, of in parts]
    truth = sum(weight * (of[0] / sum(of) if isinstance(of, tuple) else of) for weight, of in parts)
    return np.choose(kind, draws), float(truth)


@pytest.mark.parametrize("name", _POPULATIONS)
@pytest.mark.parametrize(("num_problems", "num_samples"), [(10, 32), (10, 4), (100, 8)])
def test_coverage_of_pass_at_1_with_a_known_truth(name: str, num_problems: int, num_samples: int) -> None:
    """Of 1,000 simulated evaluations the intervals of at least 93 % hold the true rate (sd of 95 %: 0.7 points)."""
    rng = np.random.default_rng(11)
    rates, truth = _population(name, rng, (num_problems, 1000))
    coverage = _coverage(rng.binomial(num_samples, rates) / num_samples, truth, (0, 1))
    assert coverage >= 0.93
    if num_problems == 100 and name in _MODERATE:
        assert coverage <= 0.975


@pytest.mark.parametrize("name", _POPULATIONS)
@pytest.mark.parametrize("num_problems", [10, 100])
def test_coverage_of_a_difference_with_a_known_truth(name: str, num_problems: int) -> None:
    """The arm solves 30 % of what the baseline fails at: pairing, and rates near 0 and 1."""
    rng = np.random.default_rng(12)
    rates, truth = _population(name, rng, (num_problems, 1000))
    difference = (rng.binomial(8, rates + 0.3 * (1 - rates)) - rng.binomial(8, rates)) / 8
    assert _coverage(difference, 0.3 * (1 - truth), (-1, 1)) >= 0.93


@pytest.mark.parametrize("num_problems", [10, 100])
def test_coverage_of_an_unbounded_mean(num_problems: int) -> None:
    rng = np.random.default_rng(13)
    assert 0.93 <= _coverage(rng.normal(3, 2, (num_problems, 2000)), 3.0, None) <= 0.98
    # lengths are skewed: a lognormal's mean is missed to one side more often, 10 of them show too little of its tail
    skewed = _coverage(rng.lognormal(0, 0.5, (num_problems, 2000)), float(np.exp(0.125)), None)
    assert skewed >= 0.93


def test_ratio_weights_by_the_denominator() -> None:
    # (1 + 9) / (1 + 3) = 2.5, whereas the mean of the ratios 1 and 3 is 2; no weights leave 1 ... 3
    assert bootstrap_hierarchical([[1, 9]], [[1, 3]], bounds=(1, 3)) == Interval(2.5, 1.0, 3.0)


def test_same_seed_same_interval_and_another_seed_another() -> None:
    values = np.random.default_rng(3).random(50)
    assert bootstrap_mean(values, seed=5) == bootstrap_mean(values, seed=5)
    assert bootstrap_mean(values, seed=5) != bootstrap_mean(values, seed=6)


def test_memory_is_bounded_by_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).random(100)
    whole = bootstrap_mean(values, num_resamples=3000)
    sizes = []
    original = resampling._weighted
    monkeypatch.setattr(resampling, "_CHUNK_ELEMENTS", 1000)
    monkeypatch.setattr(resampling, "_weighted", lambda *args: (sizes.append(100 * len(args[1])), original(*args))[1])
    chunked = bootstrap_mean(values, num_resamples=3000)
    assert max(sizes) <= 1000
    assert chunked.value == whole.value
    assert chunked.low == pytest.approx(whole.low, abs=0.1 * _width(whole))


def test_one_seed_is_the_bootstrap_over_problems() -> None:
    values = np.random.default_rng(5).random(40)
    assert bootstrap_hierarchical([values]) == bootstrap_mean(values)


def test_spread_between_seeds_widens_the_interval() -> None:
    """Seed means 0, 1, ..., 7 on identical problems: t with 7 degrees of freedom times the standard error of 8 runs."""
    seeds = [np.full(30, float(s)) for s in range(8)]
    interval = bootstrap_hierarchical(seeds, num_resamples=20_000)
    half = 2.365 * np.std(np.arange(8), ddof=1) / np.sqrt(8)
    assert interval.value == 3.5
    assert _width(interval) / 2 == pytest.approx(half, rel=0.03)


def test_one_draw_of_problems_serves_all_seeds() -> None:
    """Seeds that agree on every problem must not narrow the interval: there are no more problems than before."""
    values = np.random.default_rng(6).random(100)
    one, four = bootstrap_mean(values, num_resamples=4000), bootstrap_hierarchical([values] * 4, num_resamples=4000)
    assert _width(four) == pytest.approx(_width(one), rel=0.08)


@pytest.mark.parametrize(("num_seeds", "spread"), [(10, 0.3), (3, 0.0), (3, 0.1), (5, 0.3)])
def test_coverage_with_crossed_seeds_and_problems(num_seeds: int, spread: float) -> None:
    """Value = problem effect + seed effect + noise, 60 problems, true mean 0, 600 data sets."""
    rng = np.random.default_rng(7)
    hits = 0
    for trial in range(600):
        noise = spread * rng.normal(size=(num_seeds, 1)) + 0.5 * rng.normal(size=(num_seeds, 60))
        interval = bootstrap_hierarchical(list(rng.normal(size=60) + noise), num_resamples=200, seed=trial)
        hits += not interval.excludes(0)
    assert 0.92 <= hits / 600 <= 0.985


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.2])
def test_error_rate_of_a_difference_with_two_seeds(spread: float) -> None:
    """Two arms that are the same but for chance, two runs of each, 500 studies: at most 7 % are called different."""
    rng = np.random.default_rng(17)
    wrong = 0
    for trial in range(500):
        problems = rng.normal(size=60)
        arms = [list(problems + spread * rng.normal(size=(2, 1)) + 0.3 * rng.normal(size=(2, 60))) for _ in range(2)]
        pairs = [[(values, None) for values in arm] for arm in arms]
        wrong += bootstrap_difference(*pairs, num_resamples=200, seed=trial).excludes(0)
    assert wrong / 500 <= 0.07


def test_pairing_cancels_what_both_arms_share() -> None:
    rng = np.random.default_rng(8)
    shared = rng.random(200)
    arm, baseline = shared + 0.1 + 0.01 * rng.normal(size=200), shared
    paired = bootstrap_difference([(arm, None)], [(baseline, None)])
    unpaired = bootstrap_difference([(arm, None)], [(rng.permutation(baseline), None)])
    assert paired.value == pytest.approx(unpaired.value)
    assert _width(paired) < _width(unpaired) / 10
    assert paired.low <= 0.1 <= paired.high


def test_an_arm_against_itself_differs_by_nothing() -> None:
    values = np.random.default_rng(9).random(30)
    assert bootstrap_difference([(values, values + 1)], [(values, values + 1)]) == Interval(0.0, 0.0, 0.0)


def test_seeds_are_drawn_for_each_arm_on_its_own() -> None:
    """Equal seeds in both arms do not cancel: with runs at 0 and 1 in both, either may be better by up to 1."""
    seeds = [(np.zeros(5), None), (np.ones(5), None)]
    assert bootstrap_difference(seeds, seeds, bounds=(0, 1)) == Interval(0.0, -1.0, 1.0)


def test_arms_may_differ_in_seeds_and_use_ratios() -> None:
    arm = [([2.0, 2.0], [1.0, 1.0]), ([6.0, 6.0], [3.0, 3.0])]
    assert bootstrap_difference(arm, [([1.0, 3.0], [1.0, 3.0])]) == Interval(1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("numerators", "denominators"),
    [
        ([], []),
        ([[]], None),
        ([[1.0, np.nan]], None),
        ([[1.0], [1.0, 2.0]], None),
        ([[1.0]], [[0.0]]),
        ([[1.0, 1.0]], [[2.0, -1.0]]),
        ([[1.0]], []),
    ],
)
def test_unusable_values(numerators: list[list[float]], denominators: list[list[float]] | None) -> None:
    with pytest.raises(DataError, match="values"):
        bootstrap_hierarchical(numerators, denominators)


def test_arms_with_other_problems() -> None:
    with pytest.raises(DataError, match="arm has 2 problems and the baseline 1"):
        bootstrap_difference([([1, 2], None)], [([1], None)])


def test_level_and_resamples_are_checked() -> None:
    with pytest.raises(ConfigError, match="level = 95"):
        bootstrap_mean([1, 2], level=95)
    with pytest.raises(ConfigError, match="num_resamples = 0"):
        bootstrap_mean([1, 2], num_resamples=0)


def test_a_curve_holds_each_point_and_the_band_all_of_them() -> None:
    rng = np.random.default_rng(20)
    values = rng.random((40, 12))
    curve = bootstrap_curve([values], bounds=(0, 1), num_resamples=4000)
    first = bootstrap_mean(values[:, 0], bounds=(0, 1), num_resamples=4000)
    assert (curve.value[0], curve.low[0], curve.high[0]) == pytest.approx((first.value, first.low, first.high))
    assert (curve.band_low < curve.low).all()
    assert (curve.band_high > curve.high).all()
    # copies of one point are one point: nothing is paid for looking at it twelve times
    copies = bootstrap_curve([values[:, :1].repeat(12, 1)], bounds=(0, 1), num_resamples=4000)
    assert copies.band_high - copies.band_low == pytest.approx(copies.high - copies.low, rel=0.1)


def test_the_band_covers_the_whole_curve() -> None:
    """12 independent points: the pointwise intervals hold all at once in 0.95^12 = 54 %, the band in 95 %."""
    rng = np.random.default_rng(21)
    points = bands = 0
    for trial in range(300):
        curve = bootstrap_curve([rng.normal(size=(100, 12))], num_resamples=400, seed=trial)
        points += bool(((curve.low <= 0) & (curve.high >= 0)).all())
        bands += bool(((curve.band_low <= 0) & (curve.band_high >= 0)).all())
    assert points / 300 < 0.7
    assert bands / 300 >= 0.92


def test_a_difference_of_curves_is_paired() -> None:
    rng = np.random.default_rng(22)
    shared = rng.random((50, 3))
    curve = bootstrap_curve_difference([(shared + np.array([0.0, 0.1, 0.2]), None)], [(shared, None)])
    assert curve.value == pytest.approx([0.0, 0.1, 0.2])
    assert curve.high - curve.low == pytest.approx([0, 0, 0], abs=1e-9)


def test_problems_may_lack_a_part_of_a_curve() -> None:
    """Completions of the second problem never reach the second bin: its entropy there weighs nothing."""
    curve = bootstrap_curve([[[2.0, 3.0], [4.0, 0.0]]], [[[1.0, 1.0], [1.0, 0.0]]])
    assert curve.value == pytest.approx([3.0, 3.0])


def test_superiority_by_hand() -> None:
    # better, better, tie, worse: (1 + 1 + 1/2 + 0) / 4
    value = probability_of_superiority([[1, 1, 0, 0]], [[0, 0, 0, 1]]).value
    assert value == pytest.approx(0.625)
    # two runs against one: on the first problem one of two wins, on the second both
    assert probability_of_superiority([[1, 1], [0, 1]], [[0.5, 0.5]]).value == pytest.approx(0.75)
    assert probability_of_superiority([[1] * 20], [[0] * 20]).excludes(0.5)
    assert not probability_of_superiority([[0.3] * 20], [[0.3] * 20]).excludes(0.5)
