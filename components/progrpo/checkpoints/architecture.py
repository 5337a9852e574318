"""The shape of a checkpoint's model, from ``config.json`` and the headers of its weights; nothing is loaded."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from progrpo.checkpoints.preflight import read_config, read_tensors
from progrpo.errors import CheckpointError

_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


@dataclass(frozen=True)
class Linear:
    """A matrix of the model: a layer that low-rank adapters can be put on, if it is not an embedding."""

    name: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class Architecture:
    """What memory and time depend on.

    Attributes:
        name: the architecture's class.
        num_parameters: stored, tied ones once.
        layer_parameters: of the largest layer; ``root_parameters`` belong to none: embedding, final norm, LM head.
        intermediate_size: width of the MLP; of all experts of a token together.
        qk_norm: queries and keys are normalised (Qwen3).
        linears: the matrices inside the layers, by the names of their modules.
        context_length: in tokens; None: no limit.
    """

    name: str
    num_parameters: int
    layer_parameters: int
    root_parameters: int
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    qk_norm: bool
    linears: tuple[Linear, ...]
    context_length: int | None

    @property
    def query_size(self) -> int:
        """Elements of a token's queries, over all heads."""
        return self.num_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Elements of a token's keys, over all key-value heads; its values are as many."""
        return self.num_kv_heads * self.head_dim

    def adapted(self, targets: Sequence[str] | None) -> list[Linear]:
        """Return the matrices that get an adapter: those peft would match, or all inside the layers if None."""
        return [linear for linear in self.linears if targets is None or any(matches(linear.name, t) for t in targets)]


def read_architecture(directory: Path) -> Architecture:
    """Read the facts of the checkpoint in ``directory``.

    Raises:
        CheckpointError: broken files, or a configuration that does not name the sizes that are needed.
    """
    config = read_config(directory)
    text_config = config.get("text_config") or config
    shapes = {name: tuple(tensor["shape"]) for name, tensor in read_tensors(directory).items()}
    layers: dict[int, int] = defaultdict(int)
    for name, shape in shapes.items():
        if found := _LAYER.search(name):
            layers[int(found[1])] += math.prod(shape)
    sizes = _Sizes(directory, text_config)
    hidden, heads = sizes.need("hidden_size", "n_embd", "d_model"), sizes.need("num_attention_heads", "n_head")
    embedding = next((s for n, s in shapes.items() if n.endswith(("embed_tokens.weight", "wte.weight"))), None)
    total = sum(map(math.prod, shapes.values()))
    return Architecture(
        name=str(config["architectures"][0]),
        num_parameters=total,
        layer_parameters=max(layers.values(), default=0),
        root_parameters=total - sum(layers.values()),
        num_layers=sizes.need("num_hidden_layers", "n_layer"),
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=sizes.get("num_key_value_heads") or heads,
        head_dim=sizes.get("head_dim") or hidden // heads,
        intermediate_size=_intermediate_size(sizes, hidden),
        vocab_size=embedding[0] if embedding else sizes.need("vocab_size"),
        qk_norm=any(name.endswith("q_norm.weight") for name in shapes),
        linears=tuple(
            Linear(name.removesuffix(".weight"), shape[1], shape[0])
            for name, shape in shapes.items()
            if len(shape) == 2 and name.endswith(".weight") and _LAYER.search(name)
        ),
        context_length=sizes.get("max_position_embeddings", "n_positions"),
    )


def matches(module: str, target: str) -> bool:
    """Tell whether peft puts an adapter on ``module`` for ``target``: its whole name, or the end of it."""
    return module == target or module.endswith(f".{target}")


class _Sizes:
    """Sizes in a ``config.json``, under any of the names that architectures give them."""

    def __init__(self, directory: Path, config: Mapping[str, Any]) -> None:
        self._directory, self._config = directory, config

    def get(self, *names: str) -> int | None:
        values = [self._config[name] for name in names if isinstance(self._config.get(name), int)]
        return values[0] if values and values[0] > 0 else None

    def need(self, *names: str) -> int:
        value = self.get(*names)
        if value is None:
            raise CheckpointError(
                f"{self._directory / 'config.json'} names no {names[0]}, so its memory cannot be estimated. "
                f"Save the model with transformers' save_pretrained."
            )
        return value


def _intermediate_size(sizes: _Sizes, hidden: int) -> int:
    experts = sizes.get("num_experts_per_tok")
    if experts is not None:
        return experts * (sizes.get("moe_intermediate_size") or sizes.need("intermediate_size"))
    return sizes.get("intermediate_size", "n_inner") or 4 * hidden
