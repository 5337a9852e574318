"""Refuse a wheel of torch that is built for CUDA: python cpu_torch.py WHEEL, before an image without CUDA is built.

An index that serves only the build for CUDA would give an image whose torch cannot be imported.
"""

from __future__ import annotations

import re
import sys
from email.parser import BytesParser
from pathlib import Path
from zipfile import ZipFile


def main(wheel: Path) -> str | None:
    """Return what is wrong with the wheel, None if it is one for CPUs."""
    with ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        needed = BytesParser().parsebytes(archive.read(name)).get_all("Requires-Dist", [])
    libraries = [text for text in needed if re.match(r"(nvidia|cuda)-", text)]
    if not libraries:
        return None
    return (
        f"error: {wheel.name} is torch's build for CUDA: it needs {len(libraries)} libraries that "
        f"requirements-cpu.lock leaves out ({libraries[0].split()[0]}, ...). Set TORCH_INDEX_URL to an index that has "
        f"its build for CPUs (docs/images.md), or build on vLLM's image with requirements.lock."
    )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
