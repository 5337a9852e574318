"""The one seam to TRL: GRPOTrainer with the rollouts and the advantages in our hands.

What happens in a training step, in order, and whose it is:

1. ``_prepare_inputs`` asks the :class:`~progrpo.training.rollouts.Collector` for a batch of judged groups: prompts,
   completions, verdicts, rewards, advantages. All ours.
2. ``_generate_and_score_completions`` (TRL's own) makes padded tensors of them and, where they are needed, scores them
   with the policy as it is now (the *old* log-probabilities), the reference model, and vLLM's mismatch.
3. ``_compute_loss``: TRL's clipped loss, whose forward pass goes through
4. ``_get_per_token_logps_and_entropies``, where the hooks of the algorithm (:class:`progrpo.algorithms.Algorithm`) get
   the log-probabilities they need.

``reweight`` reads those of the old policy's pass where there is one, else of the training pass itself: on the first and
only update of a batch of rollouts the policy that is trained is the policy that sampled. Either way no forward pass is
added.

Rows keep their order: a group is never split over ranks or updates, nor over forward passes if ``micro_batch_size`` is
a multiple of G. The methods with an underscore are private in TRL; tests/unit/training/test_trl_contract.py fails if
they change.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader
from trl import GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from progrpo.algorithms import Sampled, Update
from progrpo.algorithms.confidence import predicted_tokens
from progrpo.config import Method
from progrpo.errors import TrainingError
from progrpo.training.distributed import shard_on_cpu
from progrpo.training.rollouts import Batch, Collector


@dataclass
class _Pass:
    """A forward pass over rows that were sampled: before their first update, or one that is differentiated."""

    rows: dict[str, Any]
    is_update: bool = False
    penalty: Tensor | None = None
    """What the algorithm adds to the loss."""
    entropy: Tensor | None = None
    """Mean over the tokens, for the entropy bonus."""


class PolicyTrainer(GRPOTrainer):  # type: ignore[misc]  # TRL is untyped
    """Any algorithm by its hooks, on TRL's engine.

    Attributes:
        method: the algorithm in force.
        collector: where rollouts come from; set before training.
        rollouts: the last batch's rollouts on this rank as columns, one entry a completion: the audit table.
    """

    collector: Collector

    def __init__(self, *args: Any, method: Method, max_steps_without_signal: int, **kwargs: Any) -> None:
        """Take TRL's arguments, the algorithm and when to give up."""
        super().__init__(*args, rollout_func=_already_sampled, **kwargs)
        self.method = method
        self.max_steps_without_signal = max_steps_without_signal
        self.steps_without_signal = 0
        self.rollouts: dict[str, list[Any]] = {}
        self._batch: Batch | None = None
        self._pass: _Pass | None = None  # the next forward pass, if its rows are rollouts that an algorithm acts on

    @property
    def slices_per_batch(self) -> int:
        """Forward passes that go once over a batch of rollouts."""
        return int(self.args.steps_per_generation)

    @property
    def makes_old_pass(self) -> bool:
        """Whether TRL scores a batch with the policy that sampled it, before its first update."""
        passes = self.slices_per_batch * self.num_iterations
        corrects = self.use_vllm and self.vllm_importance_sampling_correction
        return bool(self.args.gradient_accumulation_steps % passes != 0 or corrects)

    def create_accelerator_and_postprocess(self) -> None:
        """Make the accelerator; on a CPU accelerate needs help to shard."""
        super().create_accelerator_and_postprocess()
        shard_on_cpu(self)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Tick once a forward pass: transformers' loop counts steps, the collector chooses what is trained on."""
        ticks = range(self.args.max_steps * self.args.gradient_accumulation_steps)
        return DataLoader(ticks, collate_fn=lambda _: {})  # type: ignore[arg-type]

    # --- rollouts ----------------------------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        if self._step % (self.slices_per_batch * self.num_iterations) == 0 or self._buffered_inputs is None:
            self._buffered_inputs: list[dict[str, Any]] | None = self._collect()
        inputs: dict[str, Any] = self._buffered_inputs[self._step % self.slices_per_batch]
        return inputs

    def _collect(self) -> list[dict[str, Any]]:
        """Collect a batch of rollouts and cut it into the slices of its forward passes."""
        rows_per_update = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        num_updates = self.slices_per_batch // self.args.gradient_accumulation_steps
        num_rows = rows_per_update * num_updates * self.accelerator.num_processes
        self._batch = batch = self.collector.collect(num_rows // self.num_generations)
        self.rollouts = batch.table()
        device, G = self.accelerator.device, self.num_generations
        judged = {
            "advantages": batch.judgement.advantages.flatten().to(device),  # TRL's own knows of no algorithm of ours
            "gate": batch.judgement.gate.flatten().to(device),
            "row": torch.arange(len(batch.groups) * G, device=device),
            "group": torch.tensor([g.place for g in batch.groups], device=device).repeat_interleave(G),
            "live": batch.live.repeat_interleave(G).to(device),
        }
        self._pass = _Pass(judged) if self.makes_old_pass else None
        rows: dict[str, Any] = self._generate_and_score_completions(
            [{"prompt": group.problem.prompt} for group in batch.groups for _ in group.rollouts]
        )
        self._pass = None
        rows |= judged
        # What dynamic sampling keeps: rows of each update over all ranks, and tokens of the batch.
        kept = self.accelerator.reduce(rows["live"].view(num_updates, -1).sum(dim=1), reduction="sum")
        rows["kept"] = kept.repeat_interleave(rows_per_update)
        kept_tokens = (rows["completion_mask"] * rows["live"][:, None]).sum()
        rows["num_items_in_batch"] = self.accelerator.gather(kept_tokens).sum()
        self._record_batch(batch, kept_frac=kept.sum().item() / num_rows, num_updates=num_updates)
        slices: list[dict[str, Any]] = split_tensor_dict(rows, self.slices_per_batch)
        for each in slices:
            # TRL divides by the tokens of a mean update; this makes it those of an update that keeps as many rows.
            each["num_items_in_batch"] = rows["num_items_in_batch"] * (
                each["kept"][0] * num_updates / kept.sum().clamp(min=1)
            )
        return slices

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids_list: list[Any]
    ) -> Tensor:
        """Return the correctness of all ranks' rows, [N, 1], NaN where the verifier could not tell."""
        assert self._batch is not None
        scored = torch.tensor([r.verdict.scored for group in self._batch.groups for r in group.rollouts])
        correctness = torch.where(scored, self._batch.judgement.correct.flatten().float(), torch.nan)
        rewards: Tensor = self.accelerator.gather(correctness[:, None].to(self.accelerator.device))
        self._log("unscored_frac", rewards.isnan().float().mean())
        return rewards

    def _record_batch(self, batch: Batch, *, kept_frac: float, num_updates: int) -> None:
        device, judgement = self.accelerator.device, batch.judgement
        if self.method.overlong_penalty is not None:
            self._log("overlong_penalty", self.accelerator.gather(judgement.penalties.to(device)).mean())
        if self.method.dynamic_sampling is not None:
            self._log("resample/rounds", batch.rounds)
            self._log("resample/groups", batch.resampled)
            self._log("resample/skipped_frac", 1.0 - kept_frac)
        signals = self.accelerator.reduce(judgement.signal.sum().to(device), reduction="sum")
        self.steps_without_signal = 0 if signals else self.steps_without_signal + num_updates * self.num_iterations
        if self.steps_without_signal >= self.max_steps_without_signal:
            correct = self.accelerator.gather(judgement.correct.float().to(device)).mean().item()
            raise TrainingError(
                f"no group has had a signal for {self.steps_without_signal} steps: all its rewards were equal, and in "
                f"the last batch {correct:.0%} of the completions were right. Give problems that the checkpoint "
                f"solves sometimes, or raise train.group_size (now {self.num_generations}) or "
                f"train.max_steps_without_signal (now {self.max_steps_without_signal})."
            )

    # --- update ------------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        rows = self._rows_to_train_on(inputs)
        if rows is None:
            return self._no_loss(model)
        entropy_coef = self._entropy_coef_of_step()
        self._pass = made = _Pass(rows, is_update=True)
        loss: Tensor = super()._compute_loss(model, rows)
        if made.penalty is not None:
            loss = loss + made.penalty
        # TRL averages over the rows of a slice; this makes it the average over all rows kept for the update.
        accumulated = self.current_gradient_accumulation_steps
        mean_kept = rows["kept"][0].item() / (accumulated * self.accelerator.num_processes)
        scale = 1.0 if self.loss_type == "dapo" else len(rows["live"]) / mean_kept
        loss = loss * scale
        if made.entropy is not None:  # TRL's bonus counts each slice alike, however many rows it keeps
            excess = scale - rows["live"].sum().item() / mean_kept
            loss = loss + excess * entropy_coef * made.entropy / accumulated
        return loss

    def _entropy_coef_of_step(self) -> float:
        """Return the coefficient that TRL is about to apply."""
        acts = not self.use_adaptive_entropy or self._last_world_entropy <= self.args.entropy_target
        return float(self.entropy_coef) if acts else 0.0

    def _rows_to_train_on(self, inputs: dict[str, Any]) -> dict[str, Any] | None:
        """Return the rows of a slice that dynamic sampling keeps, a copy, or None if no rank has any.

        TRL gathers values of rows, and sharded ranks wait for each other in every forward pass, so a rank with fewer
        rows than another fills up with some of those left out, their tokens masked.
        """
        live, num_live = inputs["live"], inputs["live"].sum()
        if self.accelerator.num_processes > 1:
            num_live = self.accelerator.gather(num_live).max()
        if not num_live:
            return None
        first = (~live).int().argsort(stable=True)[: int(num_live)]
        rows = _select(inputs, first.sort().values)
        if not live.all():
            rows["completion_mask"] = rows["completion_mask"] * rows["live"][:, None]
        return rows

    def _no_loss(self, model: Any) -> Tensor:
        """Return a loss of 0 that depends on every parameter, as backward needs one that does."""
        parameters = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters() if p.requires_grad]
        return torch.stack([p.sum() for p in parameters]).sum() * 0.0

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        made, self._pass = self._pass, None
        rows = {} if made is None else made.rows
        is_sampling_policy = made is not None and "old_per_token_logps" not in rows
        # The prompt is scored in the same pass. Its columns carry no loss, so the gradient is the same.
        scores_prompt = is_sampling_policy and self.method.algorithm.scores_prompt
        num_scored = input_ids.size(1) - 1 if scores_prompt else logits_to_keep
        logprobs, entropies, aux_loss = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, num_scored, *args, **kwargs
        )
        prompt_logprobs, logprobs = logprobs[:, :-logits_to_keep], logprobs[:, -logits_to_keep:]
        entropies = None if entropies is None else entropies[:, -logits_to_keep:]
        if is_sampling_policy:
            sampled = Sampled(
                advantages=rows["advantages"],
                gate=rows["gate"],
                group=rows["group"],
                prompt_logprobs=prompt_logprobs.detach(),
                prompt_mask=predicted_tokens(attention_mask)[:, :-logits_to_keep],
                logprobs=logprobs.detach(),
                mask=attention_mask[:, -logits_to_keep:],
                record=partial(self._record_rows, rows),
            )
            rows["advantages"] = self.method.algorithm.reweight(sampled)
        if made is not None and made.is_update:
            self._record_mismatch(rows, logprobs.detach())
            logprobs = self._restrain(made, logprobs)
            if entropies is not None and self._entropy_bonus_enabled:
                mask_BT = rows["completion_mask"]
                made.entropy = (entropies * mask_BT).sum() / mask_BT.sum().clamp(min=1)
        return logprobs, entropies, aux_loss

    def _restrain(self, made: _Pass, logprobs_BT: Tensor) -> Tensor:
        """Let the algorithm choose tokens whose gradient it takes, or that it charges for."""

        def penalize(values_BT: Tensor, coef: float) -> None:
            made.penalty = coef * self._aggregate(values_BT, made.rows)

        update = Update(
            advantages=made.rows["advantages"],
            mask=made.rows["completion_mask"],
            old_logprobs=made.rows.get("old_per_token_logps"),
            loss=self.method.loss,
            penalize=penalize,
            generator=self._generator_of_slice,
            log=self._log,
        )
        return self.method.algorithm.restrain(logprobs_BT, update)

    def _aggregate(self, values_BT: Tensor, rows: dict[str, Any]) -> Tensor:
        """Average values of tokens as TRL averages its policy loss, so that a penalty weighs as the loss does."""
        mask_BT = rows["completion_mask"]
        accumulated = self.current_gradient_accumulation_steps
        if self.loss_type == "dapo":
            tokens = rows["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
            mean: Tensor = (values_BT * mask_BT).sum() * self.slices_per_batch / tokens
        elif self.loss_type == "dr_grpo":
            mean = (values_BT * mask_BT).sum() / (len(values_BT) * self.max_completion_length)
        else:
            mean = ((values_BT * mask_BT).sum(-1) / mask_BT.sum(-1).clamp(min=1.0)).mean()
        mean = mean / accumulated
        return mean

    def _generator_of_slice(self) -> torch.Generator:
        """Return random numbers that depend on the run's seed and the slice, not on what was drawn before."""
        key = np.random.SeedSequence([self.args.seed, self._step, self.accelerator.process_index])
        return torch.Generator().manual_seed(int(key.generate_state(1)[0]))

    # --- records -----------------------------------------------------------------------------------------------------

    def _record_rows(self, rows: dict[str, Any], metric: str, values_B: Tensor, column: str | None = None) -> None:
        """Log the mean of a value of rows, and keep it in the audit table if that is to have a ``column`` of it."""
        # A row that only fills up has no tokens here, and so no values.
        values_B = values_B[rows["live"]]
        self._log(metric, self._mean_over_ranks(values_B))
        if column is not None:
            kept = self.rollouts.setdefault(column, [float("nan")] * len(self.rollouts["group"]))
            for row, value in zip(rows["row"][rows["live"]].tolist(), values_B.tolist(), strict=True):
                kept[row] = value

    def _record_mismatch(self, rows: dict[str, Any], logprobs_BT: Tensor) -> None:
        """Log how far the sampler's log-probabilities lie from the trainer's under the weights that sampled."""
        if "sampling_per_token_logps" not in rows:
            return
        difference_BT = (rows.get("old_per_token_logps", logprobs_BT) - rows["sampling_per_token_logps"]).abs()
        counts_BT = rows["completion_mask"].bool() & ~difference_BT.isnan()  # vLLM leaves some out
        totals = torch.stack([difference_BT[counts_BT].sum(), counts_BT.sum()])
        total, count = self.accelerator.reduce(totals, reduction="sum").tolist()
        self._log("logprob_mismatch", total / max(count, 1.0))

    def _mean_over_ranks(self, values: Tensor) -> float:
        """Mean over the values of all ranks, which may have different numbers of them."""
        totals = self.accelerator.reduce(torch.stack([values.sum(), values.new_tensor(len(values))]), reduction="sum")
        return float(totals[0] / totals[1].clamp(min=1))

    def _log(self, name: str, value: float | Tensor) -> None:
        """Log a value under TRL's own metrics, which averages those of one step."""
        self._metrics["train"][name].append(float(value))

    def gather_rollouts(self) -> dict[str, list[Any]]:
        """Return the audit table of all ranks; every rank must call it."""
        tables = gather_object([self.rollouts])
        return {name: [value for table in tables for value in table[name]] for name in self.rollouts}

    # --- resuming ----------------------------------------------------------------------------------------------------

    def position(self) -> dict[str, Any]:
        """Return where this rank stands between two steps, beyond weights, optimizer and schedule."""
        in_batch = self._step % (self.slices_per_batch * self.num_iterations) != 0
        return {
            "step": self._step,
            "stream": self.collector.stream.position,
            "buffer": self._buffered_inputs if in_batch else None,
            "rollouts": self.rollouts if in_batch else {},
            "steps_without_signal": self.steps_without_signal,
            "entropy_coef": self.entropy_coef,
            "last_entropy": self._last_world_entropy,
            "num_tokens": self.state.num_input_tokens_seen,
        }

    def go_to(self, position: dict[str, Any]) -> None:
        """Stand where :meth:`position` was taken."""
        self._step = position["step"]
        self.collector.stream.position = position["stream"]
        device = self.accelerator.device  # saved state comes back on the CPU
        self._buffered_inputs = tree_map_only(Tensor, lambda tensor: tensor.to(device), position["buffer"])
        self.rollouts = position["rollouts"]
        self.steps_without_signal = position["steps_without_signal"]
        self.entropy_coef, self._last_world_entropy = position["entropy_coef"], position["last_entropy"]
        self.state.num_input_tokens_seen = position["num_tokens"]


def _already_sampled(prompts: list[Any], trainer: PolicyTrainer) -> dict[str, Any]:
    """Hand TRL the completions of the batch that was collected; its ``rollout_func``."""
    assert trainer._batch is not None
    completions = [r.completion for group in trainer._batch.groups for r in group.rollouts]
    return {
        "prompt_ids": [list(group.prompt_ids) for group in trainer._batch.groups for _ in group.rollouts],
        "completion_ids": [list(completion.token_ids) for completion in completions],
        "logprobs": [completion.logprobs for completion in completions],
    }


def _select(inputs: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """Take some rows of a slice, and of their columns what is not padding in all of them."""
    taken = {key: value[rows] if value.ndim else value for key, value in inputs.items()}
    num_prompt = int(taken["prompt_mask"].sum(dim=1).max())
    num_completion = max(int(taken["completion_mask"].sum(dim=1).max()), 1)
    for key, value in taken.items():
        if key in ("prompt_ids", "prompt_mask"):
            taken[key] = value[:, -num_prompt:]
        elif value.ndim == 2 and value.shape[1] == inputs["completion_ids"].shape[1]:
            taken[key] = value[:, :num_completion]
    return taken
