"""Keyed sampling: each completion's tokens depend on its key, and are drawn from the softmax."""

import numpy as np
import pytest
import torch

from progrpo.generation.keyed import draw, keyed_uniforms


def test_uniforms_belong_to_the_key_whatever_stands_beside_it_and_however_long():
    alone = keyed_uniforms(7, [(3, 1)], 4)
    among = keyed_uniforms(7, [(9, 9), (3, 1), (0, 0)], 10)
    assert torch.equal(alone[0], among[1, :4])
    assert among.dtype == torch.float64
    assert 0 <= among.min() <= among.max() < 1


def test_seed_place_number_and_tag_all_count():
    keys = [(3, 1), (3, 2), (4, 1), (3, 1, 1), (1, 3)]
    rows = torch.cat([keyed_uniforms(seed, keys, 3) for seed in (0, 1)])
    assert len({tuple(row) for row in rows.tolist()}) == 2 * len(keys)


def test_inverse_cdf_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25]])).expand(5, 3)
    tokens, logprobs = draw(logits, torch.tensor([0.0, 0.49, 0.51, 0.74, 0.76], dtype=torch.float64), 1.0)
    assert tokens.tolist() == [0, 0, 1, 1, 2]
    assert logprobs.exp().tolist() == pytest.approx([0.5, 0.5, 0.25, 0.25, 0.25])


def test_temperature_sharpens_before_the_draw():
    logits = torch.log(torch.tensor([[0.8, 0.2]]))
    _, logprobs = draw(logits, torch.tensor([0.1], dtype=torch.float64), 0.5)
    assert logprobs.exp().item() == pytest.approx(0.64 / 0.68)


def test_the_nucleus_keeps_the_token_that_reaches_top_p():
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3]])).expand(101, 3)
    uniforms = torch.linspace(0, 0.999, 101, dtype=torch.float64)
    kept = {top_p: set(draw(logits, uniforms, 1.0, top_p)[0].tolist()) for top_p in (0.4, 0.49, 0.51, 0.81)}
    assert kept == {0.4: {1}, 0.49: {1}, 0.51: {1, 2}, 0.81: {0, 1, 2}}


def test_a_token_without_mass_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, 5)
    tokens, _ = draw(logits, torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64), 1.0)
    assert tokens.tolist() == [1, 3, 3]


def test_frequencies_are_the_softmax():
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0])
    n = 20_000
    uniforms = keyed_uniforms(0, [(i, 0) for i in range(n)], 1)[:, 0]
    tokens, _ = draw(logits.expand(n, 4), uniforms, 1.0)
    observed = np.bincount(tokens.numpy(), minlength=4)
    expected = logits.softmax(0).numpy() * n
    assert ((observed - expected) ** 2 / expected).sum() < 16.3  # chi-square, 3 degrees, p = 0.001; the seed is fixed
