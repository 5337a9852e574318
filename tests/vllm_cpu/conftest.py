"""The real vLLM on a CPU, in an environment of its own: make test-vllm-cpu. Not part of make test."""

import json
import os
from pathlib import Path

import pytest

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_CI_ENV": "1",  # no compilation, which takes longer than these tests
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


@pytest.fixture(scope="session")
def long_checkpoint(embedded_checkpoint: Path, tmp_path_factory) -> Path:
    """A random Llama with room for several of vLLM's blocks, and a generation_config to stumble over."""
    import torch
    from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("checkpoint") / "long"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=85,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(embedded_checkpoint).save_pretrained(directory)
    GenerationConfig(do_sample=True, top_k=1, temperature=0.1, eos_token_id=list(range(2, 60))).save_pretrained(
        directory
    )
    return directory


@pytest.fixture(scope="session")
def prompts(embedded_checkpoint: Path, tiny_dataset: Path) -> list[list[int]]:
    """Four countdown prompts of different lengths."""
    from progrpo.checkpoints.loading import load_tokenizer, render_prompts
    from progrpo.data.dataset import load_problems

    rendered = render_prompts(load_tokenizer(embedded_checkpoint), load_problems(tiny_dataset, "eval"))
    return sorted(rendered, key=len)[::5][:4]


FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture
def prefix_hits(monkeypatch: pytest.MonkeyPatch):
    """Watch a vLLM engine: the fraction of each call's prompt tokens that came out of the prefix cache.

    vLLM shares whole blocks (16 tokens on a GPU, 128 on a CPU), so short prompts share nothing.
    """

    def watch(llm) -> list[float]:
        fractions, generate = [], llm.generate

        def watched(*args, **kwargs):
            outputs = generate(*args, **kwargs)
            cached = sum(output.num_cached_tokens or 0 for output in outputs)
            fractions.append(cached / sum(len(output.prompt_token_ids) for output in outputs))
            return outputs

        monkeypatch.setattr(llm, "generate", watched)
        return fractions

    return watch


@pytest.fixture
def measured(request: pytest.FixtureRequest):
    """Keep figures for the end of the run, from where they go into docs/vllm.md."""

    def measured(**figures: object) -> None:
        line = f"{request.node.name}: {json.dumps(figures)}"
        request.config.stash.setdefault(FIGURES, []).append(line)

    return measured


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what was measured."""
    for line in config.stash.get(FIGURES, []):
        terminalreporter.write_line(f"measured {line}")
