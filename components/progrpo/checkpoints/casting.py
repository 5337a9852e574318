"""Store weights in another dtype, without torch: importing runs in the light image."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from progrpo.checkpoints.preflight import read_header
from progrpo.errors import CheckpointError

# numpy has no bfloat16: its bits are the upper half of a float32's.
_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"}
_NAMES |= {f"{kind}{bits}": f"{name}{bits}" for kind, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)}


def cast_file(source: Path, target: Path, dtype: Literal["float32", "bfloat16"]) -> None:
    """Copy one safetensors file with its floating-point tensors in ``dtype``; bit for bit what torch makes of them.

    Raises:
        CheckpointError: a tensor in a dtype that is neither a common float nor an integer, as in quantized weights.
    """
    from safetensors import TensorSpec, serialize_file

    header = read_header(source)
    bytes_ = np.memmap(source, np.uint8, "r")
    start = len(bytes_) - max(entry["data_offsets"][1] for entry in header.values())
    held, specs = [], {}  # the pointers in specs do not keep the arrays alive
    for name, entry in header.items():
        stored = entry["dtype"]
        if stored not in _NAMES:
            raise CheckpointError(
                f"{source}: {name} is stored as {stored}, which cannot be converted to {dtype}. "
                f"Give the unquantized checkpoint, or dtype keep."
            )
        begin, end = entry["data_offsets"]
        array: npt.NDArray[Any] = bytes_[start + begin : start + end]
        kind = _NAMES[stored]
        if stored in _FLOATS and kind != dtype:
            array, kind = _converted(array.view(_FLOATS[stored]), kind, dtype), dtype
        held.append(array)
        specs[name] = TensorSpec(dtype=kind, shape=entry["shape"], data_ptr=array.ctypes.data, data_len=array.nbytes)
    serialize_file(specs, target, metadata={"format": "pt"})


def _converted(values: npt.NDArray[Any], stored: str, dtype: str) -> npt.NDArray[Any]:
    if stored == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # becomes infinite, as in torch
        single = values.astype(np.float32)
    return single if dtype == "float32" else _bfloat16(single)


def _bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to the nearest bfloat16, ties to even; every NaN to the same one."""
    bits = values.view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)
