"""Train with rollouts from transformers and from vLLM in turn, and compare tokens a second and memory.

    python benchmarks/rollouts_gpu.py --device cuda --dtype bfloat16 \
        --checkpoint runs/smollm2/checkpoint --train-file runs/smollm2/data/train.jsonl \
        --steps 50 --prompts-per-step 16 --group-size 16 --max-completion-tokens 256

needs one GPU and the gpu extra; examples/smollm2 says how to make the files. Without a GPU only transformers runs:

    python benchmarks/rollouts_gpu.py --engines transformers --steps 6 --prompts-per-step 4 --group-size 4

Each run is a process of its own, in the order A B B A. The first 5 steps (the first, with fewer than 10) warm up and do
not count. Memory is what the driver reports for the whole GPU, vLLM's pool included; on a CPU the process's own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from progrpo.checkpoints.importer import import_checkpoint
from progrpo.config import (
    Arm,
    CheckpointConfig,
    CountdownSource,
    DatasetConfig,
    FileSource,
    TrainConfig,
)
from progrpo.data.prepare import prepare_dataset
from progrpo.environment import describe_hardware, library_versions, resolve_device
from progrpo.metrics import read_jsonl

ENGINES = {"transformers": {"type": "transformers"}, "vllm": {"type": "vllm"}}
SHOWN = ("perf/tokens_per_s", "train/step_s", "train/completion_tokens", "perf/logprob_mismatch")


def prepare(options: argparse.Namespace, place: Path) -> None:
    """Make the two artifacts a run starts from."""
    source: CountdownSource | FileSource = CountdownSource(num_train=512, num_eval=16)
    if options.train_file:
        source = FileSource(train_uri=options.train_file, task="math")
    prepare_dataset(DatasetConfig(source=source), place / "dataset")
    import_checkpoint(CheckpointConfig(uri=options.checkpoint), place / "checkpoint")


def settings_of(options: argparse.Namespace, engine: str) -> TrainConfig:
    """The same settings for both engines."""
    return TrainConfig.model_validate(
        {
            "steps": options.steps,
            "prompts_per_step": options.prompts_per_step,
            "group_size": options.group_size,
            "micro_batch_size": options.micro_batch_size,
            "max_prompt_tokens": options.max_prompt_tokens,
            "max_completion_tokens": options.max_completion_tokens,
            "max_steps_without_signal": options.steps + 1,
            "device": options.device,
            "dtype": options.dtype,
            "log_rollouts_every": 0,
            "engine": ENGINES[engine],
        }
    )


def gpu_memory() -> float:
    """GiB in use on all GPUs, as the driver counts; 0 without one."""
    if shutil.which("nvidia-smi") is None:
        return 0.0
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return sum(map(float, subprocess.run(query, capture_output=True, text=True, check=True).stdout.split())) / 1024


def timed_run(options: argparse.Namespace, engine: str, place: Path, number: int) -> dict[str, float]:
    """Train once in a process of its own; return medians over its steps, and peak memory."""
    output = place / f"{engine}-{number}"
    job = {"config": settings_of(options, engine).model_dump(mode="json"), "place": str(place), "output": str(output)}
    process = subprocess.Popen([sys.executable, __file__, "--one", json.dumps(job)])
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, gpu_memory())
        time.sleep(0.2)
    if process.returncode:
        sys.exit(f"the run with {engine} ended with {process.returncode}")
    rows = [row for row in read_jsonl(output / "metrics.jsonl") if "train/step_s" in row]
    counted = rows[5 if len(rows) >= 10 else 1 :]
    figures = {key: statistics.median(row[key] for row in counted) for key in SHOWN if key in counted[-1]}
    return figures | {"peak_memory_gib": peak or rows[-1]["perf/peak_memory_gib"]}


def train_one(job: dict[str, Any]) -> None:
    """Run in the process of one run."""
    from progrpo.training.train import train

    place = Path(job["place"])
    train(
        Arm.model_validate({"name": "grpo", "algorithm": {"type": "grpo"}}),
        0,
        TrainConfig.model_validate(job["config"]),
        dataset=place / "dataset",
        checkpoint=place / "checkpoint",
        output=Path(job["output"]),
    )


def main() -> None:
    """Read the options, run in turn, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--checkpoint", default="embedded://countdown-sft")
    parser.add_argument("--train-file", help="problems; absent: countdown")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--prompts-per-step", type=int, default=16)
    parser.add_argument("--group-size", type=int, default=16)
    parser.add_argument("--micro-batch-size", type=int)
    parser.add_argument("--max-prompt-tokens", type=int, default=64)
    parser.add_argument("--max-completion-tokens", type=int, default=16)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        train_one(json.loads(options.one))
        return
    with tempfile.TemporaryDirectory() as place:
        prepare(options, Path(place))
        order = [*options.engines, *reversed(options.engines)]
        runs = [(engine, timed_run(options, engine, Path(place), number)) for number, engine in enumerate(order)]
    versions = library_versions("torch", "transformers", "trl", *(["vllm"] if "vllm" in options.engines else []))
    print(describe_hardware(resolve_device(options.device)), json.dumps(versions))
    keys = list(runs[0][1] | runs[-1][1])
    print("| engine | " + " | ".join(keys) + " |\n|" + "---|" * (len(keys) + 1))
    for engine, figures in runs:
        print(f"| {engine} | " + " | ".join(f"{figures[key]:.4g}" if key in figures else "-" for key in keys) + " |")


if __name__ == "__main__":
    main()
