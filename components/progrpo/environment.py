"""What a result was made on: hardware and versions, for every published number; and which device to use."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from progrpo import __version__
from progrpo.errors import ConfigError

if TYPE_CHECKING:
    import torch


def resolve_device(device: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Return the torch device for a configured one; ``auto`` takes a GPU if there is one.

    Raises:
        ConfigError: ``cuda`` asked for where torch sees no GPU.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but torch sees no GPU here. Use 'auto' or 'cpu', or run on a GPU node.")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def describe_hardware(device: torch.device) -> str:
    """Return the processor's name and count, e.g. ``AMD EPYC 7763, 2 cores``."""
    import torch

    if device.type == "cuda":
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(device)}"
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    name = names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def library_versions(*names: str) -> dict[str, str]:
    """Return the installed versions of progrpo, Python and the named distributions."""
    return {"progrpo": __version__, "python": platform.python_version(), **{n: metadata.version(n) for n in names}}
