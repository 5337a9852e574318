"""The engine on transformers' ``generate``: runs anywhere torch does, the engine of choice on a CPU.

Randomness is keyed (:mod:`progrpo.generation.keyed`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel

from progrpo.errors import ConfigError, DataError
from progrpo.generation.engine import Completion, SamplingSettings
from progrpo.generation.keyed import KeyedSampler, keyed_uniforms
from progrpo.generation.prefix import prefill


class TransformersEngine:
    """Samples with a transformers causal language model.

    Args:
        model: in evaluation mode, on its device. The engine takes it over: its ``generation_config`` is replaced,
            since ``generate`` would fill what we leave open from it (a checkpoint's top_k or repetition penalty).
        eos_token_ids: tokens that end a completion, at least one.
        pad_token_id: fills the left of shorter prompts, masked out.
        batch_size: completions generated at a time.
    """

    def __init__(
        self, model: PreTrainedModel, *, eos_token_ids: Sequence[int], pad_token_id: int, batch_size: int
    ) -> None:
        if not eos_token_ids:
            raise ConfigError("eos_token_ids is empty: at least one token must end a completion.")
        self._model, self._eos, self._pad, self._batch_size = model, list(eos_token_ids), pad_token_id, batch_size
        model.generation_config = GenerationConfig()

    def complete(
        self, prompts: Sequence[Sequence[int]], keys: Sequence[Sequence[int]], settings: SamplingSettings, seed: int
    ) -> list[Completion]:
        """Draw completions; see :meth:`progrpo.generation.engine.Engine.complete`.

        Raises:
            DataError: an empty prompt.
        """
        if empty := [i for i, prompt in enumerate(prompts) if not prompt]:
            raise DataError(f"prompt {empty[0]} has no tokens: nothing to complete.")
        completions: list[Completion] = []
        for start in range(0, len(prompts), self._batch_size):
            batch = slice(start, start + self._batch_size)
            completions += self._generate(prompts[batch], keys[batch], settings, seed)
        return completions

    def _generate(
        self, prompts: Sequence[Sequence[int]], keys: Sequence[Sequence[int]], settings: SamplingSettings, seed: int
    ) -> list[Completion]:
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        owners = [places[tuple(prompt)] for prompt in prompts]
        uniforms_RT = keyed_uniforms(seed, keys, settings.max_tokens)
        config = GenerationConfig(
            do_sample=False,  # the sampler draws
            max_new_tokens=settings.max_tokens,
            eos_token_id=self._eos,
            pad_token_id=self._pad,
            disable_compile=True,
        )
        with torch.inference_mode():
            prefix = prefill(self._model, list(places), owners, self._pad)
            output = self._model.generate(
                prefix.ids,
                attention_mask=prefix.mask,
                past_key_values=prefix.cache,
                generation_config=config,
                logits_processor=[KeyedSampler(uniforms_RT, settings.temperature, settings.top_p, settings.top_k)],
            )
        return [self._cut(row) for row in output[:, prefix.ids.shape[1] :].tolist()]

    def _cut(self, row: list[int]) -> Completion:
        """Cut behind the first EOS; what follows is padding, also where the pad token is an EOS itself."""
        end = next((i for i, token in enumerate(row) if token in self._eos), None)
        if end is None:
            return Completion(tuple(row), "length")
        return Completion(tuple(row[: end + 1]), "stop")
