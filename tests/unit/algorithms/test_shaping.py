"""Unlikeliness and the length penalty: rewards that can be worked out on paper."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.rewards import get_soft_overlong_punishment

from progrpo.algorithms.advantage import group_relative_advantage, has_signal
from progrpo.algorithms.integers import floor_frac
from progrpo.algorithms.shaping import overlong_penalty, unlikeliness_rewards

NAN = float("nan")


# --- unlikeliness -----------------------------------------------------------------------------------------------------


def unlikeliness(rewards, logprobs, beta=0.25):
    return unlikeliness_rewards(torch.tensor([rewards]), torch.tensor([logprobs]), beta)[0]


def test_ranks_run_from_the_least_likely():
    # ranks 3, 0, 2, 1 of G = 4: factors 1 - 0.25 * (3/4, 0, 2/4, 1/4); the wrong ones are ranked too and stay 0.
    rewards = unlikeliness([1.0, 1.0, 0.0, 1.0], [-0.1, -4.0, -0.2, -3.0])
    torch.testing.assert_close(rewards, torch.tensor([0.8125, 1.0, 0.0, 0.9375]))


def test_the_papers_form_counts_ranks_from_the_most_likely():
    logprobs = [-0.1, -4.0, -0.2, -3.0]
    descending = sorted(logprobs, reverse=True)
    papers = [1 - 0.25 * (4 - (descending.index(value) + 1)) / 4 for value in logprobs]
    assert unlikeliness([1.0] * 4, logprobs).tolist() == pytest.approx(papers)


def test_a_group_that_is_all_right_gets_a_signal():
    rewards = unlikeliness([1.0, 1.0, 1.0], [-1.0, -2.0, -3.0])[None]
    advantages = group_relative_advantage(rewards)
    assert advantages[0, 0] < 0 < advantages[0, 2]
    assert has_signal(advantages).tolist() == [True]
    assert unlikeliness([0.0, 0.0, 0.0], [-1.0, -2.0, -3.0]).eq(0).all()


def test_equal_completions_get_equal_rewards():
    # the two share ranks 0 and 1: 1 - 0.3 * (0.5 / 3) = 0.95; the third is rank 2: 1 - 0.3 * (2 / 3) = 0.8
    torch.testing.assert_close(unlikeliness([1.0] * 3, [-2.0, -1.0, -2.0], 0.3), torch.tensor([0.95, 0.8, 0.95]))


def test_an_unscorable_completion_takes_no_rank():
    shaped = unlikeliness([1.0, NAN, 1.0, 0.0], [-1.0, -2.0, -3.0, -0.5])
    assert shaped[1].isnan()
    torch.testing.assert_close(shaped[[0, 2, 3]], unlikeliness([1.0, 1.0, 0.0], [-1.0, -3.0, -0.5]))
    assert unlikeliness([NAN, NAN], [-1.0, -2.0]).isnan().all()


def test_beta_zero_changes_nothing():
    rewards = torch.tensor([[1.0, 0.0, 1.0]])
    assert torch.equal(unlikeliness_rewards(rewards, torch.tensor([[-1.0, -2.0, -3.0]]), 0.0), rewards)


groups = st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.floats(-9, 0, width=16)), min_size=1, max_size=12)


@settings(deadline=None)
@given(groups, st.randoms(use_true_random=False))
def test_the_order_of_completions_does_not_matter(group, random):
    shuffled = random.sample(group, len(group))
    rewards = dict(zip(group, unlikeliness(*map(list, zip(*group, strict=True))).tolist(), strict=True))
    again = unlikeliness(*map(list, zip(*shuffled, strict=True))).tolist()
    assert again == [rewards[completion] for completion in shuffled]


@settings(deadline=None)
@given(groups, st.floats(0, 0.99))
def test_the_unlikelier_the_better_and_right_stays_above_wrong(group, beta):
    verdicts, logprobs = (list(column) for column in zip(*group, strict=True))
    right = [
        (logprob, reward)
        for verdict, logprob, reward in zip(
            verdicts, logprobs, unlikeliness(verdicts, logprobs, beta).tolist(), strict=True
        )
        if verdict
    ]
    assert all(1 - beta - 1e-6 <= reward <= 1 for _, reward in right)
    assert all(a[1] >= b[1] for a, b in zip(sorted(right), sorted(right)[1:], strict=False))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\[P, G\]"):
        unlikeliness_rewards(torch.zeros(2, 3), torch.zeros(2, 1), 0.25)


# --- length penalty ---------------------------------------------------------------------------------------------------


def test_dapos_own_numbers():
    # 20480 tokens, the last 4096 of them the buffer: none at 16384, half at 18432, all at 20480.
    penalty = overlong_penalty(torch.tensor([0, 16384, 16385, 18432, 20480, 30000]), 20480, 0.2, 1.0)
    assert penalty.tolist() == pytest.approx([0.0, 0.0, -1 / 4096, -0.5, -1.0, -1.0])


@settings(deadline=None)
@given(st.integers(1, 20000), st.floats(0.01, 1), st.lists(st.integers(0, 25000), min_size=1, max_size=8))
def test_it_is_trls_reading_of_equation_13(max_tokens, buffer_frac, num_tokens):
    trl = get_soft_overlong_punishment(max_tokens, floor_frac(max_tokens, buffer_frac))
    ours = overlong_penalty(torch.tensor(num_tokens), max_tokens, buffer_frac, 1.0)
    assert ours.tolist() == pytest.approx(trl([[0] * n for n in num_tokens]), abs=1e-6)


def test_weight_scales_and_shape_stays():
    penalty = overlong_penalty(torch.tensor([[8, 9], [10, 5]], dtype=torch.int32), 10, 0.4, 0.5)
    assert penalty.dtype == torch.float32
    # buffer 4: from 6; 8 -> 2/4, 9 -> 3/4, 10 -> 4/4
    torch.testing.assert_close(penalty, torch.tensor([[-0.25, -0.375], [-0.5, 0.0]]))


def test_a_buffer_of_less_than_a_token_is_one():
    assert overlong_penalty(torch.tensor([3, 4]), 4, 0.01, 1.0).tolist() == [0.0, -1.0]


def test_an_unscored_completion_stays_unscored():
    assert (torch.tensor([NAN]) + overlong_penalty(torch.tensor([4]), 4, 0.5, 1.0)).isnan().all()


@pytest.mark.parametrize(("n", "frac", "expected"), [(100, 0.29, 29), (5000, 0.0002, 1), (9, 0.1, 1), (10, 1.0, 10)])
def test_fractions_of_tokens_are_exact(n, frac, expected):
    assert floor_frac(n, frac) == expected
