"""Bootstrap intervals against theory, simulation and each other."""

import numpy as np
import pytest

from progrpo.errors import ConfigError, DataError
from progrpo.evaluation import bootstrap
from progrpo.evaluation.bootstrap import (
    Interval,
    bootstrap_difference,
    bootstrap_hierarchical,
    bootstrap_mean,
    bootstrap_ratio,
)


def _width(interval: Interval) -> float:
    return interval.high - interval.low


def test_constant_values_have_no_width() -> None:
    assert bootstrap_mean([0.25] * 7) == Interval(0.25, 0.25, 0.25)


def test_two_problems_by_hand() -> None:
    # values 0 and 1: a resample's mean is 0, 1/2, 1 with probability 1/4, 1/2, 1/4, so the quartiles cover 0 ... 1 at
    # 95 % and exactly the middle half at 40 %
    assert bootstrap_mean([0, 1]) == Interval(0.5, 0.0, 1.0)
    assert bootstrap_mean([0, 1], level=0.4) == Interval(0.5, 0.5, 0.5)


def test_width_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=2000)
    interval = bootstrap_mean(values, num_resamples=4000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_coverage_of_a_known_mean() -> None:
    """Of 400 data sets with true mean 0.3, about 95 % of the intervals hold it (binomial sd: 1.1 points)."""
    rng = np.random.default_rng(2)
    hits = 0
    for trial in range(400):
        interval = bootstrap_mean(rng.binomial(1, 0.3, size=200), num_resamples=400, seed=trial)
        hits += interval.low <= 0.3 <= interval.high
    assert 0.915 <= hits / 400 <= 0.98


def test_ratio_weights_by_the_denominator() -> None:
    # (1 + 9) / (1 + 3) = 2.5, whereas the mean of the ratios 1 and 3 is 2; resamples give 1, 2.5 and 3
    assert bootstrap_ratio([1, 9], [1, 3]) == Interval(2.5, 1.0, 3.0)


def test_same_seed_same_interval_and_another_seed_another() -> None:
    values = np.random.default_rng(3).random(50)
    assert bootstrap_mean(values, seed=5) == bootstrap_mean(values, seed=5)
    assert bootstrap_mean(values, seed=5) != bootstrap_mean(values, seed=6)


def test_memory_is_bounded_by_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).random(100)
    whole = bootstrap_mean(values, num_resamples=3000)
    sizes = []
    original = bootstrap._ratio
    monkeypatch.setattr(bootstrap, "_CHUNK_ELEMENTS", 1000)
    monkeypatch.setattr(bootstrap, "_ratio", lambda *args: (sizes.append(args[3].size), original(*args))[1])
    chunked = bootstrap_mean(values, num_resamples=3000)
    assert max(sizes) <= 1000
    assert chunked.value == whole.value
    assert chunked.low == pytest.approx(whole.low, abs=0.1 * _width(whole))


def test_one_seed_is_the_bootstrap_over_problems() -> None:
    values = np.random.default_rng(5).random(40)
    assert bootstrap_hierarchical([values]) == bootstrap_mean(values)


def test_spread_between_seeds_widens_the_interval() -> None:
    """Seed means 0, 1, ..., 7 on identical problems: the variance is that of a mean of 8 drawn seeds."""
    seeds = [np.full(30, float(s)) for s in range(8)]
    interval = bootstrap_hierarchical(seeds, num_resamples=20_000)
    half = 1.96 * np.std(np.arange(8)) / np.sqrt(8)
    assert interval.value == 3.5
    assert _width(interval) / 2 == pytest.approx(half, rel=0.08)


def test_one_draw_of_problems_serves_all_seeds() -> None:
    """Seeds that agree on every problem must not narrow the interval: there are no more problems than before."""
    values = np.random.default_rng(6).random(100)
    one, four = bootstrap_mean(values, num_resamples=4000), bootstrap_hierarchical([values] * 4, num_resamples=4000)
    assert _width(four) == pytest.approx(_width(one), rel=0.08)


def test_coverage_with_crossed_seeds_and_problems() -> None:
    """Value = problem effect + seed effect + noise, 10 seeds x 60 problems, true mean 0."""
    rng = np.random.default_rng(7)
    hits = 0
    for trial in range(300):
        values = rng.normal(size=60) + 0.3 * rng.normal(size=(10, 1)) + 0.5 * rng.normal(size=(10, 60))
        interval = bootstrap_hierarchical(list(values), num_resamples=400, seed=trial)
        hits += interval.low <= 0 <= interval.high
    assert 0.90 <= hits / 300 <= 0.985


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
    """Equal seeds in both arms do not cancel: with constants 0 and 1 the difference reaches -1 and 1."""
    seeds = [(np.zeros(5), None), (np.ones(5), None)]
    assert bootstrap_difference(seeds, seeds) == Interval(0.0, -1.0, 1.0)


def test_arms_may_differ_in_seeds_and_use_ratios() -> None:
    arm = [([2.0, 2.0], [1.0, 1.0]), ([6.0, 6.0], [3.0, 3.0])]
    assert bootstrap_difference(arm, [([1.0, 3.0], [1.0, 3.0])]) == Interval(1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("numerators", "denominators"),
    [([], []), ([[]], None), ([[1.0, np.nan]], None), ([[1.0], [1.0, 2.0]], None), ([[1.0]], [[0.0]]), ([[1.0]], [])],
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
