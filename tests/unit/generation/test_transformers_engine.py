"""Sampling: exact distribution, exact repetition, where a completion ends."""

import numpy as np
import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedModel

from progrpo.errors import ConfigError, DataError
from progrpo.generation.engine import Completion, SamplingSettings
from progrpo.generation.scoring import score_completions
from progrpo.generation.transformers_engine import TransformersEngine

PROMPTS = [[5, 6, 7, 8], [9, 3], [4]]
PLAIN = SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=6)


def _engine(model: PreTrainedModel, batch_size: int = 64, eos: tuple[int, ...] = (1,)) -> TransformersEngine:
    return TransformersEngine(model, eos_token_ids=eos, pad_token_id=0, batch_size=batch_size)


def _sample(
    engine: TransformersEngine, prompts: list[list[int]], num_samples: int, settings: SamplingSettings, seed: int
) -> list[list[Completion]]:
    rows = [prompt for prompt in prompts for _ in range(num_samples)]
    keys = [(p, i) for p in range(len(prompts)) for i in range(num_samples)]
    flat = engine.complete(rows, keys, settings, seed)
    return [flat[p * num_samples : (p + 1) * num_samples] for p in range(len(prompts))]


def test_shape_and_where_a_completion_ends(llama: PreTrainedModel) -> None:
    results = _sample(_engine(llama), PROMPTS, 40, PLAIN, seed=0)
    assert [len(group) for group in results] == [40, 40, 40]
    flat = [completion for group in results for completion in group]
    assert {completion.finish_reason for completion in flat} == {"stop", "length"}
    for completion in flat:
        if completion.finish_reason == "stop":
            assert completion.token_ids.index(1) == len(completion.token_ids) - 1
        else:
            assert 1 not in completion.token_ids
            assert len(completion.token_ids) == PLAIN.max_tokens


def test_repeats_with_the_seed_whatever_ran_before(llama: PreTrainedModel) -> None:
    engine = _engine(llama)
    first = _sample(engine, PROMPTS, 8, PLAIN, seed=3)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert _sample(engine, PROMPTS, 8, PLAIN, seed=3) == first
    assert torch.equal(torch.get_rng_state(), before), "the caller's generator must be untouched"
    assert _sample(engine, PROMPTS, 8, PLAIN, seed=4) != first


def test_batches_differ_from_each_other(llama: PreTrainedModel) -> None:
    """Two batches over the same prompt must not repeat one another's draws."""
    (group,) = _sample(_engine(llama, batch_size=10), [PROMPTS[0]], 20, PLAIN, seed=0)
    assert group[:10] != group[10:]


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_a_completion_does_not_depend_on_its_batch(llama: PreTrainedModel, batch_size: int) -> None:
    settings = SamplingSettings(temperature=0.8, top_p=0.9, max_tokens=6, top_k=7)
    expected = _sample(_engine(llama, 4), PROMPTS, 5, settings, seed=0)
    assert _sample(_engine(llama, batch_size), PROMPTS, 5, settings, seed=0) == expected
    # nor on its place: the rows in reverse, each under its own key
    rows = [(PROMPTS[p], (p, i)) for p in range(3) for i in range(5)][::-1]
    reverse = _engine(llama, batch_size).complete([r for r, _ in rows], [k for _, k in rows], settings, 0)
    assert reverse[::-1] == [completion for group in expected for completion in group]


def _next_token_frequencies(engine: TransformersEngine, settings: SamplingSettings, draws: int) -> np.ndarray:
    groups = _sample(engine, PROMPTS, draws, settings, seed=1)
    return np.stack([np.bincount([c.token_ids[0] for c in group], minlength=19) / draws for group in groups])


