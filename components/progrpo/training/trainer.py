"""The one seam to TRL: GRPOTrainer with the advantage in our hands.

What a training step calls, in order, and what is ours in it:

1. ``_generate_and_score_completions`` samples G completions a prompt (TRL) and calls
2. ``_calculate_rewards``: the verifier's verdicts (TRL calls, we keep the correctness column);
3. back in 1, the group-relative advantage and ARM's gate are computed from them and travel with each row;
4. ``_compute_loss``: TRL's clipped loss, whose forward pass goes through
5. ``_get_per_token_logps_and_entropies``: ProGRPO reads its confidences off that very pass and re-weights the
   advantages before the loss uses them. No pass is added: on the first and only update of a rollout the policy that
   is trained is the policy that sampled, so its log-probabilities are the old policy's.

The four methods are private in TRL. tests/unit/training/test_trl_contract.py fails if they change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from progrpo.algorithms import (
    answer_confidence,
    arm_gate,
    group_mean_confidence,
    group_relative_advantage,
    predicted_tokens,
    prompt_confidence,
    reweight_advantages,
)
from progrpo.config import AlgorithmConfig, ProGRPO


class PolicyTrainer(GRPOTrainer):  # type: ignore[misc]  # TRL is untyped
    """GRPO or ProGRPO by configuration, on TRL's engine."""

    def __init__(self, *args: Any, algorithm: AlgorithmConfig, normalize_std: bool, **kwargs: Any) -> None:
        """Take TRL's arguments, the algorithm, and whether advantages are divided by the group's deviation."""
        super().__init__(*args, **kwargs)
        self.algorithm = algorithm
        self.normalize_std = normalize_std
        self.rollouts: dict[str, Any] = {}
        """The last step's rollouts, one entry a completion, for the audit table."""
        self._slice: dict[str, Any] | None = None

    # --- rollouts ----------------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        rewards_PG = self._rewards.view(-1, self.num_generations)  # of all ranks
        is_correct_PG, is_scored_PG = rewards_PG == 1, ~rewards_PG.isnan()
        advantages = group_relative_advantage(rewards_PG, normalize_std=self.normalize_std)

        num_rows = len(inputs)
        first = self.accelerator.process_index * num_rows
        local = slice(first, first + num_rows)
        batch["advantages"] = advantages.flatten()[local]
        # Rows are shuffled out of their groups next, so all that belongs to a row goes along as a tensor.
        row = torch.arange(first, first + num_rows, device=advantages.device)
        batch["row"], batch["group"] = row - first, row // self.num_generations
        if isinstance(self.algorithm, ProGRPO):
            batch["arm_gate"] = arm_gate(is_correct_PG, is_scored_PG, self.algorithm.apply_to).flatten()[local]
        self.rollouts |= {
            "reward": self._rewards[local].tolist(),
            "correct": is_correct_PG.flatten()[local].tolist(),
            "advantage": batch["advantages"].tolist(),
            "group": batch["group"].tolist(),
        }
        return batch

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids_list: list[Any]
    ) -> Tensor:
        rewards: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        # Correctness is the first column, before any weighting: format rewards would open ARM's gate.
        self._rewards = rewards[:, 0]
        self.rollouts = {
            "problem_id": [example["problem_id"] for example in inputs],
            "prompt": [_text(prompt) for prompt in prompts],
            "completion": [_text(completion) for completion in completions],
        }
        return rewards

    # --- update ------------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        # A copy: the buffered slice keeps the plain advantages.
        self._slice = dict(inputs)
        try:
            loss: Tensor = super()._compute_loss(model, self._slice)
            return loss
        finally:
            self._slice = None

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if self._slice is None or not isinstance(self.algorithm, ProGRPO):
            return super()._get_per_token_logps_and_entropies(  # type: ignore[no-any-return]
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
        # ProGRPO: score the prompt in the same pass. Its columns carry no loss, so the gradient is GRPO's.
        reads_prompt = self.algorithm.prompt_confidence in ("inverse_perplexity", "low_prob")
        num_scored = input_ids.size(1) - 1 if reads_prompt else logits_to_keep
        logprobs, entropies, aux_loss = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, num_scored, *args, **kwargs
        )
        self._reweight(self._slice, logprobs.detach(), attention_mask, logits_to_keep)
        entropies = None if entropies is None else entropies[:, -logits_to_keep:]
        return logprobs[:, -logits_to_keep:], entropies, aux_loss

    def _reweight(
        self, rows: dict[str, Any], logprobs_BT: Tensor, attention_mask_BT: Tensor, completion_length: int
    ) -> None:
        """Replace the advantages of a slice by ARM's: ``A' = A + alpha gate (c(q) - c(o|q))``."""
        assert isinstance(self.algorithm, ProGRPO)
        # With old log-probabilities the confidences would have to come from those (docs/adr/0004).
        assert "old_per_token_logps" not in rows, "ARM reads the training pass, which is not the old policy's here"
        arm = self.algorithm
        answer_B = answer_confidence(logprobs_BT[:, -completion_length:], rows["completion_mask"], arm.tail_frac)
        if arm.prompt_confidence == "group_mean":
            prompt_B = group_mean_confidence(answer_B, rows["group"])
        elif arm.prompt_confidence == "none":
            prompt_B = torch.zeros_like(answer_B)
        else:
            prompt_B = prompt_confidence(
                logprobs_BT[:, :-completion_length],
                predicted_tokens(attention_mask_BT)[:, :-completion_length],
                arm.prompt_confidence,
                arm.tail_frac,
            )
        plain_B = rows["advantages"]
        rows["advantages"] = reweight_advantages(plain_B, prompt_B, answer_B, rows["arm_gate"], arm.alpha)
        self._record_arm(rows, prompt_B, answer_B, rows["advantages"] - plain_B)

    def _record_arm(self, rows: dict[str, Any], prompt_B: Tensor, answer_B: Tensor, shift_B: Tensor) -> None:
        columns = {"prompt_confidence": prompt_B, "answer_confidence": answer_B, "advantage_shift": shift_B}
        for name, values_B in columns.items():
            self._metrics["train"][f"arm/{name}"].append(self.accelerator.gather(values_B).mean().item())
            column = self.rollouts.setdefault(name, [float("nan")] * len(self.rollouts["reward"]))
            for row, value in zip(rows["row"].tolist(), values_B.tolist(), strict=True):
                column[row] = value
        gated = self.accelerator.gather(rows["arm_gate"].float()).mean().item()
        self._metrics["train"]["arm/gated_frac"].append(gated)


def _text(messages: str | Sequence[dict[str, Any]]) -> str:
    return messages if isinstance(messages, str) else "\n".join(str(message["content"]) for message in messages)
