"""Measure the policy on held-out problems while it trains, and tell when training should stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object

from progrpo.config import HeldoutConfig
from progrpo.data.dataset import Problem
from progrpo.evaluation.pass_at_k import pass_at_k
from progrpo.generation.engine import Completion
from progrpo.metrics import HELDOUT_ENTROPY, heldout_pass_at
from progrpo.rewards import verify_batch
from progrpo.training.trainer import PolicyTrainer

_TAG = 1  # last part of a key: rollouts' keys have none, so the two never share their randomness


class Heldout:
    """Held-out measurements of one run.

    Every measurement draws with the same random numbers, so that two of them differ by the policy and not by luck.

    Args:
        trainer: whose policy is measured, at the rollout temperature.
        config: how.
        problems: the held-out problems that are used.
        prompts: token ids of each problem's prompt.
    """

    def __init__(
        self,
        trainer: PolicyTrainer,
        config: HeldoutConfig,
        problems: Sequence[Problem],
        prompts: Sequence[Sequence[int]],
    ) -> None:
        self._trainer, self._config, self._problems, self._prompts = trainer, config, problems, prompts
        self.every = config.every
        self.start_entropy: float | None = None
        self.best = -1.0
        """Best pass@1 so far."""
        self._since_best = 0
        self.stop_reason: str | None = None
        """Why training should stop after the last measurement, if it should."""

    def measure(self) -> dict[str, float]:
        """Sample and verify; every rank must call it, and gets the same numbers."""
        accelerator, n = self._trainer.accelerator, self._config.num_samples
        indices = list(range(len(self._problems)))
        padded = indices + indices[-1:] * (-len(indices) % accelerator.num_processes)
        each = len(padded) // accelerator.num_processes
        mine = padded[accelerator.process_index * each : (accelerator.process_index + 1) * each]
        owners = [i for i in mine for _ in range(n)]
        keys = [(i, number, _TAG) for i in mine for number in range(n)]
        completions = self._trainer.collector.engine.sample([self._prompts[i] for i in owners], keys)
        texts = self._trainer.collector.decoder.batch_decode(
            [list(c.token_ids) for c in completions], skip_special_tokens=True
        )
        verdicts = verify_batch(
            [(self._problems[i].task, self._problems[i].answer, text) for i, text in zip(owners, texts, strict=True)]
        )
        entropies = self._entropy_sums([self._prompts[i] for i in owners], completions)
        rows = gather_object(
            [
                (verdict.correct, len(completion.token_ids), entropy)
                for verdict, completion, entropy in zip(verdicts, completions, entropies, strict=True)
            ]
        )[: len(indices) * n]
        correct, tokens, entropy = (np.array(column) for column in zip(*rows, strict=True))
        per_problem = correct.reshape(-1, n).sum(axis=1)
        return {
            heldout_pass_at(1): float(correct.mean()),
            heldout_pass_at(n): float(pass_at_k(n, per_problem, n).mean()),
            HELDOUT_ENTROPY: float(entropy.sum() / tokens.sum()),
        }

    def _entropy_sums(self, prompts: Sequence[Sequence[int]], completions: Sequence[Completion]) -> list[float]:
        """Sum of the token entropies of each completion, from the trainer's own scoring pass."""
        trainer = self._trainer
        pad, device = trainer.processing_class.pad_token_id, trainer.accelerator.device
        size = trainer.args.per_device_train_batch_size
        sums: list[float] = []
        for start in range(0, len(prompts), size):
            pairs = list(zip(prompts[start : start + size], completions[start : start + size], strict=True))
            left, right = max(len(p) for p, _ in pairs), max(len(c.token_ids) for _, c in pairs)
            ids, mask = [], []
            for prompt, completion in pairs:
                before, after = left - len(prompt), right - len(completion.token_ids)
                ids.append([pad] * before + [*prompt, *completion.token_ids] + [pad] * after)
                mask.append([0] * before + [1] * (left + right - before - after) + [0] * after)
            mask_BT = torch.tensor(mask, device=device)
            with torch.no_grad():
                _, entropies_BT, _ = trainer._get_per_token_logps_and_entropies(
                    trainer.model, torch.tensor(ids, device=device), mask_BT, right, compute_entropy=True
                )
            assert entropies_BT is not None
            sums += (entropies_BT.float() * mask_BT[:, -right:]).sum(dim=1).tolist()
        return sums

    @property
    def improved(self) -> bool:
        """Whether the last measurement's pass@1 is the best so far."""
        return self._since_best == 0

    def take(self, metrics: dict[str, float]) -> str | None:
        """Take note of a measurement; return why training should stop, or None."""
        self.stop_reason = self._judge(metrics)
        return self.stop_reason

    def _judge(self, metrics: dict[str, float]) -> str | None:
        entropy, rate = metrics[HELDOUT_ENTROPY], metrics[heldout_pass_at(1)]
        if self.start_entropy is None:
            self.start_entropy = entropy
        self._since_best = 0 if rate > self.best else self._since_best + 1
        self.best = max(self.best, rate)
        floor, patience = self._config.min_entropy_frac, self._config.patience
        if floor is not None and entropy < floor * self.start_entropy:
            return (
                f"entropy collapsed: {entropy:.4g} nats on held-out problems are below {floor:g} of the "
                f"{self.start_entropy:.4g} at the start"
            )
        if patience is not None and self._since_best >= patience:
            return f"no progress: the best held-out pass@1, {self.best:.4g}, is {self._since_best} measurements old"
        return None

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs to know of the measurements so far."""
        return {
            "start_entropy": self.start_entropy,
            "best": self.best,
            "since_best": self._since_best,
            "stop_reason": self.stop_reason,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` returned."""
        self.start_entropy, self.best, self._since_best = state["start_entropy"], state["best"], state["since_best"]
        self.stop_reason = state["stop_reason"]
