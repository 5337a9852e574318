"""Load a checkpoint for training or evaluation, and check that problems fit it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from progrpo.checkpoints import preflight
from progrpo.data.dataset import Problem
from progrpo.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(checkpoint: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint that prompts are to be rendered with; it pads on the left.

    Raises:
        CheckpointError: none that can be loaded, or no chat template.
    """
    tokenizer = preflight.load_tokenizer(checkpoint)
    try:
        tokenizer.get_chat_template()
    except ValueError:
        raise CheckpointError(
            f"{checkpoint}: its tokenizer has no chat template, which turns a problem's messages into a prompt. "
            f"Import a checkpoint with chat_template in tokenizer_config.json or a chat_template.jinja."
        ) from None
    tokenizer.padding_side = "left"
    return tokenizer


def load_model(checkpoint: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load a causal language model from safetensors, with no code but transformers' own.

    Raises:
        CheckpointError: weights that cannot be loaded, are missing or are not finite.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model: PreTrainedModel
        model, report = AutoModelForCausalLM.from_pretrained(
            checkpoint,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,  # left open, transformers asks on the terminal
        )
    except Exception as error:  # RuntimeError for tensors of another shape, SafetensorError, KeyError, …
        raise CheckpointError(
            f"{checkpoint} cannot be loaded by transformers: {preflight.first_line(error)}. Save or copy it again."
        ) from error
    if missing := sorted(report["missing_keys"]):  # transformers fills them with random numbers and only warns
        raise CheckpointError(f"{checkpoint} lacks {len(missing)} weights of its architecture, such as {missing[0]}.")
    if broken := [name for name, weights in model.named_parameters() if not weights.isfinite().all()]:
        raise CheckpointError(
            f"{checkpoint}: {broken[0]} and {len(broken) - 1} other tensors hold values that are not finite; its "
            f"training diverged. Take an earlier checkpoint, or train with a lower learning rate."
        )
    return model


def eos_token_ids(checkpoint: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return every token that ends a completion; chat models name the end of a turn in one of two places, or in both.

    Raises:
        CheckpointError: there is none.
    """
    return _all_eos(checkpoint, model.generation_config.eos_token_id, tokenizer)


def stored_eos_token_ids(checkpoint: Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the same from the checkpoint's files, without its weights.

    Raises:
        CheckpointError: there is none.
    """
    config = preflight.read_config(checkpoint)
    path = checkpoint / "generation_config.json"
    named = preflight.read_json(path) if path.is_file() else config.get("text_config") or config
    return _all_eos(checkpoint, named.get("eos_token_id"), tokenizer)


def _all_eos(checkpoint: Path, named: int | list[int] | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    eos = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None}
    if not eos:
        raise CheckpointError(
            f"{checkpoint} names no EOS token: no completion could end. Set eos_token in its tokenizer."
        )
    return sorted(eos)


def context_length(checkpoint: Path) -> int | None:
    """Return the longest sequence the model takes, in tokens; None: the architecture sets no limit."""
    config = preflight.read_config(checkpoint)
    length: int | None = (config.get("text_config") or config).get("max_position_embeddings")
    return length


def render_prompts(tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]) -> list[list[int]]:
    """Return the token ids of each problem's messages under the chat template, ready for the assistant's turn.

    Raises:
        DataError: messages the template refuses.
    """
    prompts = []
    for problem in problems:
        try:
            rendered = tokenizer.apply_chat_template(problem.prompt, add_generation_prompt=True, return_dict=True)
        except Exception as error:  # a template raises what it likes: jinja2's TemplateError, TypeError, KeyError, …
            raise DataError(
                f"problem {problem.id!r}: the checkpoint's chat template refuses its messages: "
                f"{preflight.first_line(error)}"
            ) from None
        prompts.append(list(rendered["input_ids"]))
    return prompts


def check_room(
    problems: Sequence[Problem], prompts: Sequence[list[int]], max_completion_tokens: int, context_length: int | None
) -> None:
    """Check that the longest prompt leaves room for a whole completion in the context.

    Raises:
        ConfigError: it leaves room for a shorter one.
        DataError: it leaves none.
    """
    length, problem = max(((len(ids), problem.id) for ids, problem in zip(prompts, problems, strict=True)))
    if context_length is None or length + max_completion_tokens <= context_length:
        return
    if length < context_length:
        raise ConfigError(
            f"max_completion_tokens = {max_completion_tokens} and the prompt of problem {problem!r} ({length} tokens) "
            f"exceed the checkpoint's context of {context_length} tokens. Set max_completion_tokens to at most "
            f"{context_length - length}, or leave that problem out."
        )
    raise DataError(
        f"problem {problem!r}: its prompt has {length} tokens, which fills the checkpoint's context of "
        f"{context_length} tokens. Leave it out of the dataset or take a checkpoint with a longer context."
    )
