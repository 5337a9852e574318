"""Group-relative advantage: numbers a reader can check with a pocket calculator."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.trainer.utils import nanstd

from progrpo.algorithms.advantage import STD_EPSILON, group_relative_advantage, has_signal

NAN = float("nan")


@pytest.mark.parametrize(
    ("num_correct", "right", "wrong"),
    # G = 8: 1 right -> mean 1/8, unbiased std sqrt((0.875^2 + 7 * 0.125^2) / 7) = 0.35355, (1 - 1/8) / std = 2.4749
    [(1, 2.4749, -0.3536), (2, 1.6202, -0.5401), (4, 0.9354, -0.9354), (7, 0.3536, -2.4749)],
)
def test_scale_of_a_group_of_eight(num_correct, right, wrong):
    rewards = torch.tensor([[1.0] * num_correct + [0.0] * (8 - num_correct)])
    advantages = group_relative_advantage(rewards)[0]
    assert advantages[0].item() == pytest.approx(right, rel=1e-3)  # delta moves it by about 1e-4 / std
    assert advantages[-1].item() == pytest.approx(wrong, rel=1e-3)


def test_delta_is_added_to_the_standard_deviation():
    # (1, 0): mean 0.5, unbiased std sqrt(0.5)
    expected = 0.5 / (math.sqrt(0.5) + STD_EPSILON)
    torch.testing.assert_close(
        group_relative_advantage(torch.tensor([[1.0, 0.0]])), torch.tensor([[expected, -expected]])
    )


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.3])
def test_a_group_without_variance_has_no_advantage(reward):
    assert torch.equal(group_relative_advantage(torch.full((2, 5), reward)).abs() < 1e-3, torch.ones(2, 5).bool())
    assert group_relative_advantage(torch.zeros(1, 4)).eq(0).all()
    assert group_relative_advantage(torch.ones(1, 4)).eq(0).all()


def test_without_normalisation_it_is_the_centred_reward():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[0.5, -0.5, -0.5, 0.5], [0.75, -0.25, -0.25, -0.25]])
    assert torch.equal(group_relative_advantage(rewards, normalize_std=False), expected)


def test_an_unscorable_completion_counts_nowhere():
    with_nan = group_relative_advantage(torch.tensor([[1.0, 0.0, NAN, 0.0]]))
    without = group_relative_advantage(torch.tensor([[1.0, 0.0, 0.0]]))
    assert with_nan[0, 2] == 0
    torch.testing.assert_close(with_nan[0, [0, 1, 3]], without[0])


def test_groups_with_fewer_than_two_scores_are_silent():
    rewards = torch.tensor([[1.0, NAN, NAN], [NAN, NAN, NAN]])
    assert group_relative_advantage(rewards).eq(0).all()


@pytest.mark.parametrize("shape", [(4,), (2, 1), (2, 3, 4)])
def test_a_group_of_one_is_refused(shape):
    with pytest.raises(ValueError, match="G >= 2"):
        group_relative_advantage(torch.zeros(shape))


reward_groups = st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=16)


@settings(deadline=None)
@given(reward_groups)
def test_it_is_centred_and_equals_trl(rewards):
    rewards_PG = torch.tensor([rewards])
    advantages = group_relative_advantage(rewards_PG)
    # Of nearly equal rewards the float32 rounding of the mean remains, divided by little more than 1e-4.
    rounding = rewards_PG.abs().max() * 2**-23 / (nanstd(rewards_PG, dim=1).item() + 1e-4)
    assert abs(advantages.double().mean().item()) < 1e-3 * max(1.0, advantages.abs().max().item()) + rounding
    trl = (rewards_PG - rewards_PG.nanmean(dim=1, keepdim=True)) / (nanstd(rewards_PG, dim=1)[:, None] + 1e-4)
    assert torch.equal(advantages, torch.nan_to_num(trl, nan=0.0))


def test_groups_with_and_without_a_signal():
    advantages = group_relative_advantage(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    gate = torch.tensor([[True] * 3, [False] * 3, [True] * 3])
    assert has_signal(advantages).tolist() == [True, False, False]
    assert has_signal(advantages, gate).tolist() == [True, False, True]
    assert has_signal(group_relative_advantage(torch.tensor([[1.0, NAN], [NAN, NAN]]))).tolist() == [False, False]


@settings(deadline=None)
@given(st.floats(-1, 1, width=32), st.integers(2, 256), st.booleans())
def test_equal_rewards_are_no_signal_however_float32_sums_them(reward, group_size, normalize_std):
    advantages = group_relative_advantage(torch.full((1, group_size), reward), normalize_std=normalize_std)
    assert has_signal(advantages).tolist() == [False]


@pytest.mark.parametrize("normalize_std", [True, False])
def test_one_different_reward_of_many_is_a_signal(normalize_std):
    # a penalty less by 64 of DAPO's 4096 tokens on one of 256 completions
    rewards = torch.full((1, 256), -1.0)
    rewards[0, 0] += 64 / 4096
    assert has_signal(group_relative_advantage(rewards, normalize_std=normalize_std)).tolist() == [True]
