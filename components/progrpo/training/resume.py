"""Go on exactly where a run was killed: what makes up its state, when it is saved, how it comes back.

A resume point holds the trained weights, the optimizer and the schedule (equal on all ranks), for each rank where it
stands (data position, buffered rollouts, random numbers), the held-out measurements so far and the metrics file.
:mod:`progrpo.training.state` keeps points whole and in the right place.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from torch.utils._pytree import tree_map_only

from progrpo.config import Arm, CheckpointingConfig, TrainConfig
from progrpo.errors import StateError, StorageError
from progrpo.metrics import METRICS_NAME
from progrpo.training.distributed import load_training_state, training_state
from progrpo.training.heldout import Heldout
from progrpo.training.state.points import ResumePoint
from progrpo.training.state.store import StateStore, check_fingerprint
from progrpo.training.state.tensors import get_rng_state, load_tree, save_tree, set_rng_state
from progrpo.training.trainer import PolicyTrainer

logger = logging.getLogger(__name__)

FREE = (
    "train.steps",
    "train.checkpointing",
    "train.log_rollouts_every",
    "train.num_threads",
    "train.max_steps_without_signal",
)
"""Settings that may change when a run goes on: none of them changes what a step does."""


def fingerprint(arm: Arm, seed: int, config: TrainConfig, inputs: Mapping[str, str]) -> dict[str, Any]:
    """Return what must be equal for a run to go on from another's resume point."""
    return {"arm": arm.model_dump(mode="json"), "seed": seed, "train": config.model_dump(mode="json"), **inputs}


class Resume:
    """Saves and restores one run. Every rank has one; the first reads and writes.

    Args:
        config: when and where.
        store: where points are kept; None on ranks that neither read nor write.
        identity: :func:`fingerprint` of the run.
        output: the run's directory, whose metrics and rollouts come back with it.
        last_step: the last step needs no point.
    """

    def __init__(
        self,
        config: CheckpointingConfig,
        store: StateStore | None,
        identity: Mapping[str, Any],
        output: Path,
        last_step: int,
    ) -> None:
        self._config, self._store, self._identity = config, store, identity
        self._output, self._last_step = output, last_step
        self._reached: tuple[int, dict[str, Any], dict[str, Any] | None] | None = None
        self._trainer: PolicyTrainer | None = None
        self._random_state: Any = None
        self._score: float | None = None
        self._is_best = False
        self._started = time.monotonic()
        self.previous_s = 0.0
        """Wall time that earlier attempts spent on the steps they finished, seconds."""

    # --- saving ------------------------------------------------------------------------------------------------------

    def is_due(self, step: int) -> bool:
        """Whether a point should be saved after this step, the last that was reached."""
        best = self._config.keep_best and self._is_best
        return (step % self._config.every == 0 or best) and step < self._last_step

    def reached(self, step: int, trainer: PolicyTrainer, heldout: Heldout | None, *, score: float | None) -> None:
        """Take note of where the run stands after a step; weights and optimizer are read when it is saved.

        Args:
            step: that was finished.
            trainer: its trainer.
            heldout: the measurements so far.
            score: held-out pass@1 of these very weights; None if they were not measured.
        """
        self._trainer = trainer
        elapsed = self.previous_s + time.monotonic() - self._started
        place = {"position": trainer.position(), "random": get_rng_state(), "elapsed_s": elapsed}
        self._reached = (step, place, heldout.state() if heldout is not None else None)
        self._score, self._is_best = score, heldout is not None and score is not None and heldout.improved

    def save(self) -> None:
        """Save the point of the last finished step; every rank must call it.

        A disk that refuses is reported and does not end the training: the older points are untouched.
        """
        if self._reached is None or self._trainer is None:
            return  # not one step was finished
        step, place, heldout = self._reached
        state = training_state(self._trainer)
        # Off the GPU first: a tensor of another rank would come back on that rank's GPU, in this process.
        places = gather_object([tree_map_only(Tensor, lambda tensor: tensor.cpu(), place)])
        if self._store is None:
            return

        def write(directory: Path) -> None:
            save_tree(directory / "weights", state["model"])
            save_tree(directory / "optimizer", {"optimizer": state["optimizer"], "schedule": state["schedule"]})
            for rank, each in enumerate(places):
                save_tree(directory / f"rank_{rank}", each)
            save_tree(directory / "heldout", heldout)
            shutil.copyfile(self._output / METRICS_NAME, directory / METRICS_NAME)

        try:
            self._store.save(step, write, fingerprint=self._identity, score=self._score)
        except StorageError as error:
            logger.warning("the state of step %d was not saved: %s", step, error)

    def share(self, path: Path) -> None:
        """Keep a file of the output that later points need, too."""
        if self._store is not None:
            try:
                self._store.add_shared(path, f"{path.parent.name}/{path.name}")
            except StorageError as error:
                logger.warning("%s was not kept for a resumed run: %s", path.name, error)

    # --- restoring ---------------------------------------------------------------------------------------------------

    def restore(self, trainer: PolicyTrainer, heldout: Heldout | None) -> bool:
        """Go to the newest point, if there is one; every rank must call it.

        Raises:
            StateError: the point is another run's or of a later step than the last, or none of those there can be read.
        """
        point = self._find()
        state: dict[str, Any] | None = None
        found: list[Any] = [None]
        if point is not None:
            state, places, measured = self._read(point)
            found = [(point.step, places, measured, point.score)]
        broadcast_object_list(found, from_process=0)
        if found[0] is None:
            return False
        step, places, measured, score = found[0]
        place = places[trainer.accelerator.process_index]
        load_training_state(trainer, state)
        trainer.go_to(place["position"])
        trainer.state.global_step = step
        trainer._globalstep_last_logged = step  # of transformers' loop, which took it before this
        self._random_state, self.previous_s = place["random"], place["elapsed_s"]
        if heldout is not None and measured is not None:
            heldout.restore(measured)
        logger.info("going on after step %d", step)
        self.reached(step, trainer, heldout, score=score)
        return True

    def restore_random_state(self) -> None:
        """Set the global random numbers to those of the point, once."""
        if self._random_state is not None:
            set_rng_state(self._random_state)
            self._random_state = None

    def _find(self) -> ResumePoint | None:
        if self._store is None or (point := self._store.latest()) is None:
            return None
        check_fingerprint(point, self._identity, free=FREE)
        if point.step > self._last_step:
            raise StateError(
                f"{point.directory} is of step {point.step}, but train.steps is {self._last_step}. Raise it to at "
                f"least {point.step}, or give another train.checkpointing.name to start anew."
            )
        return point

    def _read(self, point: ResumePoint) -> tuple[dict[str, Any], list[Any], Any]:
        assert self._store is not None
        shutil.copyfile(point.directory / METRICS_NAME, self._output / METRICS_NAME)
        self._store.fetch_shared(self._output, lambda name: _step_of(name) <= point.step)
        rest = load_tree(point.directory / "optimizer")
        state = {"model": load_tree(point.directory / "weights"), **rest}
        num_ranks = len(list(point.directory.glob("rank_*.json")))
        places = [load_tree(point.directory / f"rank_{rank}") for rank in range(num_ranks)]
        return state, places, load_tree(point.directory / "heldout")


def _step_of(name: str) -> int:
    return int(Path(name).stem.removeprefix("step_"))
