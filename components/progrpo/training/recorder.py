"""What happens beside the updates: metrics, rollouts, held-out measurements, resume points, orderly stops."""

from __future__ import annotations

import math
import resource
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from progrpo.config import TrainConfig
from progrpo.errors import TrainingError
from progrpo.manifest import replacing
from progrpo.metrics import MetricSink, heldout_pass_at
from progrpo.training.heldout import Heldout
from progrpo.training.resume import Resume
from progrpo.training.trainer import PolicyTrainer

TRL_METRICS = {
    "reward": "train/reward",
    "reward_std": "train/reward_std",
    "entropy": "train/entropy",
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/learning_rate",
    "completions/mean_length": "train/completion_tokens",
    "completions/clipped_ratio": "train/truncated_frac",
    "frac_reward_zero_std": "train/zero_std_frac",
    "kl": "train/kl",
    "clip_ratio/region_mean": "train/clipped_frac",
    "entropy_coef": "train/entropy_coef",
    "sampling/importance_sampling_ratio/mean": "train/importance_ratio",
    "overlong_penalty": "train/overlong_penalty",
    "unscored_frac": "train/unscored_frac",
    "resample/rounds": "train/resample/rounds",
    "resample/groups": "train/resample/groups",
    "resample/skipped_frac": "train/resample/skipped_frac",
    "logprob_mismatch": "perf/logprob_mismatch",
}
"""TRL's log keys and the trainer's, which progrpo.metrics.TRAIN_METRICS explains; an algorithm's keep their names."""


class Recorder(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Follows a training run step by step, on every rank; only the first writes.

    Between the first weight that a step changes and its last record nothing may interrupt it: :meth:`stoppable` tells,
    so that the weights in memory are always those of the last recorded step.

    Args:
        trainer: what is followed.
        config: its settings.
        output: where rollouts are kept.
        sinks: where each step's metrics go.
        heldout: measures held-out problems; None: nothing does.
        resume: keeps resume points; None: nothing does.
    """

    def __init__(
        self,
        trainer: PolicyTrainer,
        config: TrainConfig,
        output: Path,
        sinks: Sequence[MetricSink],
        heldout: Heldout | None,
        resume: Resume | None,
    ) -> None:
        self._trainer, self._config, self._output, self._sinks = trainer, config, output, sinks
        self._heldout, self._resume = heldout, resume
        self._last, self._num_tokens = time.monotonic(), 0
        self._updating = False
        self._signal: int | None = None
        self.stopped: str | None = None
        """Why training stopped before its last step, if it did."""

    # --- transformers' loop ------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Go to the resume point, if there is one; else measure the start.

        Raises:
            Finished: the point is of the last step, or of the one that training stopped at.
        """
        if self._resume is not None and self._resume.restore(self._trainer, self._heldout):
            self._num_tokens = state.num_input_tokens_seen
            self.stopped = self._heldout.stop_reason if self._heldout is not None else None
            if self.stopped or state.global_step == self._config.steps:
                raise Finished  # the loop would make one more step before it looks
        elif self._heldout is not None:
            self._write(0, self._measure(control))
        self._last = time.monotonic()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Restore the global random numbers: making the iterator that led here has drawn from them."""
        if self._resume is not None:
            self._resume.restore_random_state()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Weights change from here on."""
        self._updating = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        """Record a finished step."""
        if "loss" not in logs:  # the summary after the last step
            return
        step, config = state.global_step, self._config
        names = TRL_METRICS | {name: name for name in self._trainer.method.algorithm.metrics}
        metrics = {ours: float(logs[key]) for key, ours in names.items() if logs.get(key) is not None}
        metrics |= self._performance(state.num_input_tokens_seen)
        if config.log_rollouts_every and (step % config.log_rollouts_every == 0 or step == 1):
            self._keep_rollouts(step)
        measured: dict[str, float] = {}
        if self._heldout is not None and (step % self._heldout.every == 0 or step == config.steps):
            measured = self._measure(control)
        metrics |= measured
        self._write(step, metrics)
        for key in ("train/loss", "train/grad_norm"):
            if not math.isfinite(metrics[key]):
                raise TrainingError(
                    f"{key} is {metrics[key]} in step {step}. Lower train.learning_rate (now "
                    f"{config.learning_rate:g}) or train.max_grad_norm (now {config.max_grad_norm:g})."
                )
        if self._resume is not None:
            self._resume.reached(step, self._trainer, self._heldout, score=measured.get(heldout_pass_at(1)))
        self._updating = False
        self._stop_if_told()
        if self._resume is not None and self._resume.is_due(step):
            self._resume.save()
        self._last = time.monotonic()

    # --- records -----------------------------------------------------------------------------------------------------

    def _write(self, step: int, metrics: Mapping[str, float]) -> None:
        for sink in self._sinks:
            sink.log(step, metrics)

    def _performance(self, num_tokens: int) -> dict[str, float]:
        seconds = time.monotonic() - self._last
        tokens, self._num_tokens = num_tokens - self._num_tokens, num_tokens
        device = self._trainer.accelerator.device
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device)
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        metrics = {"train/step_s": seconds, "perf/peak_memory_gib": peak / 2**30}
        # A later update of a batch of rollouts samples nothing.
        return metrics | ({"perf/tokens_per_s": tokens / seconds} if tokens else {})

    def _keep_rollouts(self, step: int) -> None:
        table = self._trainer.gather_rollouts()
        if self._trainer.accelerator.is_main_process:
            path = self._output / "rollouts" / f"step_{step:05d}.parquet"
            write_rollouts(path, {"step": [step] * len(table["group"]), **table})
            if self._resume is not None:
                self._resume.share(path)

    def _measure(self, control: Any) -> dict[str, float]:
        assert self._heldout is not None
        metrics = self._heldout.measure()
        reason = self._heldout.take(metrics)
        if reason is not None:
            self.stopped, control.should_training_stop = reason, True
        return metrics

    # --- stopping ----------------------------------------------------------------------------------------------------

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Turn SIGTERM and SIGINT into :class:`Stopped`, at a moment when the weights are those of a recorded step.

        One rank stops at once, in the middle of its rollouts if need be. Several stop together at the end of the step:
        one that left alone would leave the others waiting.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(signum: int, frame: object) -> None:
            self._signal = signum
            if not self._updating and self._trainer.accelerator.num_processes == 1:
                raise Stopped(signum)

        previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _stop_if_told(self) -> None:
        accelerator = self._trainer.accelerator
        told = torch.tensor(self._signal or 0, device=accelerator.device)
        if accelerator.num_processes > 1:
            told = accelerator.gather(told).max()
        if told:
            raise Stopped(int(told))


class Finished(Exception):  # noqa: N818  # not an error
    """A run that went on has no step left to make."""


class Stopped(Exception):  # noqa: N818  # not an error
    """The run was told to stop by a signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def write_rollouts(path: Path, rollouts: Mapping[str, Sequence[Any]]) -> None:
    """Write one step's rollouts as parquet, one row a completion, in group order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        pq.write_table(pa.table(dict(rollouts)), temporary)