def test_first_token_follows_the_model_beside_left_padding(llama: PreTrainedModel) -> None:
    """20,000 draws against the softmax of each prompt on its own: sd of a frequency is below 0.0036."""
    frequencies = _next_token_frequencies(
        _engine(llama, 60_000), SamplingSettings(temperature=0.7, top_p=1.0, max_tokens=1), 20_000
    )
    for prompt, row in zip(PROMPTS, frequencies, strict=True):
        expected = (llama(torch.tensor([prompt])).logits[0, -1] / 0.7).softmax(-1).detach().numpy()
        np.testing.assert_allclose(row, expected, atol=0.016)


def test_top_p_keeps_exactly_the_nucleus(llama: PreTrainedModel) -> None:
    frequencies = _next_token_frequencies(
        _engine(llama, 9000), SamplingSettings(temperature=1.0, top_p=0.5, max_tokens=1), 3000
    )
    for prompt, row in zip(PROMPTS, frequencies, strict=True):
        probabilities = llama(torch.tensor([prompt])).logits[0, -1].softmax(-1).detach().numpy()
        order = np.argsort(-probabilities)
        nucleus = order[: np.searchsorted(np.cumsum(probabilities[order]), 0.5) + 1]
        assert set(np.flatnonzero(row)) <= set(nucleus)


def test_top_k_keeps_the_likeliest_before_the_nucleus(llama: PreTrainedModel) -> None:
    settings = SamplingSettings(temperature=1.0, top_p=0.8, max_tokens=1, top_k=4)
    frequencies = _next_token_frequencies(_engine(llama, 9000), settings, 3000)
    for prompt, row in zip(PROMPTS, frequencies, strict=True):
        probabilities = llama(torch.tensor([prompt])).logits[0, -1].softmax(-1).detach().numpy()
        four = np.argsort(-probabilities)[:4]
        share = probabilities[four] / probabilities[four].sum()
        kept = four[: np.searchsorted(np.cumsum(share), 0.8) + 1]
        expected = np.zeros(19)
        expected[kept] = probabilities[kept] / probabilities[kept].sum()
        np.testing.assert_allclose(row, expected, atol=0.04)


def test_a_checkpoints_own_sampling_settings_do_not_leak(llama: PreTrainedModel) -> None:
    engine = _engine(llama)
    expected = _sample(engine, PROMPTS, 8, PLAIN, seed=0)
    llama.generation_config.top_k = 1
    llama.generation_config.repetition_penalty = 5.0
    assert _sample(_engine(llama), PROMPTS, 8, PLAIN, seed=0) == expected


def test_several_tokens_may_end_a_completion_and_padding_may_be_one(llama: PreTrainedModel) -> None:
    engine = TransformersEngine(llama, eos_token_ids=[1, 2, 3], pad_token_id=1, batch_size=64)
    flat = [c for group in _sample(engine, PROMPTS, 40, PLAIN, seed=0) for c in group if c.finish_reason == "stop"]
    assert {c.token_ids[-1] for c in flat} == {1, 2, 3}
    assert all(not {1, 2, 3} & set(c.token_ids[:-1]) for c in flat)


def test_stops_when_all_rows_are_finished(llama: PreTrainedModel) -> None:
    """With every token an end, one forward for the prompt and one for its last token are all that may happen."""
    forwards = []
    handle = llama.register_forward_pre_hook(lambda *_: forwards.append(1))
    try:
        results = _sample(_engine(llama, eos=tuple(range(19))), PROMPTS, 8, SamplingSettings(1.0, 1.0, 30), seed=0)
    finally:
        handle.remove()
    assert all(len(c.token_ids) == 1 for group in results for c in group)
    assert len(forwards) <= 3


