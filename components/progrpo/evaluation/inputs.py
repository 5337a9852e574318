"""What evaluation reads before it samples: tokenizer, prompts, model; and the checks that they fit each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from progrpo.config import EvaluateConfig
from progrpo.data.dataset import Problem
from progrpo.errors import CheckpointError, ConfigError, DataError
from progrpo.generation.engine import Engine

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Refused outright: left open, transformers asks on the terminal whether to run a checkpoint's code.
_LOCAL = {"local_files_only": True, "trust_remote_code": False}


def load_tokenizer(checkpoint: Path) -> tuple[PreTrainedTokenizerBase, int | None]:
    """Return the tokenizer and the longest sequence the model takes; None: the architecture sets no limit.

    Raises:
        CheckpointError: files that cannot be loaded, or no chat template.
    """
    from transformers import AutoConfig, AutoTokenizer

    with _load_errors(checkpoint):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, **_LOCAL)
        context_length = getattr(
            AutoConfig.from_pretrained(checkpoint, **_LOCAL).get_text_config(),
            "max_position_embeddings",
            None,
        )
    try:
        tokenizer.get_chat_template()
    except ValueError:
        raise CheckpointError(
            f"{checkpoint}: its tokenizer has no chat template, which turns a problem's messages into a prompt. "
            f"Import a checkpoint with chat_template in tokenizer_config.json or a chat_template.jinja."
        ) from None
    return tokenizer, context_length


def render_prompts(tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]) -> list[list[int]]:
    """Return the token ids of each problem's messages under the chat template, ready for the assistant's turn.

    Raises:
        DataError: messages the template refuses.
    """
    from jinja2 import TemplateError

    prompts = []
    for problem in problems:
        try:
            rendered = tokenizer.apply_chat_template(problem.prompt, add_generation_prompt=True, return_dict=True)
        except TemplateError as error:
            raise DataError(
                f"problem {problem.id!r}: the checkpoint's chat template refuses its messages: {error}"
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


def load_engine(
    config: EvaluateConfig, checkpoint: Path, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> tuple[Engine, PreTrainedModel]:
    """Load the model, from safetensors only, and return the engine that samples from it and the model that scores.

    Raises:
        CheckpointError: weights that cannot be loaded or are not finite, or no EOS token.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from progrpo.generation.transformers_engine import TransformersEngine

    with _load_errors(checkpoint):
        model, report = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=getattr(torch, config.dtype), use_safetensors=True, output_loading_info=True, **_LOCAL
        )
    if missing := sorted(report["missing_keys"]):  # transformers fills them with random numbers and only warns
        raise CheckpointError(f"{checkpoint} lacks {len(missing)} weights of its architecture, such as {missing[0]}.")
    if broken := [name for name, weights in model.named_parameters() if not weights.isfinite().all()]:
        raise CheckpointError(
            f"{checkpoint}: {broken[0]} and {len(broken) - 1} other tensors hold values that are not finite; its "
            f"training diverged. Evaluate an earlier checkpoint, or train with a lower learning rate."
        )
    # Chat models name the end of a turn in one of two places, some in both.
    named = model.generation_config.eos_token_id
    eos = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None}
    if not eos:
        raise CheckpointError(
            f"{checkpoint} names no EOS token: no completion could end. Set eos_token in its tokenizer."
        )
    pad = min(eos) if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    model = model.eval().to(device)
    engine = TransformersEngine(model, eos_token_ids=sorted(eos), pad_token_id=pad, batch_size=config.batch_size)
    return engine, model


@contextmanager
def _load_errors(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{checkpoint} cannot be loaded by transformers: {error}") from error
