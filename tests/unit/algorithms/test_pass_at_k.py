"""Pass@k training's advantage against its definition: every subset of k, enumerated."""

import math
from fractions import Fraction
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from progrpo.algorithms.advantage import group_relative_advantage
from progrpo.algorithms.pass_at_k import pass_at_k_advantage

NAN = float("nan")


def by_enumeration(rewards: list[int], k: int) -> list[float]:
    """A subset's reward is its maximum; a completion gets the mean over its subsets, standardised over all subsets."""
    subsets = [(subset, max(rewards[i] for i in subset)) for subset in combinations(range(len(rewards)), k)]
    mean = sum(reward for _, reward in subsets) / len(subsets)
    std = math.sqrt(sum((reward - mean) ** 2 for _, reward in subsets) / len(subsets))
    if std == 0:
        return [0.0] * len(rewards)
    own = [[reward for subset, reward in subsets if i in subset] for i in range(len(rewards))]
    return [(sum(values) / len(values) - mean) / std for values in own]


def closed_form(num_right: int, num_wrong: int, k: int) -> tuple[float, float]:
    """The paper's two lines with its binomials as exact integers."""
    num = num_right + num_wrong
    rho = 1 - Fraction(math.comb(num_wrong, k), math.comb(num, k))
    std = math.sqrt(rho * (1 - rho))
    conditional = Fraction(math.comb(num_wrong - 1, k - 1), math.comb(num - 1, k - 1))
    return float(1 - rho) / std, float(1 - rho - conditional) / std


def test_one_right_of_four_in_pairs():
    # 6 pairs, 3 with the right one: rho = 1/2, s = 1/2. Right: (1 - 1/2) / (1/2) = 1.
    # Wrong: 1 of its 3 pairs wins: (1/3 - 1/2) / (1/2) = -1/3.
    advantages = pass_at_k_advantage(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), k=2)
    torch.testing.assert_close(advantages, torch.tensor([[1.0, -1 / 3, -1 / 3, -1 / 3]]))


def test_the_more_are_right_the_less_there_is_to_learn():
    # G = 8, k = 4: C(N_neg, 4) / C(8, 4) = 35/70, 15/70, 5/70, 1/70, then 0: three wrong ones fill no subset of four.
    right = [pass_at_k_advantage(torch.tensor([[1.0] * n + [0.0] * (8 - n)]), k=4)[0, 0].item() for n in range(1, 8)]
    expected = [math.sqrt(q / (70 - q)) for q in (35, 15, 5, 1)] + [0.0, 0.0, 0.0]
    assert right == pytest.approx(expected)


@settings(deadline=None)
@given(st.lists(st.integers(0, 1), min_size=2, max_size=9), st.integers(1, 9))
def test_it_is_the_average_over_all_subsets(rewards, k):
    if k > len(rewards):
        assert pass_at_k_advantage(torch.tensor([rewards]).float(), k).eq(0).all()
        return
    advantages = pass_at_k_advantage(torch.tensor([rewards]).float(), k)[0].tolist()
    assert advantages == pytest.approx(by_enumeration(rewards, k), abs=1e-6)


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64))
def test_it_is_the_closed_form_in_large_groups(num_right, num_wrong, k):
    advantages = pass_at_k_advantage(torch.tensor([[1.0] * num_right + [0.0] * num_wrong]), k)
    if num_wrong < k:
        assert advantages.eq(0).all()
        return
    right, wrong = closed_form(num_right, num_wrong, k)
    assert advantages[0, 0].item() == pytest.approx(right, rel=1e-6)
    assert advantages[0, -1].item() == pytest.approx(wrong, rel=1e-6)
    assert advantages.double().sum().item() == pytest.approx(0, abs=1e-5 * num_right * (1 + right))


def test_k_of_one_is_grpo_with_the_deviation_of_the_population():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    centred = group_relative_advantage(rewards, normalize_std=False)
    torch.testing.assert_close(pass_at_k_advantage(rewards, k=1), centred / rewards.std(dim=1, correction=0)[:, None])


@pytest.mark.parametrize(
    "rewards",
    [[0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0], [NAN] * 4, [1, 0, NAN, NAN]],
    ids=["all wrong", "all right", "fewer than k wrong", "none scored", "fewer than k scored"],
)
def test_groups_without_a_signal(rewards):
    assert pass_at_k_advantage(torch.tensor([rewards], dtype=torch.float32), k=3).eq(0).all()


def test_an_unscorable_completion_counts_nowhere():
    with_nan = pass_at_k_advantage(torch.tensor([[1.0, NAN, 0.0, 0.0, 0.0]]), k=2)
    without = pass_at_k_advantage(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), k=2)
    assert with_nan[0, 1] == 0
    assert torch.equal(with_nan[0, [0, 2, 3, 4]], without[0])


def test_groups_do_not_touch_each_other():
    rewards = torch.randint(0, 2, (16, 8), generator=torch.Generator().manual_seed(0)).float()
    rows = torch.cat([pass_at_k_advantage(row[None], k=3) for row in rewards])
    assert torch.equal(pass_at_k_advantage(rewards, k=3), rows)


def test_bfloat16_verdicts_give_float32_advantages():
    advantages = pass_at_k_advantage(torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.bfloat16), k=2)
    assert advantages.dtype == torch.float32
    torch.testing.assert_close(advantages, pass_at_k_advantage(torch.tensor([[1.0, 0.0, 0.0]]), k=2))


@pytest.mark.parametrize("rewards", [[[1.0, 0.5]], [[-1.0, 1.0]], [[2.0, 0.0]]])
def test_shaped_rewards_are_refused(rewards):
    with pytest.raises(ValueError, match="before any shaping"):
        pass_at_k_advantage(torch.tensor(rewards), k=1)


@pytest.mark.parametrize(("shape", "k"), [((4,), 2), ((2, 4), 0)])
def test_shape_and_k_are_checked(shape, k):
    with pytest.raises(ValueError, match="k >= 1"):
        pass_at_k_advantage(torch.zeros(shape), k)
