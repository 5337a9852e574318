"""The one seam to TRL: GRPOTrainer with the rollouts and the advantages in our hands.

What happens in a training step, in order, and whose it is:

1. ``_prepare_inputs`` asks the :class:`~progrpo.training.rollouts.Collector` for a batch of judged groups: prompts,
   completions, verdicts, rewards, advantages. All ours.
2. ``_generate_and_score_completions`` (TRL's own) makes padded tensors of them and, where they are needed, scores them
   with the policy as it is now (the *old* log-probabilities), the reference model, and vLLM's mismatch.
3. ``_compute_loss``: TRL's clipped loss, whose forward pass goes through
4. ``_get_per_token_logps_and_entropies``, where each algorithm acts on the log-probabilities it needs.

ProGRPO reads its confidences off the old policy's pass where there is one, else off the training pass itself: on the
first and only update of a batch of rollouts the policy that is trained is the policy that sampled. Either way no
forward pass is added.

Rows keep their order: a group is never split over ranks or updates, nor over forward passes if ``micro_batch_size`` is
a multiple of G. The methods with an underscore are private in TRL; tests/unit/training/test_trl_contract.py fails if
they change.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object, is_peft_model
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader
from trl import GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from progrpo.algorithms import (
    answer_confidence,
    clip_cov_mask,
    clipped_tokens,
    group_mean_confidence,
    kl_cov_mask,
    predicted_tokens,
    prompt_confidence,
    reweight_advantages,
    token_covariance,
)
from progrpo.config import ClipCov, EntropyBonus, KLCov, Method, ProGRPO
from progrpo.errors import TrainingError
from progrpo.training.distributed import shard_on_cpu
from progrpo.training.rollouts import Batch, Collector


class PolicyTrainer(GRPOTrainer):  # type: ignore[misc]  # TRL is untyped
    """Every algorithm of :mod:`progrpo.config.algorithms` by configuration, on TRL's engine.

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
        self._slice: dict[str, Any] | None = None  # rows in the training pass
        self._old_confidences: tuple[Tensor, Tensor] | None = None  # c(q), c(o|q) of the rows of the old policy's pass
        self._awaits_old_pass = False
        self._penalty: Tensor | None = None  # of KL-Cov, of the slice at hand
        self._entropy: Tensor | None = None  # mean over the tokens of the slice at hand, for the entropy bonus

    @property
    def lora(self) -> bool:
        """Whether adapters are trained instead of the weights."""
        return bool(is_peft_model(self.accelerator.unwrap_model(self.model)))

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
        self._old_confidences, self._awaits_old_pass = None, self.makes_old_pass
        try:
            rows: dict[str, Any] = self._generate_and_score_completions(
                [{"prompt": group.problem.prompt} for group in batch.groups for _ in group.rollouts]
            )
        finally:
            self._awaits_old_pass = False

        device, G = self.accelerator.device, self.num_generations
        rows["advantages"] = batch.judgement.advantages.flatten().to(device)  # TRL's own knows of no algorithm of ours
        rows["row"] = torch.arange(len(batch.groups) * G, device=device)
        rows["group"] = torch.tensor([g.place for g in batch.groups], device=device).repeat_interleave(G)
        rows["live"] = batch.live.repeat_interleave(G).to(device)
        # What dynamic sampling keeps: rows of each update over all ranks, and tokens of the batch.
        kept = self.accelerator.reduce(rows["live"].view(num_updates, -1).sum(dim=1), reduction="sum")
        rows["kept"] = kept.repeat_interleave(rows_per_update)
        kept_tokens = (rows["completion_mask"] * rows["live"][:, None]).sum()
        rows["num_items_in_batch"] = self.accelerator.gather(kept_tokens).sum()
        self.rollouts = _table(batch)
        if isinstance(self.method.algorithm, ProGRPO):
            rows["arm_gate"] = batch.judgement.gate.flatten().to(device)
            if self._old_confidences is not None:
                self._reweight(rows, *self._old_confidences)
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
        self._slice, self._penalty, entropy_coef = rows, None, self._entropy_coef_of_step()
        try:
            loss: Tensor = super()._compute_loss(model, rows)
            if self._penalty is not None:
                loss = loss + self._penalty
            entropy = self._entropy
        finally:
            self._slice = self._penalty = self._entropy = None
        # TRL averages over the rows of a slice; this makes it the average over all rows kept for the update.
        accumulated = self.current_gradient_accumulation_steps
        mean_kept = rows["kept"][0].item() / (accumulated * self.accelerator.num_processes)
        scale = 1.0 if self.loss_type == "dapo" else len(rows["live"]) / mean_kept
        loss = loss * scale
        if entropy is not None:  # TRL's bonus counts each slice alike, however many rows it keeps
            excess = scale - rows["live"].sum().item() / mean_kept
            loss = loss + excess * entropy_coef * entropy / accumulated
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
        algorithm, rows = self.method.algorithm, self._slice
        is_old_pass, self._awaits_old_pass = self._awaits_old_pass and rows is None, False
        reweights = isinstance(algorithm, ProGRPO) and (
            is_old_pass or (rows is not None and "old_per_token_logps" not in rows)
        )
        # The prompt is scored in the same pass. Its columns carry no loss, so the gradient is the same.
        num_scored = input_ids.size(1) - 1 if reweights and _reads_prompt(algorithm) else logits_to_keep
        logprobs, entropies, aux_loss = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, num_scored, *args, **kwargs
        )
        answer_logprobs = logprobs[:, -logits_to_keep:]
        if reweights:
            groups = rows["group"] if rows is not None else self._groups_of_batch()
            confidences = self._confidences(logprobs.detach(), attention_mask, logits_to_keep, groups)
            if rows is None:
                self._old_confidences = confidences
            else:
                self._reweight(rows, *confidences)
        if rows is not None:
            self._record_mismatch(rows, answer_logprobs.detach())
            answer_logprobs = self._restrain(rows, answer_logprobs)
            if isinstance(algorithm, EntropyBonus) and entropies is not None:
                mask_BT = rows["completion_mask"]
                self._entropy = (entropies[:, -logits_to_keep:] * mask_BT).sum() / mask_BT.sum().clamp(min=1)
        return answer_logprobs, None if entropies is None else entropies[:, -logits_to_keep:], aux_loss

    # --- ProGRPO -----------------------------------------------------------------------------------------------------

    def _confidences(
        self, logprobs_BT: Tensor, attention_mask_BT: Tensor, completion_length: int, group_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return c(q) and c(o|q) of each row, [B] float32."""
        arm = self.method.algorithm
        assert isinstance(arm, ProGRPO)
        answer_B = answer_confidence(
            logprobs_BT[:, -completion_length:], attention_mask_BT[:, -completion_length:], arm.tail_frac
        )
        if arm.prompt_confidence == "group_mean":
            prompt_B = group_mean_confidence(answer_B, group_B)
        elif arm.prompt_confidence == "none":
            prompt_B = torch.zeros_like(answer_B)
        else:
            prompt_B = prompt_confidence(
                logprobs_BT[:, :-completion_length],
                predicted_tokens(attention_mask_BT)[:, :-completion_length],
                arm.prompt_confidence,
                arm.tail_frac,
            )
        return prompt_B, answer_B

    def _reweight(self, rows: dict[str, Any], prompt_B: Tensor, answer_B: Tensor) -> None:
        """Replace the advantages of rows by ARM's: ``A' = A + alpha gate (c(q) - c(o|q))``."""
        assert isinstance(self.method.algorithm, ProGRPO)
        plain_B, gate_B = rows["advantages"], rows["arm_gate"]
        rows["advantages"] = reweight_advantages(plain_B, prompt_B, answer_B, gate_B, self.method.algorithm.alpha)
        columns = {
            "prompt_confidence": prompt_B,
            "answer_confidence": answer_B,
            "advantage_shift": rows["advantages"] - plain_B,
        }
        live_B = rows["live"]
        for name, values_B in columns.items():
            self._log(f"arm/{name}", self._mean_over_ranks(values_B[live_B]))
            column = self.rollouts.setdefault(name, [float("nan")] * len(self.rollouts["group"]))
            # A row that only fills up has no tokens here, and so no confidence.
            for row, value in zip(rows["row"][live_B].tolist(), values_B[live_B].tolist(), strict=True):
                column[row] = value
        self._log("arm/gated_frac", self._mean_over_ranks(gate_B[live_B].float()))

    def _groups_of_batch(self) -> Tensor:
        assert self._batch is not None
        places = torch.tensor([group.place for group in self._batch.groups], device=self.accelerator.device)
        return places.repeat_interleave(self.num_generations)

    # --- Clip-Cov and KL-Cov -----------------------------------------------------------------------------------------

    def _restrain(self, rows: dict[str, Any], logprobs_BT: Tensor) -> Tensor:
        """Take the gradient from the tokens that Clip-Cov names, or charge those that KL-Cov names."""
        algorithm = self.method.algorithm
        if not isinstance(algorithm, ClipCov | KLCov):
            return logprobs_BT
        mask_BT = rows["completion_mask"]
        covariance_BT = token_covariance(logprobs_BT.detach(), rows["advantages"], mask_BT)
        if isinstance(algorithm, KLCov):
            chosen_BT = kl_cov_mask(covariance_BT, mask_BT, algorithm.kl_frac)
            old_BT = rows.get("old_per_token_logps", logprobs_BT.detach())
            self._penalty = algorithm.kl_coef * self._aggregate((logprobs_BT - old_BT).abs() * chosen_BT, rows)
        else:
            chosen_BT = clip_cov_mask(
                covariance_BT,
                mask_BT,
                clip_frac=algorithm.clip_frac,
                cov_low=algorithm.cov_low,
                cov_high=algorithm.cov_high,
                generator=self._generator_of_slice(),
                clipped_BT=self._clipped_tokens(rows, logprobs_BT.detach()),
            )
            logprobs_BT = torch.where(chosen_BT, logprobs_BT.detach(), logprobs_BT)
        self._log("cov/chosen_frac", chosen_BT.sum() / mask_BT.sum().clamp(min=1))
        return logprobs_BT

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

    def _clipped_tokens(self, rows: dict[str, Any], logprobs_BT: Tensor) -> Tensor | None:
        """[B, T] bool: tokens that the policy loss clips already; None where no ratio has left 1 yet."""
        if "old_per_token_logps" not in rows:
            return None
        log_ratio_BT = logprobs_BT - rows["old_per_token_logps"]
        return clipped_tokens(log_ratio_BT, rows["advantages"], self.epsilon_low, self.epsilon_high)

    def _generator_of_slice(self) -> torch.Generator:
        """Return random numbers that depend on the run's seed and the slice, not on what was drawn before."""
        key = np.random.SeedSequence([self.args.seed, self._step, self.accelerator.process_index])
        return torch.Generator().manual_seed(int(key.generate_state(1)[0]))

    # --- records -----------------------------------------------------------------------------------------------------

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


def _reads_prompt(algorithm: Any) -> bool:
    return algorithm.prompt_confidence in ("inverse_perplexity", "low_prob")


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


def _table(batch: Batch) -> dict[str, list[Any]]:
    """Return a batch as columns, one entry a completion."""
    judgement = batch.judgement
    rows = [(group, number, rollout) for group in batch.groups for number, rollout in enumerate(group.rollouts)]
    return {
        "group": [group.place for group, _, _ in rows],
        "problem_id": [group.problem.id for group, _, _ in rows],
        "sample": [number for _, number, _ in rows],
        "prompt": ["\n".join(message["content"] for message in group.problem.prompt) for group, _, _ in rows],
        "completion": [rollout.text for _, _, rollout in rows],
        "answer": [rollout.verdict.answer for _, _, rollout in rows],
        "correct": [rollout.verdict.correct for _, _, rollout in rows],
        "scored": [rollout.verdict.scored for _, _, rollout in rows],
        "reward": judgement.rewards.flatten().tolist(),
        "overlong_penalty": judgement.penalties.flatten().tolist(),
        "advantage": judgement.advantages.flatten().tolist(),
        "num_tokens": [len(rollout.completion.token_ids) for _, _, rollout in rows],
        "truncated": [rollout.completion.finish_reason == "length" for _, _, rollout in rows],
        "mean_logprob": [rollout.completion.mean_logprob for _, _, rollout in rows],
        "live": batch.live.repeat_interleave(len(rows) // len(batch.groups)).tolist(),
    }
