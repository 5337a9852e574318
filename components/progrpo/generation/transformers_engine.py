"""The engine on transformers' ``generate``: runs anywhere torch does, the engine of choice on a CPU.

Randomness is keyed (:mod:`progrpo.generation.keyed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import GenerationConfig, PreTrainedModel

from progrpo.errors import ConfigError
from progrpo.generation.engine import Completion, SamplingSettings, Scores, refuse_empty
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
        refuse_empty(prompts)
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
        sampler = KeyedSampler(
            keyed_uniforms(seed, keys, settings.max_tokens),
            settings.temperature,
            settings.top_p,
            settings.top_k,
            settings.score_temperature,
        )
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
                logits_processor=[sampler],
            )
        completions = [Completion.cut(row, self._eos) for row in output[:, prefix.ids.shape[1] :].tolist()]
        if not sampler.scores:
            return completions
        scores_2RT = torch.stack(sampler.scores, dim=2).cpu().numpy()
        return [
            replace(completion, scores=Scores(*scores_2RT[:, row, : len(completion.token_ids)]))
            for row, completion in enumerate(completions)
        ]
