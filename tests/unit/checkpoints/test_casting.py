"""Casting weights without torch gives torch's bits."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from progrpo.checkpoints.casting import cast_file
from progrpo.errors import CheckpointError


def every_kind_of_number(dtype: torch.dtype) -> torch.Tensor:
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    # Ties between two bfloat16, one below and one above them, both infinities, NaN, subnormals, both zeros.
    edges = np.array(
        [0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x7F7FFFFF, 0xFF800000, 0x7FC00001, 1, 1 << 31, 0]
    )
    values = np.concatenate([bits, edges.astype(np.uint32)]).view(np.float32)
    return torch.from_numpy(values.copy()).to(dtype)


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_the_bits_are_those_of_torch(stored, wanted, tmp_path):
    weights = every_kind_of_number(stored).reshape(10, -1)
    save_file({"w": weights, "empty": weights[:0].clone(), "ids": torch.arange(7)}, tmp_path / "in.safetensors")
    cast_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors", wanted)
    found = load_file(tmp_path / "out.safetensors")
    expected = weights.to(getattr(torch, wanted))
    assert found["w"].dtype == expected.dtype
    width = torch.int16 if wanted == "bfloat16" else torch.int32
    nan = expected.isnan()
    assert torch.equal(found["w"].isnan(), nan)
    assert torch.equal(found["w"].view(width)[~nan], expected.view(width)[~nan])
    assert found["empty"].shape == (0, weights.shape[1])
    assert found["empty"].dtype == expected.dtype
    assert torch.equal(found["ids"], torch.arange(7))


def test_quantized_weights_are_refused(tmp_path):
    save_file({"w": torch.zeros(4).to(torch.float8_e4m3fn)}, tmp_path / "in.safetensors")
    with pytest.raises(CheckpointError, match=r"w is stored as F8_E4M3, which cannot be converted to bfloat16"):
        cast_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors", "bfloat16")
