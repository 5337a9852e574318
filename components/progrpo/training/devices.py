"""How much memory a device has: the GPU here, a GPU known by name, or what this process may use of the machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from progrpo.errors import ConfigError

if TYPE_CHECKING:
    import torch

GPUS = {
    "a10": 24, "a10g": 23, "a100-40g": 40, "a100-80g": 80, "b200": 180, "h100-80g": 80, "h100-94g": 94, "h200": 141,
    "l4": 24, "l40s": 47, "rtx-4090": 24, "t4": 15, "v100-16g": 16, "v100-32g": 32,
}  # fmt: skip
"""Name -> 10^9 bytes: what the card is sold with, or a little less where its driver shows less than that."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(b|g|gb|gib)?")
_UNITS = {None: 1, "b": 1, "g": 10**9, "gb": 10**9, "gib": 2**30}
_MIN_BYTES = 10**8  # --gpu 80 means readable_size, and is refused rather than taken for 80 bytes


def gpu_bytes(name: str) -> int:
    """Return the memory of a GPU given as a name of :data:`GPUS` or as a size, such as ``80GB``, ``80GiB`` or bytes.

    Raises:
        ConfigError: neither.
    """
    wanted = name.strip().lower()
    if wanted in GPUS:
        return GPUS[wanted] * 10**9
    size = _SIZE.fullmatch(wanted)
    if size is None or (found := int(float(size[1]) * _UNITS[size[2]])) < _MIN_BYTES:
        raise ConfigError(f"unknown GPU {name!r}. Give {', '.join(sorted(GPUS))}, or its memory, such as 80GB.")
    return found


def device_bytes(device: torch.device) -> int | None:
    """Return the memory of a torch device; of a CPU what :func:`host_bytes` says."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return host_bytes()


def host_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory this process may use: what is free, or the limit of its control group if that is less.

    Args:
        root: where ``proc`` and ``sys`` are mounted.

    Returns:
        Bytes; None where the system does not tell (not Linux).
    """
    sizes = []
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        sizes += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except OSError:
        return None
    sizes += _cgroup_limits(root)
    return min(sizes, default=None)


def _cgroup_limits(root: Path) -> list[int]:
    """The limits of this process's control group and of those above it (cgroup v2, else v1's memory controller)."""
    try:
        groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return []
    limits = []
    for _, controllers, path in groups:
        if controllers not in ("", "memory"):
            continue
        mount, name = (("sys/fs/cgroup", "memory.max"), ("sys/fs/cgroup/memory", "memory.limit_in_bytes"))[
            controllers == "memory"
        ]
        # In a container the path may be the host's, while the container's own group is mounted as the top.
        folders = [root / mount / path.strip("/"), *(root / mount / path.strip("/")).parents]
        for folder in folders:
            if not folder.is_relative_to(root / mount):
                break
            try:
                text = (folder / name).read_text().strip()
            except OSError:
                continue
            if text.isdecimal():  # "max": no limit
                limits.append(int(text))
    return limits
