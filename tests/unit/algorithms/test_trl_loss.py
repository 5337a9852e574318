"""TRL's own loss on log-probabilities given by hand: what the switches that docs/algorithms.md names do to a gradient.

The forward pass is replaced by tensors; everything after it is TRL's code. Two completions of 3 and 1 tokens, with
advantages 1 and -2.
"""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from trl import GRPOTrainer

from progrpo.algorithms.covariance import clip_cov_mask, token_covariance

MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])
ADVANTAGES = torch.tensor([1.0, -2.0])
ENTROPIES = torch.tensor([[0.1, 0.9, 0.5], [0.7, 9.0, 9.0]])
ON_POLICY = torch.zeros(2, 3)


class Loss(SimpleNamespace):
    """What ``GRPOTrainer._compute_loss`` reads of its trainer."""

    def __init__(self, *, entropy_target=0.2, entropy_coef_delta=0.005, **settings):
        super().__init__(
            **{
                "accelerator": Accelerator(cpu=True),
                "model": SimpleNamespace(training=True),
                "args": SimpleNamespace(
                    delta=None,
                    steps_per_generation=1,
                    entropy_target=entropy_target,
                    entropy_coef_delta=entropy_coef_delta,
                    entropy_coef_min=0.0,
                    entropy_coef_max=1.0,
                ),
                "_metrics": defaultdict(lambda: defaultdict(list)),
                "aux_loss_enabled": False,
                "off_policy_mask_threshold": None,
                "use_vllm": False,
                "beta": 0.0,
                "current_gradient_accumulation_steps": 1,
                "loss_type": "dapo",
                "importance_sampling_level": "token",
                "epsilon_low": 0.2,
                "epsilon_high": 0.28,
                "max_completion_length": 10,
                "top_entropy_quantile": 1.0,
                "_entropy_bonus_enabled": False,
                "use_adaptive_entropy": False,
                "entropy_coef": 0.0,
                "_last_world_entropy": float("inf"),
                "_entropy_window_stats": None,
                **settings,
            }
        )

    def get_high_entropy_mask(self, *args):
        return GRPOTrainer.get_high_entropy_mask(self, *args)

    def gradients(self, log_ratio=ON_POLICY, advantages=ADVANTAGES):
        """Return d loss / d log-probabilities and d loss / d entropies."""
        old = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, 0.0, 0.0]])
        logprobs, entropies = (old + log_ratio).requires_grad_(), ENTROPIES.clone().requires_grad_()
        self._get_per_token_logps_and_entropies = lambda *args, **kwargs: (logprobs, entropies, None)
        inputs = {
            "prompt_ids": torch.zeros(2, 1, dtype=torch.long),
            "prompt_mask": torch.ones(2, 1, dtype=torch.long),
            "completion_ids": torch.zeros(2, 3, dtype=torch.long),
            "completion_mask": MASK,
            "advantages": advantages,
            "num_items_in_batch": MASK.sum(),
        }
        if log_ratio is not ON_POLICY:
            inputs["old_per_token_logps"] = old
        GRPOTrainer._compute_loss(self, None, inputs).backward()
        return logprobs.grad, entropies.grad


def test_token_mean():
    grad, _ = Loss(loss_type="dapo").gradients()
    torch.testing.assert_close(grad, torch.tensor([[-1.0, -1.0, -1.0], [2.0, 0.0, 0.0]]) / 4)


def test_sequence_mean():
    grad, _ = Loss(loss_type="grpo").gradients()
    torch.testing.assert_close(grad, torch.tensor([[-1 / 3, -1 / 3, -1 / 3], [2.0, 0.0, 0.0]]) / 2)


def test_constant_length():
    grad, _ = Loss(loss_type="dr_grpo").gradients()
    torch.testing.assert_close(grad, torch.tensor([[-1.0, -1.0, -1.0], [2.0, 0.0, 0.0]]) / (2 * 10))


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_on_policy_the_clip_does_nothing(loss_type):
    wide, _ = Loss(loss_type=loss_type).gradients()
    tight, _ = Loss(loss_type=loss_type, epsilon_low=3e-4, epsilon_high=4e-4).gradients()
    assert torch.equal(wide, tight)


