"""Log-probabilities and entropies of given completions under a model, without ever holding all their logits.

N completion tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from progrpo.generation.engine import Scores, refuse_empty
from progrpo.generation.prefix import prefill

_FORWARD_TOKENS = 16_384  # tokens a forward, padding included: bounds the activations
_TILE_ELEMENTS = 1 << 24  # logits at a time, N x V: 64 MiB in float32

_Row = tuple[tuple[int, ...], tuple[int, ...]]  # a prompt and its completion


@torch.inference_mode()
def score_completions(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    temperature: float = 1.0,
) -> list[Scores]:
    """Score each completion after its prompt.

    Prompts are padded on the left and masked, completions on the right, where under causal attention no token sees
    them: neither padding nor the other rows of a batch change a value, beyond the rounding of matrix products of
    another shape.

    Args:
        model: a causal language model in evaluation mode, on its device.
        prompts: token ids, one list a completion, none empty.
        completions: token ids, none empty, EOS included where there is one.
        temperature: logits are divided by it.

    Raises:
        DataError: an empty prompt or completion.
    """
    refuse_empty(prompts)
    refuse_empty(completions, "completion")
    pairs = [(tuple(p), tuple(c)) for p, c in zip(prompts, completions, strict=True)]
    if not pairs:
        return []
    distinct = list(dict.fromkeys(pairs))  # short answers repeat often among a prompt's samples
    scores = dict(zip(distinct, _score_distinct(model, distinct, temperature), strict=True))
    return [scores[pair] for pair in pairs]


def _score_distinct(model: PreTrainedModel, rows: Sequence[_Row], temperature: float) -> list[Scores]:
    lengths = [len(prompt) + len(completion) for prompt, completion in rows]
    head = model.get_output_embeddings() if _logits_are_head_of_hidden(model, rows[0][0]) else None
    scores: dict[int, Scores] = {}
    for batch in _batches(lengths, 1 if head is None else _FORWARD_TOKENS):
        completions = [rows[i][1] for i in batch]
        states = _predicting_states(model, [rows[i] for i in batch], logits=head is None)
        targets = torch.tensor([token for completion in completions for token in completion], device=model.device)
        logprobs, entropies = (values.cpu().numpy() for values in score_states(head, states, targets, temperature))
        ends = np.cumsum([len(completion) for completion in completions])[:-1]
        for i, lp, entropy in zip(batch, np.split(logprobs, ends), np.split(entropies, ends), strict=True):
            scores[i] = Scores(lp, entropy)
    return [scores[i] for i in range(len(rows))]


def _predicting_states(model: PreTrainedModel, rows: Sequence[_Row], *, logits: bool) -> torch.Tensor:
    """Return the last hidden states [N, H] at the positions that predict the completions' tokens; or logits [N, V]."""
    prompts = {prompt: p for p, prompt in enumerate(dict.fromkeys(prompt for prompt, _ in rows))}
    prefix = prefill(model, list(prompts), [prompts[prompt] for prompt, _ in rows], pad_token_id=0)
    # The token at position t is predicted at t - 1: inputs start with the prompt's last token, or with its first if
    # nothing is remembered of it, and end before the completion's last.
    known = [len(prompt) - 1 if prefix.cache is not None else 0 for prompt, _ in rows]
    inputs = [[*prompt, *completion][start:-1] for (prompt, completion), start in zip(rows, known, strict=True)]
    width = max(map(len, inputs))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in inputs], device=model.device)
    where = {}
    if prefix.cache is not None:
        positions = torch.tensor(known, device=model.device)[:, None] + torch.arange(width, device=model.device)
        mask = torch.cat([prefix.mask[:, :-1], torch.ones_like(tokens)], dim=1)
        where = {"past_key_values": prefix.cache, "attention_mask": mask, "position_ids": positions}
    body = model if logits else model.base_model
    states = body(input_ids=tokens, use_cache=prefix.cache is not None, **where)[0]
    ends = [len(row) for row in inputs]
    return torch.cat([states[r, ends[r] - len(completion) : ends[r]] for r, (_, completion) in enumerate(rows)])


def score_states(
    head: torch.nn.Module | None, states: torch.Tensor, targets: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities and entropies [N], float32, with no more than a tile of logits at a time.

    Args:
        head: makes logits of the states; None: they are logits.
        states: [N, H], or [N, V].
        targets: [N] int64, the tokens whose log-probabilities are asked for.
        temperature: logits are divided by it.
    """
    vocabulary = states.shape[1] if head is None else next(head.parameters()).shape[0]
    rows = max(1, _TILE_ELEMENTS // vocabulary)
    logprobs, entropies = [], []
    for start in range(0, len(states), rows):
        tile = states[start : start + rows]
        logits = (tile if head is None else head(tile)).float()
        if temperature != 1:
            logits = logits / temperature
        log_softmax = logits.log_softmax(-1)
        logprobs.append(log_softmax.gather(-1, targets[start : start + rows, None]).squeeze(-1))
        # a token the model rules out has log p = -inf, and p log p is 0 there, not nan
        entropies.append(-(log_softmax.exp() * log_softmax.clamp(min=torch.finfo(torch.float32).min)).sum(-1))
    return torch.cat(logprobs), torch.cat(entropies)


def _batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Group rows of like length, longest first, so that rows x longest stays within ``max_tokens``."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def _logits_are_head_of_hidden(model: PreTrainedModel, prompt: Sequence[int]) -> bool:
    """Whether logits are just the LM head of the last hidden states, shown on one prompt.

    Some architectures scale or cap them afterwards (Gemma, Cohere, Granite). Those are scored one completion at a
    time from the model's own logits, exact at the price of memory [T, V].
    """
    ids = torch.tensor([list(prompt[:8])], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    rebuilt = model.get_output_embeddings()(hidden)
    return torch.equal(rebuilt, logits)  # the same operations on the same shapes: the same bits
