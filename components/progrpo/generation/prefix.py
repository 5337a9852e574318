"""Run each prompt once for all its completions: the one trick that sampling and scoring share.

B prompts, R rows (completions), L longest prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


@dataclass(frozen=True)
class Prefix:
    """Left-padded prompts, one a row, and what the model remembers of all but their last token.

    ``ids`` and ``mask`` are [R, L], int64. ``cache`` is None where nothing can be shared: prompts of one token, and
    models that keep another state than keys and values (state-space and hybrid ones).
    """

    ids: torch.Tensor
    mask: torch.Tensor
    cache: DynamicCache | None


def prefill(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], owners: Sequence[int], pad_token_id: int
) -> Prefix:
    """Run the B prompts without their last token, whose output the caller needs, and repeat the keys and values.

    Args:
        model: a causal language model in evaluation mode, on its device.
        prompts: token ids, none empty.
        owners: [R], the prompt each row continues.
        pad_token_id: fills the left of shorter prompts; masked out.
    """
    width, device = max(map(len, prompts)), model.device
    ids = torch.tensor([[pad_token_id] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    rows = torch.tensor(list(owners), device=device)
    cache = DynamicCache(config=model.config)
    if width == 1 or any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        return Prefix(ids[rows], mask[rows], None)
    model.base_model(
        input_ids=ids[:, :-1],
        attention_mask=mask[:, :-1],
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, :-1],  # left padding must not shift positions
        past_key_values=cache,
        use_cache=True,
    )
    cache.batch_select_indices(rows)
    return Prefix(ids[rows], mask[rows], cache)