def test_off_policy_the_clip_stops_a_token_on_its_side():
    # rho = 1.3, 1, 0.5 with A > 0: only the first is beyond its bound; rho = 0.5 with A < 0: clipped too.
    log_ratio = torch.tensor([[1.3, 1.0, 0.5], [0.5, 1.0, 1.0]]).log()
    grad, _ = Loss().gradients(log_ratio)
    torch.testing.assert_close(grad, torch.tensor([[0.0, -1.0, -0.5], [0.0, 0.0, 0.0]]) / 4)


def test_gspo_on_policy_is_grpo_with_the_sequence_mean():
    gspo, _ = Loss(
        loss_type="grpo", importance_sampling_level="sequence", epsilon_low=3e-4, epsilon_high=4e-4
    ).gradients()
    grpo, _ = Loss(loss_type="grpo").gradients()
    torch.testing.assert_close(gspo, grpo)


def test_gspo_off_policy_has_the_geometric_mean_of_the_ratios():
    # rho = 2, 1/2, 1.0003: each token alone is far outside, their geometric mean 1.0001 is not.
    log_ratio = torch.tensor([[2.0, 0.5, 1.0003], [0.9, 1.0, 1.0]]).log()
    grad, _ = Loss(
        loss_type="grpo", importance_sampling_level="sequence", epsilon_low=3e-4, epsilon_high=4e-4
    ).gradients(log_ratio)
    # row 0: -s / 3 / 2 a token with s = 1.0003^(1/3); row 1: s = 0.9 with A < 0 is clipped
    torch.testing.assert_close(grad, torch.tensor([[-(1.0003 ** (1 / 3)) / 6] * 3, [0.0] * 3]))


def test_forking_tokens_are_those_of_highest_entropy_in_the_batch():
    # entropies 0.1 0.9 0.5 | 0.7: the 0.5 quantile is 0.6; the mean is still over all 4 tokens
    grad, _ = Loss(top_entropy_quantile=0.5).gradients()
    torch.testing.assert_close(grad, torch.tensor([[0.0, -1.0, 0.0], [2.0, 0.0, 0.0]]) / 4)


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_the_entropy_bonus_is_a_mean_over_tokens_whatever_the_loss(loss_type):
    plain, _ = Loss(loss_type=loss_type).gradients()
    grad, entropy_grad = Loss(loss_type=loss_type, _entropy_bonus_enabled=True, entropy_coef=0.01).gradients()
    assert torch.equal(grad, plain)
    torch.testing.assert_close(entropy_grad, -0.01 * MASK / 4)


def test_the_adaptive_coefficient_acts_a_step_late_and_only_below_the_target():
    # mean entropy (0.1 + 0.9 + 0.5 + 0.7) / 4 = 0.55
    loss = Loss(_entropy_bonus_enabled=True, use_adaptive_entropy=True, entropy_coef=0.01, entropy_target=0.6)
    first, second = (loss.gradients()[1] for _ in range(2))
    assert first.eq(0).all()
    torch.testing.assert_close(second, -(0.01 + 0.005) * MASK / 4)
    assert loss.entropy_coef == pytest.approx(0.02)
    loss.args.entropy_target = 0.5
    loss.gradients()
    assert loss.entropy_coef == pytest.approx(0.015)


def test_clip_cov_through_the_advantages_keeps_the_tokens_place_in_the_mean():
    logprobs = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, 0.0, 0.0]])
    # mean A = 1/4, mean log pi = -6.5/4: cov = 0.75 * (0.625, -0.375, 1.125) and -2.25 * -1.375
    cov = token_covariance(logprobs, ADVANTAGES, MASK)
    torch.testing.assert_close(cov, torch.tensor([[0.46875, -0.28125, 0.84375], [3.09375, 0.0, 0.0]]))
    drawn = clip_cov_mask(cov, MASK, clip_frac=0.25, cov_low=1.0, cov_high=5.0, generator=torch.Generator())
    grad, _ = Loss().gradients(advantages=ADVANTAGES[:, None] * ~drawn)
    torch.testing.assert_close(grad, torch.tensor([[-1.0, -1.0, -1.0], [0.0, 0.0, 0.0]]) / 4)


def test_kl_covs_penalty_has_no_gradient_on_policy():
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    (logprobs - torch.tensor([-1.0, -2.5])).abs().sum().backward()
    assert logprobs.grad.tolist() == [0.0, 1.0]
