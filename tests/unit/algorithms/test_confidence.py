"""The two confidences: the test vectors of the paper's reading, and what must not change them."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from progrpo.algorithms.confidence import (
    answer_confidence,
    group_mean_confidence,
    predicted_tokens,
    prompt_confidence,
    tail_size,
)

LN = math.log


@pytest.mark.parametrize(("n", "k"), [(1, 1), (4, 1), (5, 1), (6, 2), (10, 2), (11, 3), (0, 1)])
def test_tail_is_a_fifth_rounded_up(n, k):
    assert tail_size(n) == k
    assert tail_size(torch.tensor([n])).tolist() == [k]


@given(st.integers(0, 40_000), st.sampled_from([0.05, 0.1, 0.15, 0.2, 0.3, 0.7, 1.0]))
def test_tail_is_exact_where_floats_are_not(n, frac):
    expected = max(1, math.ceil(Fraction(str(frac)) * n))
    assert tail_size(n, frac) == expected
    assert tail_size(torch.tensor(n), frac).item() == expected


def test_float32_would_get_the_tail_wrong():
    assert torch.tensor(0.3).mul(50).ceil().item() == 16  # the trap
    assert tail_size(50, 0.3) == 15


def test_a_fraction_of_many_digits_does_not_overflow():
    assert tail_size(torch.tensor(3000), 1 / 3).item() == tail_size(3000, 1 / 3) == 1000


def test_two_unlikely_tokens_of_ten():
    # k = 2: exp((ln 0.1 + ln 0.4) / 2) = sqrt(0.04) = 0.2
    logprobs = torch.zeros(1, 10)
    logprobs[0, 3], logprobs[0, 7] = LN(0.1), LN(0.4)
    torch.testing.assert_close(answer_confidence(logprobs, torch.ones(1, 10)), torch.tensor([0.2]))


def test_a_certain_answer_has_confidence_one():
    assert answer_confidence(torch.zeros(3, 7), torch.ones(3, 7)).eq(1).all()


def test_one_token_is_its_probability():
    torch.testing.assert_close(answer_confidence(torch.tensor([[LN(0.25)]]), torch.ones(1, 1)), torch.tensor([0.25]))


def test_an_empty_answer_is_defined_and_harmless():
    assert answer_confidence(torch.full((1, 4), -5.0), torch.zeros(1, 4)).tolist() == [1.0]
    assert answer_confidence(torch.zeros(2, 0), torch.zeros(2, 0)).tolist() == [1.0, 1.0]


def test_the_whole_answer_when_the_fraction_is_one():
    logprobs = torch.tensor([[LN(0.5), LN(0.125)]])  # geometric mean of 1/2 and 1/8 is 1/4
    torch.testing.assert_close(answer_confidence(logprobs, torch.ones(1, 2), 1.0), torch.tensor([0.25]))


@settings(deadline=None)
@given(
    st.lists(st.floats(-20, 0, width=32), min_size=1, max_size=30),
    st.integers(0, 8),
    st.integers(0, 8),
    st.floats(-100, 100),
)
def test_padding_never_changes_a_value(values, left, right, junk):
    row = torch.tensor([values])
    padded = torch.nn.functional.pad(row, (left, right), value=junk)
    mask = torch.nn.functional.pad(torch.ones_like(row), (left, right))
    for function in (answer_confidence, prompt_confidence):
        torch.testing.assert_close(function(padded, mask), function(row, torch.ones_like(row)), rtol=2e-5, atol=0)
    assert 0 < answer_confidence(row, torch.ones_like(row)).item() <= 1


@settings(deadline=None)
@given(st.lists(st.floats(-20, 0, width=32), min_size=1, max_size=60))
def test_it_is_the_naive_reading(values):
    k = max(1, math.ceil(Fraction(1, 5) * len(values)))
    naive = math.exp(sum(sorted(values)[:k]) / k)
    assert answer_confidence(torch.tensor([values]), torch.ones(1, len(values))).item() == pytest.approx(
        naive, rel=1e-5
    )


def test_bfloat16_inputs_are_reduced_in_float32():
    logprobs = torch.tensor([[-0.5, -1.0, -2.0]], dtype=torch.bfloat16)
    assert answer_confidence(logprobs, torch.ones(1, 3)).dtype == torch.float32


def test_no_gradient_flows_through_a_confidence():
    logprobs = torch.zeros(1, 4, requires_grad=True)
    assert not answer_confidence(logprobs, torch.ones(1, 4)).requires_grad
    assert not prompt_confidence(logprobs, torch.ones(1, 4)).requires_grad


def test_inverse_perplexity_is_the_geometric_mean():
    logprobs = torch.tensor([[LN(0.5), LN(0.125)]])
    torch.testing.assert_close(prompt_confidence(logprobs, torch.ones(1, 2)), torch.tensor([0.25]))


def test_low_prob_reads_the_prompt_like_an_answer():
    logprobs = torch.tensor([[0.0] * 8 + [LN(0.1), LN(0.4)]])
    torch.testing.assert_close(prompt_confidence(logprobs, torch.ones(1, 10), "low_prob"), torch.tensor([0.2]))


def test_a_prompt_of_one_token_has_no_conditional():
    assert prompt_confidence(torch.tensor([[-3.0]]), torch.zeros(1, 1)).tolist() == [1.0]


def test_only_tokens_with_a_real_predecessor_count():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert predicted_tokens(mask).tolist() == [[False, False, True, True], [True, True, False, False]]


def test_group_mean_in_any_row_order():
    confidence = torch.tensor([0.2, 0.9, 0.4, 0.5])
    group = torch.tensor([7, 3, 7, 3])
    torch.testing.assert_close(group_mean_confidence(confidence, group), torch.tensor([0.3, 0.7, 0.3, 0.7]))
    assert group_mean_confidence(torch.zeros(0), torch.zeros(0, dtype=torch.long)).shape == (0,)
