"""Clip-Cov and KL-Cov: which tokens they pick, on batches small enough to see them all."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from progrpo.algorithms.covariance import clip_cov_mask, clipped_tokens, kl_cov_mask, token_covariance


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def clip(cov, mask=None, clip_frac=1.0, seed=0, **kwargs):
    cov = torch.as_tensor(cov)
    mask = torch.ones_like(cov) if mask is None else torch.as_tensor(mask)
    return clip_cov_mask(cov, mask, clip_frac=clip_frac, cov_low=1.0, cov_high=5.0, generator=generator(seed), **kwargs)


# --- covariance -------------------------------------------------------------------------------------------------------


def test_by_hand():
    # tokens (A, log pi): (1, -1), (1, -3), (-2, -5); means 0 and -3
    cov = token_covariance(
        torch.tensor([[-1.0, -3.0], [-5.0, -99.0]]), torch.tensor([1.0, -2.0]), torch.tensor([[1, 1], [1, 0]])
    )
    assert cov.tolist() == [[2.0, 0.0], [4.0, 0.0]]


def test_means_are_over_tokens_not_over_rows():
    # A row of three tokens against one of one: mean A = (3 * 1 - 1 * 1) / 4 = 0.5; mean log pi = -1.
    cov = token_covariance(
        torch.tensor([[0.0, -1.0, -2.0], [-1.0, 0.0, 0.0]]),
        torch.tensor([1.0, -1.0]),
        torch.tensor([[1, 1, 1], [1, 0, 0]]),
    )
    assert cov.tolist() == [[0.5, 0.0, -0.5], [0.0, 0.0, 0.0]]


def test_advantages_of_tokens_and_of_rows():
    logprobs, mask = torch.randn(3, 4, generator=generator()), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])
    rows = torch.tensor([1.0, -0.5, 7.0])
    torch.testing.assert_close(
        token_covariance(logprobs, rows, mask), token_covariance(logprobs, rows[:, None].repeat(1, 4), mask)
    )


def test_one_token_and_none():
    assert token_covariance(torch.tensor([[-3.0]]), torch.tensor([2.0]), torch.tensor([[1]])).tolist() == [[0.0]]
    assert token_covariance(torch.tensor([[-3.0]]), torch.tensor([2.0]), torch.tensor([[0]])).tolist() == [[0.0]]
    assert token_covariance(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 4)).shape == (0, 4)


def test_it_carries_no_gradient_and_is_float32():
    logprobs = torch.tensor([[-1.0, -2.0]], dtype=torch.bfloat16, requires_grad=True)
    cov = token_covariance(logprobs, torch.tensor([1.0]), torch.ones(1, 2))
    assert cov.dtype == torch.float32
    assert not cov.requires_grad


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 1000))
def test_its_mean_is_the_covariance_and_padding_does_not_matter(num_rows, num_tokens, seed):
    draw = generator(seed)
    logprobs = -torch.rand(num_rows, num_tokens, generator=draw) * 5
    mask = torch.rand(num_rows, num_tokens, generator=draw) < 0.7
    advantages = torch.randn(num_rows, generator=draw)
    cov = token_covariance(logprobs, advantages, mask)
    assert cov[~mask].eq(0).all()
    if mask.sum() > 1:
        pair = torch.stack([logprobs[mask], advantages[:, None].expand_as(mask)[mask]])
        torch.testing.assert_close(cov[mask].mean(), torch.cov(pair, correction=0)[0, 1], atol=1e-5, rtol=1e-4)
    padded = token_covariance(
        torch.cat([torch.full((num_rows, 2), -torch.inf), logprobs], dim=1),
        advantages,
        torch.cat([torch.zeros(num_rows, 2).bool(), mask], dim=1),
    )
    torch.testing.assert_close(padded[:, 2:], cov)


# --- Clip-Cov ---------------------------------------------------------------------------------------------------------


def test_only_tokens_inside_the_bounds_qualify():
    cov = [[0.5, 1.0, 1.1], [4.9, 5.0, 6.0]]
    assert clip(cov).tolist() == [[False, False, True], [True, False, False]]


def test_padding_and_clipped_tokens_do_not_qualify():
    cov, mask = [[2.0, 2.0, 2.0, 2.0]], [[1, 1, 1, 0]]
    clipped = torch.tensor([[False, True, False, False]])
    assert clip(cov, mask).tolist() == [[True, True, True, False]]
    assert clip(cov, mask, clipped_BT=clipped).tolist() == [[True, False, True, False]]


@pytest.mark.parametrize(("clip_frac", "expected"), [(0.0002, 1), (0.0999, 9), (0.1, 10), (0.29, 29), (1.0, 60)])
def test_the_number_is_a_fraction_of_all_tokens_and_at_least_one(clip_frac, expected):
    cov = torch.cat([torch.full((6, 10), 2.0), torch.zeros(4, 10)])  # 100 tokens, 60 qualify
    assert clip(cov, clip_frac=clip_frac).sum() == expected


def test_padding_does_not_count_as_tokens():
    cov = torch.full((1, 100), 2.0)
    mask = torch.arange(100)[None] < 30
    assert clip(cov, mask, clip_frac=0.1).sum() == 3


def test_nothing_qualifies():
    assert not clip(torch.zeros(2, 3)).any()
    assert not clip(torch.full((2, 3), 2.0), torch.zeros(2, 3)).any()


def test_the_draw_repeats_with_the_seed_and_advances_with_the_generator():
    cov = torch.full((10, 10), 2.0)
    assert torch.equal(clip(cov, clip_frac=0.1, seed=1), clip(cov, clip_frac=0.1, seed=1))
    assert not torch.equal(clip(cov, clip_frac=0.1, seed=1), clip(cov, clip_frac=0.1, seed=2))
    one = generator()
    draws = [
        clip_cov_mask(cov, torch.ones_like(cov), clip_frac=0.1, cov_low=1, cov_high=5, generator=one) for _ in range(2)
    ]
    assert not torch.equal(*draws)


def test_the_draw_is_uniform():
    cov = torch.full((1, 10), 2.0)
    one = generator()
    counts = sum(
        clip_cov_mask(cov, torch.ones_like(cov), clip_frac=0.1, cov_low=1, cov_high=5, generator=one).long()
        for _ in range(2000)
    )
    # 2000 draws of one in ten: 200 each, standard deviation 13.4
    assert counts.sum() == 2000
    assert counts.min() > 200 - 5 * 13.4
    assert counts.max() < 200 + 5 * 13.4


def test_tokens_the_policy_loss_has_clipped():
    # rho = 1.5, 1.5, 0.5, 0.5 against [0.8, 1.28]
    log_ratio = torch.tensor([[1.5, 1.5], [0.5, 0.5]]).log()
    advantages = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    assert clipped_tokens(log_ratio, advantages, 0.2, 0.28).tolist() == [[True, False], [False, True]]
    assert not clipped_tokens(torch.zeros(2, 2), torch.tensor([1.0, -1.0]), 3e-4, 4e-4).any()


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_a_clipped_token_has_no_gradient(seed):
    draw = generator(seed)
    log_ratio = torch.randn(4, 5, generator=draw, requires_grad=True)
    advantages = torch.randn(4, generator=draw)
    ratio = log_ratio.exp()
    torch.min(ratio * advantages[:, None], ratio.clamp(0.8, 1.28) * advantages[:, None]).sum().backward()
    assert torch.equal(log_ratio.grad == 0, clipped_tokens(log_ratio, advantages, 0.2, 0.28))


# --- KL-Cov -----------------------------------------------------------------------------------------------------------


def test_the_highest_covariances_are_held():
    cov, mask = torch.tensor([[3.0, -1.0, 9.0], [2.0, 0.0, 99.0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    assert kl_cov_mask(cov, mask, 0.4).tolist() == [[True, False, True], [False, False, False]]  # floor(0.4 * 5) = 2


@pytest.mark.parametrize(("kl_frac", "expected"), [(0.002, 1), (0.0199, 1), (0.02, 2), (0.29, 29), (1.0, 100)])
def test_the_number_is_a_fraction_of_all_tokens_at_least_one_of_any_covariance(kl_frac, expected):
    assert kl_cov_mask(-torch.rand(10, 10, generator=generator()), torch.ones(10, 10), kl_frac).sum() == expected


def test_of_equal_tokens_the_first():
    assert kl_cov_mask(torch.zeros(2, 2), torch.ones(2, 2), 0.5).tolist() == [[True, True], [False, False]]


def test_no_tokens():
    assert not kl_cov_mask(torch.ones(2, 2), torch.zeros(2, 2), 0.5).any()


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 1))
def test_no_token_left_out_exceeds_one_that_is_held(seed, kl_frac):
    draw = generator(seed)
    cov, mask = torch.randn(4, 6, generator=draw), torch.rand(4, 6, generator=draw) < 0.6
    held = kl_cov_mask(cov, mask, kl_frac)
    assert not (held & ~mask).any()
    if held.any() and (mask & ~held).any():
        assert cov[held].min() >= cov[mask & ~held].max()
