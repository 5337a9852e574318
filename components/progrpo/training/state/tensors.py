"""Trees of state as safetensors and JSON: optimizer, scheduler, generators, buffered rollouts, bit for bit.

A tree is made of dict, list, tuple, None, bool, int, float, str, bytes, tensors, numpy arrays and numpy scalars. Its
tensors go to a safetensors file under numbers; the rest becomes a JSON document in which JSON's own values stand for
themselves and an object with one key says what else there is, for instance ``{"tensor": "3"}``.
"""

from __future__ import annotations

import base64
import json
import logging
import math
import random
import struct
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from progrpo.errors import StateError

logger = logging.getLogger(__name__)

ARRAY_KINDS = "biuf"
"""numpy's bool, int, unsigned int and float: what a tensor can hold bit for bit."""


def pack(tree: Any) -> tuple[dict[str, Tensor], Any]:
    """Split a tree into its tensors and a document that JSON can hold.

    A tensor or array that occurs twice is stored once and is one object again after :func:`unpack`. Tensors come back
    on the CPU, contiguous and without a gradient; an OrderedDict or defaultdict as a dict, a torch.Size as a tuple.

    Args:
        tree: what to keep. It may hold shared, overlapping, empty and 0-d tensors on any device; not complex ones.

    Returns:
        The tensors, which share memory with the tree where they can, and the document.

    Raises:
        TypeError: something else is in the tree; the message says where.
    """
    packer = _Packer()
    document = packer.pack(tree, "tree")
    return packer.tensors, document


def unpack(tensors: Mapping[str, Tensor], document: Any) -> Any:
    """Put together again what :func:`pack` split.

    Raises:
        StateError: the document names a tensor that is not there, or was written by another version.
    """
    return _Unpacker(tensors).unpack(document)


def save_tree(stem: Path, tree: Any) -> None:
    """Write a tree to ``<stem>.safetensors`` and ``<stem>.json``.

    Raises:
        TypeError: the tree holds what :func:`pack` refuses; nothing is written then.
    """
    tensors, document = pack(tree)
    text = json.dumps(document, allow_nan=False)
    save_file(tensors, stem.with_name(f"{stem.name}.safetensors"))
    stem.with_name(f"{stem.name}.json").write_text(text, encoding="utf-8")


def load_tree(stem: Path) -> Any:
    """Read what :func:`save_tree` wrote.

    Raises:
        StateError: a file that is missing or no such tree.
    """
    try:
        tensors = load_file(stem.with_name(f"{stem.name}.safetensors"))
        document = json.loads(stem.with_name(f"{stem.name}.json").read_text(encoding="utf-8"))
    except Exception as error:  # safetensors' error has no type of its own
        raise StateError(
            f"{stem}.safetensors and {stem}.json do not hold a saved state: {type(error).__name__}: {error}. "
            f"Remove this resume point to go on from the one before it."
        ) from None
    # Clones: the loaded ones lie in a file map at any byte, and kernels may sum in another order where memory is not
    # aligned.
    return unpack({name: tensor.clone() for name, tensor in tensors.items()}, document)


def get_rng_state() -> dict[str, Any]:
    """Return the state of every global generator: python's, numpy's, torch's and that of each CUDA device."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": list(cuda),
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Set every global generator to what :func:`get_rng_state` returned.

    With another number of CUDA devices those both have are set, and a warning says so.
    """
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if len(state["cuda"]) != num_devices:
        logger.warning(
            "the state was saved with %d CUDA devices, here are %d: samples may differ from the first run's",
            len(state["cuda"]),
            num_devices,
        )
    for index, generator in enumerate(state["cuda"][:num_devices]):
        torch.cuda.set_rng_state(generator, index)


class _Packer:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[Hashable, str] = {}
        self._storages: set[int] = set()

    def pack(self, value: Any, where: str) -> Any:
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            # JSON knows no NaN, and two NaNs may differ in their bits.
            return value if math.isfinite(value) else {"float": struct.pack(">d", value).hex()}
        if type(value) is bytes:
            return {"bytes": base64.b64encode(value).decode()}
        if type(value) is list:
            return [self.pack(item, f"{where}[{index}]") for index, item in enumerate(value)]
        if type(value) in (tuple, torch.Size):
            return {"tuple": [self.pack(item, f"{where}[{index}]") for index, item in enumerate(value)]}
        if isinstance(value, dict):
            items = [(key, self.pack(item, f"{where}[{key!r}]")) for key, item in value.items()]
            if all(type(key) is str for key in value):
                return {"dict": dict(items)}
            return {"items": [[self.pack(key, f"{where}'s key"), item] for key, item in items]}
        if type(value) in (Tensor, torch.nn.Parameter):
            return {"tensor": self._tensor(value, where)}
        if type(value) is np.ndarray:
            if id(value) not in self._names:
                self._names[id(value)] = self._array(value, where)
            return {"array": self._names[id(value)]}
        if isinstance(value, np.generic):
            return {"scalar": self._array(np.asarray(value), where)}
        raise TypeError(f"{where} is a {type(value).__name__}, which a saved state cannot hold: {value!r:.100}")

    def _tensor(self, tensor: Tensor, where: str) -> str:
        if tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized or tensor.is_meta:
            raise TypeError(
                f"{where} is a {tensor.layout} tensor of {tensor.dtype} on {tensor.device}, not a plain one"
            )
        key: Hashable = id(tensor)
        if tensor.numel():
            key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if key not in self._names:
            kept = tensor.detach().cpu().contiguous()
            if kept.untyped_storage().data_ptr() in self._storages:  # safetensors refuses overlapping tensors
                kept = kept.clone()
            self._names[key] = self._add(kept)
        return self._names[key]

    def _array(self, array: np.ndarray[Any, Any], where: str) -> str:
        if array.dtype.kind not in ARRAY_KINDS or not array.dtype.isnative or array.dtype.itemsize > 8:
            raise TypeError(f"{where} is an array of {array.dtype}, which a saved state cannot hold")
        return self._add(torch.from_numpy(array.copy(order="C")))

    def _add(self, tensor: Tensor) -> str:
        name = str(len(self.tensors))
        self.tensors[name] = tensor
        self._storages.add(tensor.untyped_storage().data_ptr())
        return name


class _Unpacker:
    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.arrays: dict[str, np.ndarray[Any, Any]] = {}

    def unpack(self, node: Any) -> Any:
        if not isinstance(node, dict | list):
            return node
        if isinstance(node, list):
            return [self.unpack(item) for item in node]
        match list(node.items()):
            case [("float", str(text))]:
                return struct.unpack(">d", bytes.fromhex(text))[0]
            case [("bytes", str(text))]:
                return base64.b64decode(text)
            case [("tuple", list(items))]:
                return tuple(self.unpack(item) for item in items)
            case [("dict", dict(items))]:
                return {key: self.unpack(item) for key, item in items.items()}
            case [("items", list(items))]:
                return {self.unpack(key): self.unpack(item) for key, item in items}
            case [("tensor", str(name))] if name in self.tensors:
                return self.tensors[name]
            case [("array", str(name))] if name in self.tensors:
                return self.arrays.setdefault(name, self.tensors[name].numpy())
            case [("scalar", str(name))] if name in self.tensors:
                return self.tensors[name].numpy()[()]
        raise StateError(
            f"a saved state holds {json.dumps(node)[:100]}, which this version cannot read. "
            f"Go on with the version that wrote it, or start anew under another train.checkpointing.name."
        )
