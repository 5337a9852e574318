"""Pass@k against enumeration, hand-computed numbers and its own laws."""

from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from progrpo.errors import ConfigError, DataError
from progrpo.evaluation.pass_at_k import pass_at_k


@pytest.mark.parametrize("n", range(1, 9))
def test_equals_enumeration_of_all_subsets(n: int) -> None:
    for k in range(1, n + 1):
        expected = []
        for c in range(n + 1):
            is_correct = [True] * c + [False] * (n - c)
            subsets = list(combinations(is_correct, k))
            expected.append(sum(any(subset) for subset in subsets) / len(subsets))
        np.testing.assert_allclose(pass_at_k(n, np.arange(n + 1), k), expected, rtol=1e-13, atol=0)


def test_hand_numbers() -> None:
    # n = 5, c = 2, k = 2: 1 - C(3,2)/C(5,2) = 1 - 3/10; k = 4: fewer than 4 are wrong
    assert pass_at_k(5, [2], 2)[0] == pytest.approx(0.7, abs=1e-15)
    assert pass_at_k(5, [2], 4)[0] == 1.0
    # k = 1 is c / n
    np.testing.assert_allclose(pass_at_k(4, [0, 1, 2, 3, 4], 1), [0, 0.25, 0.5, 0.75, 1], atol=1e-15)
    # n = 32, c = 1, k = 8: 1 - 24/32 ... = 8/32
    assert pass_at_k(32, [1], 8)[0] == pytest.approx(0.25, abs=1e-15)


def test_problems_may_differ_in_n() -> None:
    np.testing.assert_allclose(pass_at_k([2, 4, 2], [1, 1, 0], 2), [1.0, 0.5, 0.0], atol=1e-15)


@pytest.mark.parametrize(("n", "c", "k"), [(100_000, 1, 1), (100_000, 37, 1024), (100_000, 3, 99_997), (2000, 900, 3)])
def test_large_counts_against_exact_integers(n: int, c: int, k: int) -> None:
    exact = 1 - Fraction(comb(n - c, k), comb(n, k))
    assert pass_at_k(n, [c], k)[0] == pytest.approx(float(exact), rel=1e-11)


@st.composite
def _counts(draw: st.DrawFn) -> tuple[int, int, int]:
    n = draw(st.integers(1, 200))
    return n, draw(st.integers(0, n)), draw(st.integers(1, n))


@given(_counts())
def test_laws(counts: tuple[int, int, int]) -> None:
    n, c, k = counts
    value = pass_at_k(n, [c], k)[0]
    assert 0.0 <= value <= 1.0
    assert (value == 0.0) == (c == 0)
    assert pass_at_k(n, [c], n)[0] == float(c > 0)
    if c < n:
        assert pass_at_k(n, [c + 1], k)[0] >= value
    if k < n:
        assert pass_at_k(n, [c], k + 1)[0] >= value


@pytest.mark.parametrize("k", [0, -1, 9])
def test_k_outside_1_to_n_is_named(k: int) -> None:
    with pytest.raises(ConfigError, match=f"k = {k}, but Pass@k needs 1 <= k <= n = 8"):
        pass_at_k([8, 16], [1, 1], k)


@pytest.mark.parametrize("c", [-1, 5])
def test_impossible_counts_name_the_problem(c: int) -> None:
    with pytest.raises(DataError, match=f"problem 1: {c} correct of 4"):
        pass_at_k(4, [0, c], 1)


@pytest.mark.parametrize("values", [[0.5], [[1]], [True]])
def test_counts_must_be_a_row_of_integers(values: list[object]) -> None:
    with pytest.raises(DataError, match="num_correct must be"):
        pass_at_k(4, values, 1)  # type: ignore[arg-type]  # wrong on purpose


def test_shapes_must_fit() -> None:
    with pytest.raises(DataError, match="shapes"):
        pass_at_k([4, 4, 4], [1, 1], 1)
