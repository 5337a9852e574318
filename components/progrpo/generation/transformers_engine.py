"""The engine on transformers' ``generate``: runs anywhere torch does, the engine of choice on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from progrpo.errors import ConfigError, DataError
from progrpo.generation.engine import Completion, SamplingSettings
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

    def sample(
        self, prompts: Sequence[Sequence[int]], num_samples: int, settings: SamplingSettings, seed: int
    ) -> list[list[Completion]]:
        """Draw completions; see :meth:`progrpo.generation.engine.Engine.sample`.

        Each batch seeds torch's generator from (seed, its first row) and gives the generator's state back.

        Raises:
            DataError: an empty prompt.
        """
        if empty := [i for i, prompt in enumerate(prompts) if not prompt]:
            raise DataError(f"prompt {empty[0]} has no tokens: nothing to complete.")
        config = GenerationConfig(
            do_sample=True,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=0,
            max_new_tokens=settings.max_tokens,
            eos_token_id=self._eos,
            pad_token_id=self._pad,
        )
        completions: list[list[Completion]] = [[] for _ in prompts]
        num_rows = len(prompts) * num_samples
        for start in range(0, num_rows, self._batch_size):
            owners = np.arange(start, min(start + self._batch_size, num_rows)) // num_samples
            with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.inference_mode():
                torch.manual_seed(int(np.random.SeedSequence([seed, start]).generate_state(1)[0]))
                prefix = prefill(self._model, prompts[owners[0] : owners[-1] + 1], owners - owners[0], self._pad)
                output = self._model.generate(
                    prefix.ids,
                    attention_mask=prefix.mask,
                    past_key_values=prefix.cache,
                    generation_config=config,
                )
            for owner, row in zip(owners, output[:, prefix.ids.shape[1] :].tolist(), strict=True):
                completions[owner].append(self._cut(row))
        return completions

    def _cut(self, row: list[int]) -> Completion:
        """Cut behind the first EOS; what follows is padding, also where the pad token is an EOS itself."""
        end = next((i for i, token in enumerate(row) if token in self._eos), None)
        if end is None:
            return Completion(tuple(row), "length")
        return Completion(tuple(row[: end + 1]), "stop")
