"""What to change when a training run does not fit its device, computed from the estimate."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from progrpo.checkpoints.architecture import Architecture
from progrpo.config import Arm, LoRAConfig, TrainConfig, TransformersEngineConfig, VLLMEngineConfig
from progrpo.training.estimate import MemoryEstimate, estimate_memory

_MAX_RANKS = 8  # of one machine
# They need other hardware or make another experiment of it: last to be turned, first to be taken back.
_DEAREST = ("train.max_completion_tokens", "train.lora", "train.distributed")


@dataclass(frozen=True)
class Run:
    """What an estimate is made for; the fields are the arguments of :func:`estimate_memory`."""

    model: Architecture
    train: TrainConfig
    arm: Arm
    on_gpu: bool
    prompt_tokens: int | None
    device_bytes: int

    def estimate(self, train: TrainConfig | None = None) -> MemoryEstimate:
        """Estimate with these settings, or with other ones of ``train``."""
        return estimate_memory(
            self.model,
            train or self.train,
            self.arm,
            on_gpu=self.on_gpu,
            prompt_tokens=self.prompt_tokens,
            device_bytes=self.device_bytes,
        )


Changes = dict[str, Any]
"""Fields of ``TrainConfig`` with their new values."""


@dataclass(frozen=True)
class _Knob:
    """One setting to turn, from the mildest value to the strongest."""

    name: str
    now: str
    values: tuple[tuple[str, Changes], ...]


def advise(run: Run) -> list[str]:
    """Say which settings make a run fit its device, those on the biggest part of its memory first.

    Returns:
        One line for each setting that fits alone, with the mildest value that does. If none does, one line on all that
        are needed together; nothing if the run fits as it is.
    """
    if run.estimate().peak <= run.device_bytes:
        return []
    lines = []
    for knob in _knobs(run):
        for value, changes in knob.values:
            peak = run.estimate(_changed(run.train, changes)).peak
            if peak <= run.device_bytes:
                lines.append(f"{knob.name} {value} (now {knob.now}): about {readable_size(peak)}, fits")
                break
    return lines or [_together(run)]


def readable_size(size: int) -> str:
    """Return a size in multiples of 1000 bytes, such as ``7.4 GB``."""
    if size < 99_950_000:
        return f"{size / 1e6:,.1f} MB"
    return f"{size / 1e9:,.1f} GB" if size < 99_950_000_000 else f"{size / 1e9:,.0f} GB"


def _together(run: Run) -> str:
    """Turn the knob that helps most until the run fits, then take back what is not needed after all."""
    chosen: dict[str, tuple[str, Changes]] = {}

    def peak_of(settings: dict[str, tuple[str, Changes]]) -> int:
        train = run.train
        for _, changes in settings.values():
            train = _changed(train, changes)
        if train.rows_per_rank % (train.micro_batch_size or 1):
            return sys.maxsize  # TrainConfig would refuse it
        return run.estimate(train).peak

    knobs = {knob.name: knob for knob in _knobs(run)}
    while (peak := peak_of(chosen)) > run.device_bytes:
        best = chosen
        for group in (sorted(knobs.keys() - set(_DEAREST)), _DEAREST):  # what changes the experiment comes last
            tried = [{**chosen, name: value} for name in group if name in knobs for value in knobs[name].values]
            best = min(tried, key=peak_of, default=chosen)
            if peak_of(best) < peak:
                break
        else:
            return (
                f"no setting makes it fit: with {_listed(chosen)} it still takes about {readable_size(peak)}. "
                f"Take a larger GPU or a smaller model"
            )
        chosen = best
    for name in sorted(chosen, key=lambda name: _DEAREST.index(name) if name in _DEAREST else len(_DEAREST)):
        rest = {other: value for other, value in chosen.items() if other != name}
        milder = [rest, *({**rest, name: value} for value in knobs[name].values)]
        chosen = next(settings for settings in milder if peak_of(settings) <= run.device_bytes)
    return f"{_listed(chosen)} together: about {readable_size(peak_of(chosen))}, fits"


def _listed(settings: dict[str, tuple[str, Changes]]) -> str:
    return ", ".join(f"{name} {value}" for name, (value, _) in settings.items()) or "every setting tried"


def _changed(train: TrainConfig, changes: Changes) -> TrainConfig:
    """Return other settings; a mapping changes single fields of what is there."""
    update = {
        key: getattr(train, key).model_copy(update=value) if isinstance(value, dict) else value
        for key, value in changes.items()
    }
    return train.model_copy(update=update)


def _knobs(run: Run) -> Iterator[_Knob]:
    """The knobs for each part of the memory, the biggest part first and each knob once."""
    seen = set()
    for part in run.estimate().parts:
        for make in _KNOBS.get(part, ()):
            if make not in seen:
                seen.add(make)
                if (knob := make(run)).values:
                    yield knob


def _micro_batch(run: Run) -> _Knob:
    rows = run.train.rows_per_rank
    now = run.train.micro_batch_size or rows
    sizes = [size for size in range(now - 1, 0, -1) if rows % size == 0]
    values = tuple((str(size), {"micro_batch_size": size}) for size in sizes)
    return _Knob("train.micro_batch_size", str(now), values)


def _checkpointing(run: Run) -> _Knob:
    values = () if run.train.gradient_checkpointing else (("true", {"gradient_checkpointing": True}),)
    return _Knob("train.gradient_checkpointing", "false", values)


def _lora(run: Run) -> _Knob:
    values = () if run.train.lora else (("{rank: 16}", {"lora": LoRAConfig()}),)
    return _Knob("train.lora", "absent", values)


def _fsdp(run: Run) -> _Knob:
    distributed = run.train.distributed
    now = distributed.num_processes if distributed.strategy == "fsdp2" else 1
    prompts = run.train.prompts_per_step
    counts = [n for n in range(max(2, now + 1), min(prompts, _MAX_RANKS) + 1) if prompts % n == 0] if run.on_gpu else []
    values = tuple(
        (
            f"{{num_processes: {n}, strategy: fsdp2}}",
            {"distributed": {"num_processes": n, "strategy": "fsdp2"}},
        )
        for n in counts
        if (run.train.rows_per_step // n) % (run.train.micro_batch_size or 1) == 0
    )
    shown = f"{{num_processes: {distributed.num_processes}, strategy: {distributed.strategy}}}"
    return _Knob("train.distributed", shown, values)


def _generation_batch(run: Run) -> _Knob:
    engine = run.train.engine
    if not isinstance(engine, TransformersEngineConfig):
        return _Knob("train.engine.batch_size", "", ())
    rows = run.train.rows_per_rank * run.train.updates_per_rollout
    now = min(engine.batch_size or rows, rows)
    sizes, size = [], now // 2
    while size:
        sizes.append(size)
        size //= 2
    values = tuple((str(n), {"engine": {"batch_size": n}}) for n in sizes)
    return _Knob("train.engine.batch_size", str(now), values)


def _vllm_share(run: Run) -> _Knob:
    engine = run.train.engine
    if not isinstance(engine, VLLMEngineConfig):
        return _Knob("train.engine.memory_frac", "", ())
    # Its share must hold the weights in bfloat16 and have room for a cache besides.
    least = 1.2 * 2 * run.model.num_parameters / engine.tensor_parallel / run.device_bytes
    fracs = [percent / 100 for percent in range(int(engine.memory_frac * 100) - 5, 4, -5) if percent / 100 >= least]
    values = tuple((f"{frac:g}", {"engine": {"memory_frac": frac}}) for frac in fracs)
    return _Knob("train.engine.memory_frac", f"{engine.memory_frac:g}", values)


def _vllm_sleep(run: Run) -> _Knob:
    engine = run.train.engine
    awake = isinstance(engine, VLLMEngineConfig) and engine.mode == "colocate" and not engine.sleep
    values = (("true", {"engine": {"sleep": True}}),) if awake else ()
    return _Knob("train.engine.sleep", "false", values)


def _completion(run: Run) -> _Knob:
    now = run.train.max_completion_tokens
    lengths, length = [], now // 2
    while length >= 1 and length >= now // 16:
        lengths.append(length)
        length //= 2
    values = tuple((str(n), {"max_completion_tokens": n}) for n in lengths)
    return _Knob("train.max_completion_tokens", str(now), values)


def _optimizer(run: Run) -> _Knob:
    values = (("adamw_8bit", {"optimizer": "adamw_8bit"}),) if run.on_gpu and run.train.optimizer == "adamw" else ()
    return _Knob("train.optimizer", run.train.optimizer, values)


_KNOBS: dict[str, tuple[Callable[[Run], _Knob], ...]] = {
    "activations": (_micro_batch, _checkpointing, _completion),
    "head": (_micro_batch,),
    "rollouts": (_generation_batch, _completion),
    "vllm": (_vllm_sleep, _vllm_share),
    "weights": (_fsdp, _lora),
    "gradients": (_fsdp, _lora),
    "optimizer": (_optimizer, _fsdp, _lora),
    "reference": (_lora, _fsdp),
    "optimizer_step": (_optimizer, _fsdp, _lora),
}
