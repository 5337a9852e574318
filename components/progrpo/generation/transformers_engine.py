"""The engine on transformers' ``generate``: runs anywhere torch does, the engine of choice on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from progrpo.errors import ConfigError, DataError
from progrpo.generation.engine import Completion, SamplingSettings


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
                rows = self._generate(prompts[owners[0] : owners[-1] + 1], owners - owners[0], config)
            for owner, row in zip(owners, rows, strict=True):
                completions[owner].append(self._cut(row))
        return completions

    def _generate(
        self, prompts: Sequence[Sequence[int]], owners: np.ndarray[Any, Any], config: GenerationConfig
    ) -> list[list[int]]:
        """Return the new tokens of each row, padded; row i continues ``prompts[owners[i]]``."""
        width, device = max(map(len, prompts)), self._model.device
        ids = torch.tensor([[self._pad] * (width - len(p)) + list(p) for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        rows = torch.from_numpy(owners).to(device)
        output = self._model.generate(
            ids[rows],
            attention_mask=mask[rows],
            past_key_values=self._prefill(ids, mask, rows),
            generation_config=config,
        )
        tokens: list[list[int]] = output[:, width:].tolist()
        return tokens

    def _prefill(self, ids: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor) -> DynamicCache | None:
        """Run each prompt once and repeat its keys and values for its rows; ``generate`` alone would run every row.

        The last prompt token is left to ``generate``, which needs its logits. None where the model keeps another
        kind of state (state-space and hybrid models): there ``generate`` starts from the prompt.
        """
        cache = DynamicCache(config=self._model.config)
        if ids.shape[1] == 1 or any(
            type(kept) not in (DynamicLayer, DynamicSlidingWindowLayer) for kept in cache.layers
        ):
            return None
        self._model(
            input_ids=ids[:, :-1],
            attention_mask=mask[:, :-1],
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, :-1],  # left padding must not shift positions
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache.batch_select_indices(rows)
        return cache

    def _cut(self, row: list[int]) -> Completion:
        """Cut behind the first EOS; what follows is padding, also where the pad token is an EOS itself."""
        end = next((i for i, token in enumerate(row) if token in self._eos), None)
        if end is None:
            return Completion(tuple(row), "length")
        return Completion(tuple(row[: end + 1]), "stop")
