"""Several ranks: a copy of the model on each (DDP) or its parameters sharded over them (FSDP2), on GPUs or a CPU.

Ranks are processes that torchrun starts; transformers' Trainer, accelerate and TRL do the rest. What they lack is here:
FSDP2 on a CPU, sampling without a collective a layer and token, and the state of a run under one form for one rank,
DDP and FSDP2 alike.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from progrpo.config import TrainConfig
from progrpo.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed.checkpoint.state_dict import StateDictOptions
    from transformers import Trainer


def check_world_size(config: TrainConfig) -> None:
    """Refuse a number of ranks other than the configured one.

    Too few would train as if nothing were wrong: ``accelerate launch`` ignores Kubeflow's ``PET_*`` variables, and each
    pod runs alone.

    Raises:
        ConfigError: naming both numbers.
    """
    wanted, started = config.distributed.num_processes, int(os.environ.get("WORLD_SIZE", "1"))
    if started != wanted:
        raise ConfigError(
            f"train.distributed.num_processes is {wanted}, but this is process {os.environ.get('RANK', '0')} of "
            f"{started}. Start {wanted} with torchrun (on one machine --nproc-per-node {wanted}), or set num_processes "
            f"to {started}."
        )


def strategy_arguments(config: TrainConfig) -> dict[str, Any]:
    """Return what ``transformers.TrainingArguments`` needs to know of ``config.distributed``.

    ``gradient_checkpointing`` is among it: FSDP2 has its own, as with transformers' each layer is gathered once more.
    """
    checkpoints = config.gradient_checkpointing
    if config.distributed.num_processes == 1:  # nothing to shard over: fsdp2 on one rank is plain training
        return {"gradient_checkpointing": checkpoints}
    if config.distributed.strategy == "ddp":
        # Every parameter gets a gradient; the search for those without one would walk the graph at each step.
        return {"gradient_checkpointing": checkpoints, "ddp_find_unused_parameters": False}
    # The wrap policy makes a unit of each decoder layer, by the model's _no_split_modules.
    fsdp = {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "reshard_after_forward": True,
        "activation_checkpointing": checkpoints,
    }
    return {"gradient_checkpointing": False, "fsdp": True, "fsdp_config": fsdp}


def shard_on_cpu(trainer: Trainer) -> None:
    """Make FSDP2 true on a CPU; call it where the trainer has just made its accelerator.

    accelerate 1.15 (``AcceleratorState.__init__``) reads the FSDP plugin for every kind of device but
    ``DistributedType.MULTI_CPU``, so that ``fsdp=True`` silently becomes DDP there. What comes after works on a CPU.
    Does nothing on a GPU or without FSDP.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    state = trainer.accelerator.state
    if trainer.args.fsdp_plugin_args is None or state.distributed_type != DistributedType.MULTI_CPU:
        return
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    if trainer.args.bf16:
        state.fsdp_plugin.set_mixed_precision("bf16")
    state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    trainer.is_fsdp_enabled = True


@contextmanager
def gathered_parameters(model: nn.Module) -> Iterator[None]:
    """Hold all parameters of a sharded model on every rank, for forward passes without gradient.

    Otherwise FSDP2 gathers every layer for every token that ``generate`` samples, and all ranks have to sample as long
    as the slowest. Costs the memory of one whole copy. Does nothing to a model that is not sharded.
    """
    from torch.distributed.fsdp import FSDPModule

    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    # Private, as torch has no getter: accelerate lets the LM head and the root stay whole between forward and backward.
    reshards = [
        any(group.post_forward_mesh_info is not None for group in unit._get_fsdp_state()._fsdp_param_groups)
        for unit in units
    ]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit, reshard in zip(units, reshards, strict=True):
            unit.set_reshard_after_forward(reshard, recurse=False)
            unit.reshard()


# --- state -----------------------------------------------------------------------------------------------------------


def full_weights(trainer: Trainer, *, trained_only: bool = False) -> dict[str, Tensor]:
    """Return the weights, whole, under the names of the model that was not wrapped; every rank must call it.

    Args:
        trainer: after its model was prepared, that is in or after ``train()``.
        trained_only: leave out what no update changes: with LoRA all but the adapters.

    Returns:
        On the first rank tensors in CPU memory, which later updates leave alone; on the others nothing.
    """
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    weights = get_model_state_dict(trainer.model_wrapped, options=_full(ignore_frozen_params=trained_only))
    return _first_rank_copies(trainer, weights)


def training_state(trainer: Trainer) -> dict[str, Any]:
    """Return what updates change, whole, in one form for every number of ranks and strategy; every rank must call it.

    Returns:
        ``model``: trained weights by name; ``optimizer``: ``{"state": {name: {"exp_avg": ..., "exp_avg_sq": ...,
        "step": ...}}, "param_groups": [{"lr": ..., "params": [name, ...]}]}``; ``schedule``: numbers. On the first rank
        tensors in CPU memory, which later updates leave alone; on the others the first two are empty.
    """
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    optimizer = get_optimizer_state_dict(trainer.model_wrapped, trainer.optimizer.optimizer, options=_full())
    return {
        "model": full_weights(trainer, trained_only=True),
        "optimizer": _first_rank_copies(trainer, optimizer),
        "schedule": trainer.lr_scheduler.state_dict(),
    }


def load_training_state(trainer: Trainer, state: dict[str, Any] | None) -> None:
    """Put back what :func:`training_state` returned; every rank must call it, before the first update.

    The number of ranks and the strategy may differ from those it was taken with.

    Args:
        trainer: with its model and optimizer prepared, as in ``on_train_begin``.
        state: on the first rank, used up: later updates may write into its tensors. The others are sent what they need
            and may pass None.
    """
    from accelerate.utils import broadcast_object_list
    from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict

    is_first, num_ranks = trainer.accelerator.is_main_process, trainer.accelerator.num_processes
    assert state is not None or not is_first
    state = state if state is not None and is_first else {"model": {}, "optimizer": {}, "schedule": None}
    options = _full(broadcast_from_rank0=num_ranks > 1, strict=False)  # frozen weights are not in it
    # The optimizer first: torch makes its state by an update without gradient or learning rate.
    set_optimizer_state_dict(
        trainer.model_wrapped, trainer.optimizer.optimizer, dict(state["optimizer"]), options=options
    )
    set_model_state_dict(trainer.model_wrapped, dict(state["model"]), options=options)
    schedule = [state["schedule"]]
    broadcast_object_list(schedule)
    trainer.lr_scheduler.load_state_dict(schedule[0])


def _full(**options: Any) -> StateDictOptions:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=not options.get("broadcast_from_rank0", False), **options)


def _first_rank_copies(trainer: Trainer, tree: dict[str, Any]) -> dict[str, Any]:
    """Return the tree with its tensors copied on the first rank, an empty one on the others.

    torch hands out the tensors in use where there was nothing to gather or to move: on a CPU all, on a GPU the scalars.
    """
    from torch import Tensor
    from torch.utils._pytree import tree_map_only

    if not trainer.accelerator.is_main_process:
        return {}
    in_use = trainer.accelerator.device.type == "cpu"

    def copy(tensor: Tensor) -> Tensor:
        return tensor.detach().clone() if in_use or tensor.dim() == 0 else tensor

    copied: dict[str, Any] = tree_map_only(Tensor, copy, tree)
    return copied


# --- processes -------------------------------------------------------------------------------------------------------


def leave_process_group() -> None:
    """Close the connections to the other ranks, if there are any."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def lost_a_rank(error: BaseException) -> bool:
    """Whether an error says that another rank went away: the cause is elsewhere."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
