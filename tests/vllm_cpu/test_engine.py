"""VLLMEngine against the real vLLM: the right distribution, exact repetition, the prefix cache."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from progrpo.config import VLLMEngineConfig
from progrpo.errors import ConfigError, DataError
from progrpo.generation.engine import SamplingSettings
from progrpo.generation.vllm_engine import VLLMEngine

PLAIN = SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=16)
CONFIG = VLLMEngineConfig(sleep=False)


@pytest.fixture(scope="module")
def engine(embedded_checkpoint: Path):
    engine = VLLMEngine(embedded_checkpoint, CONFIG, dtype="float32", eos_token_ids=[2])
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def long_engine(long_checkpoint: Path):
    engine = VLLMEngine(long_checkpoint, CONFIG, dtype="float32", eos_token_ids=[2, 3, 4, 5])
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def policy(embedded_checkpoint: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(embedded_checkpoint, dtype=torch.float32).eval()


def sample(engine: VLLMEngine, prompts, num_samples: int, settings: SamplingSettings, seed: int):
    """Draw completions of each prompt, named by its place and their number."""
    keys = [(p, number) for p in range(len(prompts)) for number in range(num_samples)]
    drawn = engine.complete([prompts[p] for p, _ in keys], keys, settings, seed)
    return [drawn[p * num_samples : (p + 1) * num_samples] for p in range(len(prompts))]


def test_greedy_limit_is_transformers_greedy(engine: VLLMEngine, policy: PreTrainedModel, prompts) -> None:
    """At the lowest temperature that is allowed, sampling is greedy but for ties."""
    groups = sample(engine, prompts, 2, SamplingSettings(0.01, 1.0, 16), seed=0)
    for prompt, group in zip(prompts, groups, strict=True):
        output = policy.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=16, eos_token_id=2)
        assert [list(c.token_ids) for c in group] == [output[0, len(prompt) :].tolist()] * 2


@pytest.mark.parametrize("settings", [PLAIN, SamplingSettings(0.7, 0.9, 16)], ids=["plain", "t0.7-p0.9"])
def test_first_token_follows_the_model(engine: VLLMEngine, policy: PreTrainedModel, prompts, settings) -> None:
    draws = 2000
    groups = sample(engine, prompts[:2], draws, settings, seed=5)
    for prompt, group in zip(prompts, groups, strict=False):
        seen = np.bincount([c.token_ids[0] for c in group], minlength=85) / draws
        with torch.no_grad():
            p = (policy(torch.tensor([prompt])).logits[0, -1] / settings.temperature).softmax(-1).numpy()
        order = np.argsort(-p)
        kept = order[: int((np.cumsum(p[order]) < settings.top_p - 1e-6).sum()) + 1]
        expected = np.zeros_like(p)
        expected[kept] = p[kept] / p[kept].sum()
        # 5 standard deviations of a frequency, of the likeliest of 85 tokens
        assert np.abs(seen - expected).max() < 5 * np.sqrt(0.25 / draws)
        assert (seen[expected == 0] == 0).all()


def test_where_a_completion_ends(engine: VLLMEngine, prompts) -> None:
    flat = [c for group in sample(engine, prompts, 64, SamplingSettings(1.0, 1.0, 6), seed=0) for c in group]
    assert {c.finish_reason for c in flat} == {"stop", "length"}
    for completion in flat:
        ended = completion.finish_reason == "stop"
        assert completion.token_ids.count(2) == ended
        assert len(completion.token_ids) <= 6
        assert ended == (completion.token_ids[-1] == 2)


def test_repeats_with_the_seed_whatever_ran_before(engine: VLLMEngine, prompts) -> None:
    first = sample(engine, prompts, 16, PLAIN, seed=3)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert sample(engine, prompts, 16, PLAIN, seed=3) == first
    assert torch.equal(torch.get_rng_state(), before), "the caller's generator must be untouched"
    assert sample(engine, prompts, 16, PLAIN, seed=4) != first


def test_a_completion_does_not_depend_on_its_batch(engine: VLLMEngine, prompts) -> None:
    """Up to rounding, which may turn a draw near a boundary: at most one of 64 completions here."""
    together = sample(engine, prompts, 16, PLAIN, seed=3)
    keys = [(p, number) for p in range(len(prompts)) for number in range(16)]
    alone = [engine.complete([prompts[p]], [(p, number)], PLAIN, 3)[0] for p, number in keys]
    assert sum(together[p][number] != one for (p, number), one in zip(keys, alone, strict=True)) <= 1


def test_completions_of_a_prompt_differ(engine: VLLMEngine, prompts) -> None:
    (one, other) = sample(engine, [prompts[-1]] * 2, 32, PLAIN, seed=0)
    assert len(set(one)) > 4
    assert one != other


def test_prefix_cache_serves_a_prompt_once(long_engine: VLLMEngine, prefix_hits, measured) -> None:
    """A prompt of 300 tokens has two whole blocks of 128: seven of eight requests take 256 tokens from the cache."""
    prompt = np.random.default_rng(0).integers(6, 85, 300).tolist()
    fractions = prefix_hits(long_engine._llm)
    sample(long_engine, [prompt], 8, PLAIN, seed=0)
    measured(prefix_hit_frac=fractions, expected=7 * 256 / (8 * 300))
    assert fractions == [pytest.approx(7 * 256 / (8 * 300))]


def test_generation_config_of_the_checkpoint_is_ignored(long_engine: VLLMEngine) -> None:
    """It says top_k 1, temperature 0.1 and that nearly every token ends a completion."""
    (group,) = sample(long_engine, [[1, 9, 17, 30]], 64, SamplingSettings(1.0, 1.0, 24), seed=0)
    assert len({c.token_ids[0] for c in group}) > 1
    assert max(len(c.token_ids) for c in group) > 8


def test_every_eos_token_ends_a_completion(long_engine: VLLMEngine) -> None:
    groups = sample(long_engine, [[1, 9, 17, 30], [7, 8]], 64, SamplingSettings(1.0, 1.0, 48), seed=0)
    flat = [c for group in groups for c in group]
    assert len({c.token_ids[-1] for c in flat if c.finish_reason == "stop"}) > 1
    assert not any(set(c.token_ids[:-1]) & {2, 3, 4, 5} for c in flat)


def test_an_empty_prompt_is_refused(engine: VLLMEngine) -> None:
    with pytest.raises(DataError, match="prompt 1 has no tokens"):
        sample(engine, [[5], []], 1, PLAIN, seed=0)


def test_an_architecture_vllm_cannot_run_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["NoSuchForCausalLM"]}')
    with pytest.raises(ConfigError, match="vLLM does not start"):
        VLLMEngine(tmp_path, CONFIG, dtype="float32", eos_token_ids=[2])
