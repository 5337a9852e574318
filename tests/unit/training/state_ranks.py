"""One rank of test_distributed.py: train, take the state half-way, go on from it with fresh objects.

Arguments: checkpoint, output directory, then ``strategy`` or ``strategy-variant`` for each thing to try.
"""

import copy
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
VARIANTS = {"": {}, "tied": {"tied": True}, "lora": {"lora": True}, "recompute": {"gradient_checkpointing": True}}


class SmallTrainer(Trainer):
    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        shard_on_cpu(self)

    def _get_train_sampler(self, *args):
        return SequentialSampler(self.train_dataset)


class Watcher(TrainerCallback):
    def __init__(self, trainer, start):
        self.trainer, self.start, self.half, self.losses = trainer, start, None, []

    def on_train_begin(self, args, state, control, **_):
        if self.start is not None:
            is_first = self.trainer.accelerator.is_main_process
            load_training_state(self.trainer, copy.deepcopy(self.start) if is_first else None)

    def on_log(self, args, state, control, logs, **_):
        self.losses += [logs["loss"]] if "loss" in logs else []

    def on_step_end(self, args, state, control, **_):
        if state.global_step == HALF:
            self.half = training_state(self.trainer)


def run(checkpoint, strategy, num_ranks, *, start=None, lora=False, tied=False, **settings):
    """Train on fixed rows; from ``start`` on the second half of them."""
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
    first = 0 if start is None else HALF
    trainer = SmallTrainer(
        model,
        TrainingArguments(
            output_dir="unused",
            max_steps=NUM_STEPS - first,
            per_device_train_batch_size=ROWS_PER_STEP // num_ranks,
            learning_rate=1e-3,
            weight_decay=0.01,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=5,
            max_grad_norm=0.5,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            disable_tqdm=True,
            **strategy_arguments(config),
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows[first * ROWS_PER_STEP :]],
    )
    trainer.remove_callback(PrinterCallback)
    watcher = Watcher(trainer, start)
    trainer.add_callback(watcher)
    trainer.train()
    return trainer, watcher, training_state(trainer)


def tensors(state):
    """All of a state's tensors by name."""
    optimizer = state["optimizer"].get("state", {})
    flat = {f"model.{name}": value for name, value in state["model"].items()}
    return flat | {
        f"optimizer.{name}.{key}": value for name, group in optimizer.items() for key, value in group.items()
    }


def are_equal(a, b):
    a, b = tensors(a), tensors(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def samples_agree(trainer):
    """Whether gathered parameters sample what synced ranks do, each rank with its own prompt and length."""
    rank = trainer.accelerator.process_index
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    ids = torch.arange(3, 15)[None] + rank

    def sample(num_tokens, **arguments):
        with torch.no_grad():
            return model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=num_tokens,
                max_new_tokens=num_tokens,
                **arguments,
            ).tolist()[0]

    synced = sample(7)
    with gathered_parameters(trainer.model_wrapped):
        gathered = sample(4 + 3 * rank, synced_gpus=False)
    return all(gather_object([synced[: len(gathered)] == gathered]))


def resume_and_compare(checkpoint, strategy, num_ranks, start=None, **variant):
    trainer, whole_run, whole = run(checkpoint, strategy, num_ranks, **variant)
    _, rest, resumed = run(checkpoint, strategy, num_ranks, start=whole_run.half, **variant)
    weights, agree = full_weights(trainer), samples_agree(trainer)
    found = {
        "wrapper": type(trainer.model_wrapped).__name__,
        "losses": whole_run.losses,
        "resumed_losses": rest.losses,
        "weights": sorted(weights),
        "trained": sorted(whole["model"]),
        "optimized": sorted(whole["optimizer"].get("state", {})),
        "samples_agree": agree,
    }
    if trainer.accelerator.is_main_process:
        group, state = whole["optimizer"]["param_groups"][0], next(iter(whole["optimizer"]["state"].values()))
        found |= {
            "equal": are_equal(whole, resumed),
            "moved": not are_equal(whole, whole_run.half),
            "shapes": {name: list(value.shape) for name, value in weights.items()},
            "state_keys": sorted(state),
            "updates": state["step"].item(),
            "weight_decay": group["weight_decay"],
            "schedule": whole["schedule"],
        }
    if start is not None:
        found["losses_from_other"] = run(checkpoint, strategy, num_ranks, start=start, **variant)[1].losses
    return found, whole_run.half


if __name__ == "__main__":
    torch.set_num_threads(1)
    num_ranks, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    found, other = {}, None
    for name in sys.argv[3:]:
        strategy, _, variant = name.partition("-")
        start = None if variant else other  # plain fsdp2 also goes on from what plain ddp left
        found[name], half = resume_and_compare(sys.argv[1], strategy, num_ranks, start, **VARIANTS[variant])
        other = other or half
    (Path(sys.argv[2]) / f"rank_{rank}.json").write_text(json.dumps(found))
    leave_process_group()
