"""ARM: the minimal test vectors of the literal reading, its gate, and what algebra makes certain."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from progrpo.algorithms.advantage import group_relative_advantage
from progrpo.algorithms.progrpo import arm_gate, reweight_advantages

T, F = True, False


def apply(rewards, prompt, answer, alpha, apply_to="all"):
    rewards_PG = torch.tensor(rewards)
    gate = arm_gate(rewards_PG == 1, ~rewards_PG.isnan(), apply_to)
    advantages = group_relative_advantage(rewards_PG)
    return reweight_advantages(
        advantages, torch.tensor(prompt).expand_as(advantages), torch.tensor(answer), gate, alpha
    )


def test_all_wrong_stays_zero():
    assert apply([[0.0] * 4], 0.5, [[0.1, 0.2, 0.3, 0.4]], 0.3).eq(0).all()


def test_all_right_is_driven_by_arm_alone():
    # 0.3 * (0.5 - 0.2) = +0.09 and 0.3 * (0.5 - 0.8) = -0.09
    torch.testing.assert_close(apply([[1.0, 1.0]], 0.5, [[0.2, 0.8]], 0.3), torch.tensor([[0.09, -0.09]]))


def test_one_right_of_eight():
    # A = 0.875 / (0.35355 + 0.0001) = 2.4742; + 0.3 * (0.5 - 0.9) = -0.12
    shifted = apply([[1.0] + [0.0] * 7], 0.5, [[0.9] + [0.5] * 7], 0.3)
    assert shifted[0, 0].item() == pytest.approx(0.875 / (0.1250**0.5 + 1e-4) - 0.12, rel=1e-5)
    assert shifted[0, 1].item() == pytest.approx(-0.125 / (0.1250**0.5 + 1e-4), rel=1e-5)


def test_alpha_zero_is_grpo_bit_for_bit():
    rewards = torch.randint(0, 2, (32, 8), generator=torch.Generator().manual_seed(0)).float()
    advantages = group_relative_advantage(rewards)
    confidence = torch.rand(32, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(
        reweight_advantages(advantages, confidence, 1 - confidence, arm_gate(rewards == 1), 0.0), advantages
    )


def test_gate_needs_a_correct_completion():
    assert arm_gate(torch.tensor([[F, F], [T, F], [T, T]])).tolist() == [[F, F], [T, T], [T, T]]


def test_gate_on_correct_completions_only():
    assert arm_gate(torch.tensor([[F, F], [T, F]]), apply_to="correct").tolist() == [[F, F], [T, F]]


def test_unscorable_completions_are_left_alone():
    shifted = apply([[1.0, float("nan"), 0.0]], 0.5, [[0.2, 0.2, 0.2]], 1.0)
    assert shifted[0, 1] == 0
    assert arm_gate(torch.tensor([[T, F]]), torch.tensor([[T, F]])).tolist() == [[T, F]]


def test_correct_only_leaves_wrong_answers_at_their_advantage():
    rewards = [[1.0, 0.0, 0.0, 0.0]]
    shifted = apply(rewards, 0.5, [[0.9, 0.1, 0.2, 0.3]], 1.0, "correct")
    plain = group_relative_advantage(torch.tensor(rewards))
    assert torch.equal(shifted[0, 1:], plain[0, 1:])
    torch.testing.assert_close(shifted[0, 0], plain[0, 0] - 0.4)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.floats(0.001, 1)), min_size=2, max_size=16),
    st.floats(0.001, 1),
    st.floats(0.001, 1),
    st.floats(0, 10),
)
def test_the_prompt_term_only_shifts_the_group(rows, prompt_a, prompt_b, alpha):
    rewards = [[float(correct) for correct, _ in rows]]
    answer = [[confidence for _, confidence in rows]]
    a, b = apply(rewards, prompt_a, answer, alpha), apply(rewards, prompt_b, answer, alpha)
    shift = alpha * (prompt_a - prompt_b) if any(rewards[0]) else 0.0
    torch.testing.assert_close(a - b, torch.full_like(a, shift), rtol=1e-4, atol=1e-4)
    plain = group_relative_advantage(torch.tensor(rewards))
    assert (a - plain).abs().max().item() <= alpha + 1e-4  # both confidences lie in (0, 1]