def test_prompts_are_run_once_for_all_their_samples(llama: PreTrainedModel) -> None:
    tokens = []
    handle = llama.model.register_forward_pre_hook(
        lambda _, args, kwargs: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        _sample(_engine(llama), [[5] * 20], 16, SamplingSettings(1.0, 1.0, 1), seed=0)
    finally:
        handle.remove()
    assert sum(tokens) == 19 + 16


def _greedy(model: PreTrainedModel, prompt: list[int], steps: int) -> list[int]:
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", ["llama", "sliding_window", "state_space"])
def test_near_greedy_sampling_equals_plain_forwards(llama: PreTrainedModel, family: str) -> None:
    """The shared prompt cache changes nothing, also across a sliding window and for models without such a cache."""
    torch.manual_seed(1)
    model = llama
    if family == "sliding_window":
        config = MistralConfig(
            vocab_size=19, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, sliding_window=3, initializer_range=0.4,
        )  # fmt: skip
        model = MistralForCausalLM(config).eval()
    elif family == "state_space":
        model = MambaForCausalLM(MambaConfig(vocab_size=19, hidden_size=32, num_hidden_layers=2, initializer_range=0.4))
        model = model.eval()
    prompt = [5, 6, 7, 8, 9, 10, 11]
    engine = _engine(model, eos=(18,))
    (group,) = _sample(engine, [prompt], 3, SamplingSettings(temperature=1e-4, top_p=1.0, max_tokens=8), seed=0)
    expected = _greedy(model, prompt, 8)
    expected = expected[: expected.index(18) + 1] if 18 in expected else expected
    assert [list(c.token_ids) for c in group] == [expected] * 3


def test_bad_arguments(llama: PreTrainedModel) -> None:
    with pytest.raises(DataError, match="prompt 1 has no tokens"):
        _sample(_engine(llama), [[5], []], 1, PLAIN, seed=0)
    with pytest.raises(ConfigError, match="eos_token_ids is empty"):
        _engine(llama, eos=())


def test_no_prompts(llama: PreTrainedModel) -> None:
    assert _sample(_engine(llama), [], 4, PLAIN, seed=0) == []


def test_completion_is_a_value() -> None:
    assert Completion((1, 2), "stop") == Completion((1, 2), "stop")


@pytest.mark.parametrize("score_temperature", [1.0, 0.6])
def test_scores_while_sampling_are_those_of_a_pass_of_its_own(llama: PreTrainedModel, score_temperature: float) -> None:
    """Whatever temperature and cut the tokens were drawn with, and with rows that ended long before others."""
    settings = SamplingSettings(0.7, 0.9, 12, top_k=9, score_temperature=score_temperature)
    rows = [prompt for prompt in PROMPTS for _ in range(10)]
    completions = _engine(llama).complete(rows, [(i,) for i in range(30)], settings, 0)
    assert len({len(c.token_ids) for c in completions}) > 3
    expected = score_completions(llama, rows, [c.token_ids for c in completions], score_temperature)
    for completion, scores in zip(completions, expected, strict=True):
        assert completion.scores is not None
        np.testing.assert_allclose(completion.scores.logprobs, scores.logprobs, rtol=0, atol=1e-5)
        np.testing.assert_allclose(completion.scores.entropies, scores.entropies, rtol=0, atol=1e-5)


def test_no_scores_where_none_are_asked_for(llama: PreTrainedModel) -> None:
    assert _engine(llama).complete([[5]], [(0,)], PLAIN, 0)[0].scores is None


def test_a_completion_ends_with_its_first_eos():
    assert Completion.cut([5, 2, 2, 0], [2, 3], [-0.5, -1.5, -9.0, -9.0]) == Completion((5, 2), "stop", (-0.5, -1.5))
    assert Completion.cut([5, 3, 2], [2, 3]) == Completion((5, 3), "stop")
    assert Completion.cut([5, 6], [2], [-1.0, -2.0]) == Completion((5, 6), "length", (-1.0, -2.0))


def test_mean_logprob_leaves_out_what_is_not_known():
    nan = float("nan")
    assert Completion((5, 6, 7), "stop", (-1.0, nan, -2.0)).mean_logprob == -1.5
    assert np.isnan(Completion((5,), "stop", (nan,)).mean_logprob)
    assert np.isnan(Completion((5,), "stop").mean_logprob)
