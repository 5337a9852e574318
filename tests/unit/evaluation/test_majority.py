"""Majority@k and G-Pass@k against enumeration of every subset, straight from their definitions."""

from fractions import Fraction
from itertools import combinations
from math import ceil, comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from progrpo.errors import ConfigError, DataError
from progrpo.evaluation.majority import majority_at_k
from progrpo.evaluation.pass_at_k import g_pass_at_k, mg_pass_at_k, pass_at_k


def _vote(answers: tuple[str | None, ...]) -> Fraction:
    """Probability that the winner is right, answers starting with R being right."""
    counts = {answer: answers.count(answer) for answer in set(answers) - {None}}
    leaders = [answer for answer, count in counts.items() if count == max(counts.values())]
    return Fraction(sum(answer.startswith("R") for answer in leaders), len(leaders)) if leaders else Fraction(0)


def _enumerated(wrong: list[int], right: list[int], num_silent: int, k: int) -> float:
    answers = [f"W{i}" for i, count in enumerate(wrong) for _ in range(count)]
    answers += [f"R{i}" for i, count in enumerate(right) for _ in range(count)] + [None] * num_silent
    subsets = list(combinations(answers, k))
    return float(sum(map(_vote, subsets)) / len(subsets))


@settings(max_examples=60, deadline=None)
@given(
    wrong=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    right=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    silent=st.integers(0, 2),
)
def test_majority_is_the_mean_over_all_subsets(wrong: list[int], right: list[int], silent: int) -> None:
    n = sum(wrong) + sum(right) + silent
    if not 1 <= n <= 11:
        return
    for k in range(1, n + 1):
        (value,) = majority_at_k(n, [wrong], [right], k)
        assert value == pytest.approx(_enumerated(wrong, right, silent, k), abs=1e-12)


def test_majority_by_hand() -> None:
    # 3 right, 2 equal wrong. k = 1: 3/5. k = 3: two or three right of 10 subsets: 3 x 2 + 1 = 7. All: 3 beat 2.
    values = [majority_at_k(5, [[2]], [[3]], k)[0] for k in (1, 3, 5)]
    assert values == pytest.approx([0.6, 0.7, 1.0])
    # many rare wrong answers lose against few equal right ones: 2 of 8 are right, 6 differ; k = 8
    assert majority_at_k(8, [[1] * 6], [[2]], 8) == 1.0
    # nobody answers
    assert majority_at_k(4, [[0]], [[0]], 2) == 0.0


def test_majority_of_one_is_the_accuracy_and_problems_are_independent() -> None:
    rng = np.random.default_rng(0)
    wrong, right = rng.multinomial(20, np.full(6, 1 / 6), size=200)[:, :4], None
    right = 30 - wrong.sum(1, keepdims=True) - rng.integers(0, 5, (200, 1))
    assert majority_at_k(30, wrong, right, 1) == pytest.approx(right[:, 0] / 30)
    together = majority_at_k(30, wrong, right, 8)
    alone = [majority_at_k(30, wrong[p : p + 1], right[p : p + 1], 8)[0] for p in range(200)]
    assert together == pytest.approx(alone)
    assert ((together >= 0) & (together <= 1)).all()


def test_majority_of_many_samples_agrees_with_drawing_subsets() -> None:
    """n = 64, k = 16, 20,000 subsets drawn: within four standard errors."""
    rng = np.random.default_rng(1)
    answers = np.repeat([0, 1, 2, 3, 4, 5], [20, 18, 10, 8, 4, 4])
    hits = 0.0
    for _ in range(20_000):
        counts = np.bincount(rng.permutation(answers)[:16], minlength=6)
        leaders = np.flatnonzero(counts == counts.max())
        hits += (leaders == 1).sum() / len(leaders)
    (value,) = majority_at_k(64, [[20, 10, 8, 4, 4]], [[18]], 16)
    assert value == pytest.approx(hits / 20_000, abs=4 * 0.5 / 20_000**0.5)


def test_majority_refuses_what_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="k = 6"):
        majority_at_k(5, [[2]], [[3]], 6)
    with pytest.raises(DataError, match="at most n = 4"):
        majority_at_k(4, [[2]], [[3]], 1)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 12), data=st.data())
def test_g_pass_by_counting_subsets(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    numbers = [sum(subset) for subset in combinations([1] * c + [0] * (n - c), k)]
    for tau in (0.25, 0.5, 0.75, 1.0):
        expected = sum(number >= ceil(tau * k) for number in numbers) / len(numbers)
        assert g_pass_at_k(n, [c], k, tau)[0] == pytest.approx(expected, abs=1e-12)
    assert g_pass_at_k(n, [c], k, 1e-6) == pytest.approx(pass_at_k(n, [c], k), abs=1e-12)
    if k > 1:
        area = 2 / k * sum(sum(number >= i for number in numbers) for i in range(ceil(k / 2) + 1, k + 1)) / len(numbers)
        assert mg_pass_at_k(n, [c], k)[0] == pytest.approx(area, abs=1e-12)


def test_g_pass_of_all_k_in_closed_form_at_large_n() -> None:
    # all k of k correct: C(c, k) / C(n, k)
    expected = [comb(c, 100) / comb(2000, 100) for c in (1000, 1900, 2000)]
    assert g_pass_at_k(2000, [1000, 1900, 2000], 100, 1.0) == pytest.approx(expected, rel=1e-8)


def test_tau_is_a_decimal() -> None:
    # 0.1 x 30 is 3.0000000000000004 in binary: still 3 of 30
    assert g_pass_at_k(30, [3], 30, 0.1) == 1.0
    with pytest.raises(ConfigError, match="tau = 0"):
        g_pass_at_k(4, [1], 2, 0.0)
