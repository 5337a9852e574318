"""Compare the memory that ``progrpo plan`` estimates with what training steps take on this CPU.

    python benchmarks/memory.py [--only NAME]

Every case is a process of its own. A case trains two steps (the second holds the optimizer's moments) and reads the
kernel's high-water mark of resident memory, once for generation and once for the update. Weights are random, so that
completions run to their limit, as the estimate supposes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "embedded, 0.7M": {"train": {"prompts_per_step": 16, "group_size": 16, "max_completion_tokens": 8}},
    "28M": {"model": "llama", "train": {}},
    "28M, micro-batches": {"model": "llama", "train": {"micro_batch_size": 4}},
    "28M, checkpointing": {"model": "llama", "train": {"gradient_checkpointing": True}},
    "28M, longer": {"model": "llama", "train": {"max_completion_tokens": 256}},
    "28M, KL": {"model": "llama", "train": {"loss": {"kl_beta": 0.01}, "micro_batch_size": 4}},
    "28M, many short": {
        "model": "llama",
        "train": {"prompts_per_step": 16, "group_size": 16, "max_completion_tokens": 16, "micro_batch_size": 4},
    },
    "28M, bfloat16": {"model": "llama", "train": {"dtype": "bfloat16"}},
    "52M, V=32768": {"model": "llama", "vocab": 32768, "layers": 12, "train": {"micro_batch_size": 8}},
}
DEFAULTS = {"steps": 2, "prompts_per_step": 4, "group_size": 4, "max_completion_tokens": 128, "device": "cpu"}
PROMPT_WORDS = 120


def high_water() -> int:
    """Return the peak resident bytes since the last call, and start anew."""
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")
    return peak * 1024


def resident() -> int:
    """Return the resident bytes now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def random_llama(directory: Path, *, vocab: int = 8192, layers: int = 8) -> None:
    """Save a random Llama of hidden size 512 with a word tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<pad>", "<eos>", *(f"w{i}" for i in range(vocab - 2))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")  # noqa: S106
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    fast.save_pretrained(directory)
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=vocab,
        tie_word_embeddings=True,
        eos_token_id=1,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(directory)


def measure(case: dict[str, Any]) -> dict[str, float]:
    """Train two steps in this process and compare."""
    import torch

    from progrpo.checkpoints.architecture import read_architecture
    from progrpo.checkpoints.loading import eos_token_ids, load_model, load_tokenizer, render_prompts
    from progrpo.config import Arm, ProGRPO, TrainConfig
    from progrpo.data.dataset import Problem
    from progrpo.storage import localize
    from progrpo.training.build import build_trainer
    from progrpo.training.estimate import estimate_memory
    from progrpo.training.train import prepare_model
    from progrpo.training.trainer import PolicyTrainer  # noqa: F401  # the process with everything imported

    torch.set_num_threads(1)
    arm = Arm(name="progrpo", algorithm=ProGRPO())
    train = TrainConfig(**{**DEFAULTS, **case["train"]})
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary) / "checkpoint"
        text = " ".join(f"w{i}" for i in range(PROMPT_WORDS))
        if case.get("model") == "llama":
            random_llama(directory, **{key: case[key] for key in ("vocab", "layers") if key in case})
        else:
            directory = localize("embedded://countdown-sft", Path())
            text = "use the numbers 3 5 7 to make 22 :"
        tokenizer = load_tokenizer(directory)
        problems = [
            Problem(f"p{i}", [{"role": "user", "content": text}], "1", "exact", "here")
            for i in range(train.prompts_per_step * train.steps)
        ]
        process = resident()
        model = load_model(directory, torch.float32)
        prepare_model(model, tokenizer, eos_token_ids(directory, model, tokenizer))
        prompts = render_prompts(tokenizer, problems)
        trainer = build_trainer(arm, 0, train, model, tokenizer, problems, prompts, Path(temporary) / "run")
        peaks = {"generating": 0, "updating": 0}
        sample = trainer.collector.collect

        def sampled(*arguments: Any, **keywords: Any) -> Any:
            peaks["updating"] = max(peaks["updating"], high_water())
            try:
                return sample(*arguments, **keywords)
            finally:
                peaks["generating"] = max(peaks["generating"], high_water())

        trainer.collector.collect = sampled
        high_water()
        trainer.train()
        peaks["updating"] = max(peaks["updating"], high_water())
        longest = max(map(len, prompts))
        estimate = estimate_memory(read_architecture(directory), train, arm, on_gpu=False, prompt_tokens=longest)
    used = max(peaks.values())
    return {
        "process": process,
        "generating": peaks["generating"],
        "updating": peaks["updating"],
        "estimated generating": estimate.generating,
        "estimated updating": estimate.updating,
        "estimated / used": estimate.peak / used,
        "without the process itself": (estimate.peak - estimate.runtime) / (used - process),
    }


def main() -> None:
    """Measure every case and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(CASES[options.child])))
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for name in [options.only] if options.only else CASES:
        command = [sys.executable, __file__, "--child", name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        figures = json.loads(done.stdout.splitlines()[-1])
        shown = [
            f"{key} {value / 1e9:.2f} GB" if value > 1e6 else f"{key} {value:.2f}" for key, value in figures.items()
        ]
        print(f"{name}: {', '.join(shown)}", flush=True)


if __name__ == "__main__":
    main()
