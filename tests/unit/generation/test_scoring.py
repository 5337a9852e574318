"""Scores against a plain float64 computation, and their independence of batch, padding and tiles."""

import copy

import numpy as np
import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from progrpo.errors import DataError
from progrpo.generation import scoring
from progrpo.generation.scoring import score_completions

PROMPTS = [[5, 6, 7, 8], [9], [3, 4], [5, 6, 7, 8, 9, 10, 11, 12]]
COMPLETIONS = [[10, 1], [11, 12, 13, 14, 15, 1], [1], [2, 3, 4]]


def _reference(model: PreTrainedModel, prompt: list[int], completion: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """One sequence alone, whole logits, float64 from the weights on."""
    logits = copy.deepcopy(model).double()(torch.tensor([prompt + completion])).logits[0]
    logits = logits[len(prompt) - 1 : -1].detach().numpy()
    shifted = logits - logits.max(-1, keepdims=True)
    probabilities = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
    logprobs = np.log(probabilities[np.arange(len(completion)), completion])
    return logprobs, -(probabilities * np.log(probabilities)).sum(-1)


def _check(model: PreTrainedModel) -> None:
    for prompt, completion, scores in zip(
        PROMPTS, COMPLETIONS, score_completions(model, PROMPTS, COMPLETIONS), strict=True
    ):
        logprobs, entropies = _reference(model, prompt, completion)
        assert scores.logprobs.dtype == scores.entropies.dtype == np.float32
        np.testing.assert_allclose(scores.logprobs, logprobs, rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(scores.entropies, entropies, rtol=0, atol=1e-5)


def test_equals_float64_computation_of_each_alone(llama: PreTrainedModel) -> None:
    _check(llama)


def test_equals_float64_computation_with_bf16_weights(llama: PreTrainedModel) -> None:
    """Weights as a bfloat16 checkpoint stores them, arithmetic in float32."""
    _check(copy.deepcopy(llama).bfloat16().float())


def test_bf16_arithmetic_loses_nothing_in_the_softmax(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 the hidden states are rounded; from the same ones, tiles equal one naive softmax to 1e-5."""
    monkeypatch.setattr(scoring, "_TILE_ELEMENTS", 3 * 19)
    model = copy.deepcopy(llama).bfloat16()
    ids = torch.tensor([[5, 6, 7, 8, 10, 11, 12, 13, 1]])
    with torch.inference_mode():
        states = model.base_model(input_ids=ids).last_hidden_state[0, :-1]
        naive = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        logprobs, entropies = scoring._score_states(model.lm_head, states, ids[0, 1:], temperature=1.0)
    np.testing.assert_allclose(entropies, -(naive.exp() * naive).sum(-1).numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(logprobs, naive.gather(-1, ids[0, 1:, None])[:, 0].numpy(), rtol=0, atol=1e-5)


def test_another_temperature_divides_the_logits(llama: PreTrainedModel) -> None:
    (scores,) = score_completions(llama, [PROMPTS[0]], [COMPLETIONS[1]], temperature=0.6)
    logits = llama(torch.tensor([PROMPTS[0] + COMPLETIONS[1]])).logits[0, 3:-1].double() / 0.6
    expected = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    np.testing.assert_allclose(scores.entropies, expected.detach().numpy(), rtol=0, atol=1e-5)


def test_padding_and_neighbours_never_change_a_value(llama: PreTrainedModel) -> None:
    together = score_completions(llama, PROMPTS, COMPLETIONS)
    for prompt, completion, scores in zip(PROMPTS, COMPLETIONS, together, strict=True):
        (alone,) = score_completions(llama, [prompt], [completion])
        np.testing.assert_allclose(scores.logprobs, alone.logprobs, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(scores.entropies, alone.entropies, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("forward_tokens", "tile_elements"), [(1, 1), (20, 40), (10**6, 10**6)])
def test_chunks_never_change_a_value(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, forward_tokens: int, tile_elements: int
) -> None:
    monkeypatch.setattr(scoring, "_FORWARD_TOKENS", forward_tokens)
    monkeypatch.setattr(scoring, "_TILE_ELEMENTS", tile_elements)
    _check(llama)


def test_logits_are_made_in_tiles_of_completion_tokens_only(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_TILE_ELEMENTS", 4 * 19)
    monkeypatch.setattr(scoring, "_logits_are_head_of_hidden", lambda *_: True)
    rows = []
    handle = llama.lm_head.register_forward_hook(lambda _, args, output: rows.append(tuple(output.shape)))
    try:
        score_completions(llama, PROMPTS, COMPLETIONS)
    finally:
        handle.remove()
    assert max(rows) == (4, 19)
    assert sum(shape[0] for shape in rows) == sum(map(len, COMPLETIONS))


def test_repeated_completions_are_scored_once(llama: PreTrainedModel) -> None:
    tokens = []
    handle = llama.model.register_forward_pre_hook(
        lambda _, args, kwargs: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        first, other, again = score_completions(llama, [[5, 6]] * 3, [[7, 1], [8, 1], [7, 1]])
    finally:
        handle.remove()
    # one prompt without its last token, then two rows of that token and the completion without its last
    assert tokens[-2:] == [1, 4]
    np.testing.assert_array_equal(first.logprobs, again.logprobs)
    assert not np.array_equal(first.logprobs, other.logprobs)


def test_llama_is_tiled(llama: PreTrainedModel) -> None:
    assert scoring._logits_are_head_of_hidden(llama, PROMPTS[0])


SHAPE = {
    "vocab_size": 19, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "initializer_range": 0.4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
}  # fmt: skip


@pytest.mark.parametrize("family", ["sliding_window", "state_space"])
def test_other_ways_to_remember_a_prompt(family: str) -> None:
    torch.manual_seed(0)
    model = (
        MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=3))
        if family == "sliding_window"
        else MambaForCausalLM(MambaConfig(vocab_size=19, hidden_size=32, num_hidden_layers=2, initializer_range=0.4))
    )
    _check(model.eval())


@pytest.mark.parametrize("family", ["gemma2", "cohere"])
def test_architectures_that_transform_their_logits(family: str) -> None:
    """Gemma 2 caps and Cohere scales the logits behind the LM head: tiles of the head alone would be wrong."""
    torch.manual_seed(0)
    model = (
        Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=2.0))
        if family == "gemma2"
        else CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.25))
    ).eval()
    assert not scoring._logits_are_head_of_hidden(model, PROMPTS[0])
    _check(model)


def test_known_distributions() -> None:
    """Logits (0, 0, 0, 0): log p = -log 4 and entropy log 4. (log 3, 0, -inf, -inf): p = 3/4, 1/4."""
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [np.log(3.0), 0.0, -torch.inf, -torch.inf]])
    logprobs, entropies = scoring._score_states(None, logits, torch.tensor([2, 0]), temperature=1.0)
    np.testing.assert_allclose(logprobs, [-np.log(4), np.log(0.75)], rtol=1e-6)
    np.testing.assert_allclose(entropies, [np.log(4), -0.75 * np.log(0.75) - 0.25 * np.log(0.25)], rtol=1e-6)


def test_leaves_no_gradient(llama: PreTrainedModel) -> None:
    score_completions(llama, PROMPTS, COMPLETIONS)
    assert all(parameter.grad is None for parameter in llama.parameters())


def test_bad_arguments(llama: PreTrainedModel) -> None:
    with pytest.raises(DataError, match="completion 1 has no tokens"):
        score_completions(llama, [[5], [6]], [[1], []])
    with pytest.raises(DataError, match="prompt 0 has no tokens"):
        score_completions(llama, [[]], [[1]])
    assert score_completions(llama, [], []) == []
