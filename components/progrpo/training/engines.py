"""Where rollouts come from: the trained model itself, or vLLM kept in step with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from trl.models import unwrap_model_for_generation

from progrpo.generation.engine import Completion
from progrpo.generation.keyed import KeyedSampler, keyed_uniforms
from progrpo.training.distributed import gathered_parameters


class TransformersRollouts:
    """Sample with the trained model's own ``generate``, in the arithmetic that it is trained in.

    Randomness is keyed (:mod:`progrpo.generation.keyed`), so a rollout depends on the weights, the run's seed and its
    own name only.

    Args:
        trainer: a TRL GRPOTrainer, whose model, tokenizer and accelerator are used.
        seed: of the run.
        temperature: of the rollouts.
        max_tokens: limit of a completion, EOS included.
        batch_size: completions generated at a time; None: all. The last batch may be smaller, equally on every rank.
    """

    def __init__(self, trainer: Any, *, seed: int, temperature: float, max_tokens: int, batch_size: int | None) -> None:
        self._trainer, self._seed, self._temperature = trainer, seed, temperature
        self._max_tokens, self._batch_size = max_tokens, batch_size

    def sample(self, prompts: Sequence[Sequence[int]], keys: Sequence[tuple[int, ...]]) -> list[Completion]:
        """See :class:`progrpo.training.rollouts.RolloutEngine`."""
        size = self._batch_size or len(prompts)
        completions: list[Completion] = []
        with self._policy() as model:
            for start in range(0, len(prompts), size):
                batch = slice(start, start + size)
                completions += self._generate(model, prompts[batch], keys[batch])
        return completions

    @contextmanager
    def _policy(self) -> Iterator[Any]:
        trainer = self._trainer
        with (
            unwrap_model_for_generation(
                trainer.model_wrapped,
                trainer.accelerator,
                gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
            ) as model,
            gathered_parameters(trainer.model_wrapped),
            torch.no_grad(),
            trainer.accelerator.autocast(),
        ):
            yield model

    def _generate(
        self, model: Any, prompts: Sequence[Sequence[int]], keys: Sequence[tuple[int, ...]]
    ) -> list[Completion]:
        trainer = self._trainer
        pad, eos, device = trainer.processing_class.pad_token_id, trainer.eos_token_ids, trainer.accelerator.device
        width = max(map(len, prompts))
        sampler = KeyedSampler(keyed_uniforms(self._seed, keys, self._max_tokens), self._temperature)
        output: Tensor = model.generate(
            torch.tensor([[pad] * (width - len(ids)) + list(ids) for ids in prompts], device=device),
            attention_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=device),
            generation_config=GenerationConfig(
                do_sample=False,  # the sampler draws
                max_new_tokens=self._max_tokens,
                eos_token_id=eos,
                pad_token_id=pad,
                disable_compile=True,
            ),
            logits_processor=[sampler],
            synced_gpus=False,  # no rank needs the others: the parameters are gathered
        )
        logprobs = torch.stack(sampler.logprobs, dim=1).tolist()
        return [
            Completion.cut(tokens, eos, row) for tokens, row in zip(output[:, width:].tolist(), logprobs, strict=True)
        ]
