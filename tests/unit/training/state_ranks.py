"""One rank of test_distributed_state.py: train, take the state half-way, go on from it with fresh objects.

Run by the test itself with one rank, by torchrun with two. Writes what it found to the file it is given.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate.utils import gather_object
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from progrpo.config import TrainConfig
from progrpo.training.distributed import (
    full_weights,
    gathered_parameters,
    leave_process_group,
    load_training_state,
    shard_on_cpu,
    strategy_arguments,
    training_state,
)

NUM_STEPS, HALF = 6, 3
ROWS_PER_STEP, LENGTH, VOCAB = 4, 12, 85

VARIANTS = {
    "": {},
    "tied": {"tied": True},
    "lora": {"lora": True},
    "recompute": {"gradient_checkpointing": True},
}


class SmallTrainer(Trainer):
    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        shard_on_cpu(self)

    def _get_train_sampler(self, *args):
        return SequentialSampler(self.train_dataset)


class HalfWay(TrainerCallback):
    def __init__(self, trainer, start):
        self.trainer, self.start, self.state, self.losses = trainer, start, None, []

    def on_train_begin(self, args, state, control, **_):
        if self.start is not None:
            load_training_state(self.trainer, self.start if self.trainer.accelerator.is_main_process else None)

    def on_log(self, args, state, control, logs, **_):
        self.losses += [logs["loss"]] if "loss" in logs else []

    def on_step_end(self, args, state, control, **_):
        if state.global_step == HALF:
            self.state = training_state(self.trainer)


def run(checkpoint, strategy, num_ranks, *, first=0, last=NUM_STEPS, start=None, lora=False, tied=False, **settings):
    config = TrainConfig(distributed={"num_processes": num_ranks, "strategy": strategy}, **settings)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    if tied:
        model.config.tie_word_embeddings = True
        model.lm_head.weight = model.model.embed_tokens.weight
    if lora:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    rows = torch.randint(3, VOCAB, (NUM_STEPS * ROWS_PER_STEP, LENGTH), generator=torch.Generator().manual_seed(0))
    rows = rows[first * ROWS_PER_STEP : last * ROWS_PER_STEP]
    trainer = SmallTrainer(
        model,
        TrainingArguments(
            output_dir="unused",
            max_steps=last - first,
            per_device_train_batch_size=ROWS_PER_STEP // num_ranks,
            learning_rate=1e-3,
            weight_decay=0.01,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=5,
            max_grad_norm=0.5,
            use_cpu=True,
            bf16=settings.get("dtype") == "bfloat16",
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            disable_tqdm=True,
            **strategy_arguments(config),
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
    )
    half_way = HalfWay(trainer, start)
    trainer.add_callback(half_way)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer, half_way, training_state(trainer)


def tensors(state):
    """All of a state's tensors by name."""
    optimizer = state["optimizer"]["state"]
    flat = {f"model.{name}": value for name, value in state["model"].items()}
    return flat | {f"optimizer.{name}.{key}": value for name, group in optimizer.items() for key, value in group.items()}


def is_equal(a, b):
    a, b = tensors(a), tensors(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def resume_and_compare(checkpoint, strategy, num_ranks, **settings):
    """Return what the test asserts, on the first rank."""
    trainer, half_way, whole = run(checkpoint, strategy, num_ranks, **settings)
    _, again, resumed = run(checkpoint, strategy, num_ranks, first=HALF, start=half_way.state, **settings)
    weights = full_weights(trainer)  # each rank takes part
    ids = torch.arange(3, 15)[None] + trainer.accelerator.process_index
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    length = 4 + 3 * trainer.accelerator.process_index  # ranks that sample for unequal lengths

    def sample(length, **arguments):
        with torch.no_grad():
            mask = torch.ones_like(ids)
            return model.generate(
                ids, attention_mask=mask, do_sample=False, max_new_tokens=length, min_new_tokens=length, **arguments
            ).tolist()

    synced = sample(7)
    with gathered_parameters(trainer.model_wrapped):
        gathered = sample(length, synced_gpus=False)
    samples = gather_object([(synced[0][: 12 + length], gathered[0])])
    _, _, after = run(checkpoint, strategy, num_ranks, **settings)
    if not trainer.accelerator.is_main_process:
        return {"empty": not half_way.state["model"] and not half_way.state["optimizer"] and not weights}
    return {
        "wrapper": type(trainer.model_wrapped).__name__,
        "names": sorted(whole["model"]),
        "optimizer_names": sorted(whole["optimizer"]["state"]),
        "groups": whole["optimizer"]["param_groups"],
        "schedule": whole["schedule"],
        "equal": is_equal(whole, resumed),
        "equal_twice": is_equal(whole, after),
        "moved": not is_equal(whole, half_way.state),
        "losses": half_way.losses,
        "resumed_losses": again.losses,
        "weights": sorted(weights),
        "whole_shapes": all(weights[n].shape == p.shape for n, p in model.named_parameters() if n in weights),
        "samples_equal": all(a == b for a, b in samples),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    checkpoint, output = map(Path, sys.argv[1:3])
    num_ranks, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    found = {}
    for name in sys.argv[3:]:
        strategy, _, variant = name.partition("-")
        found[name] = resume_and_compare(checkpoint, strategy, num_ranks, **VARIANTS[variant])
    (output / f"rank_{rank}.json").write_text(json.dumps(found))
    leave_process_group()
