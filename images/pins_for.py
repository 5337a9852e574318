"""Print the pins of a lock file for one version of Python on Linux: python pins_for.py 3.12 < requirements.lock.

pip download fetches wheels for another Python than its own, but reads the markers for its own.
"""

from __future__ import annotations

import re
import sys

from pip._vendor.packaging.requirements import Requirement


def main(version: str, lock: str) -> str:
    """Return the lock without markers, and without the lines that do not apply."""
    target = {
        "python_version": version,
        "python_full_version": f"{version}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_machine": "x86_64",
        "sys_platform": "linux",
        "platform_system": "Linux",
    }
    kept = []
    for entry in re.split(r"\n(?=\S)", lock.strip()):
        if entry.startswith("#"):
            continue
        text, continued, hashes = entry.partition(" \\\n")
        pin = Requirement(text)
        if pin.marker is None or pin.marker.evaluate(target):
            kept.append(f"{pin.name}{pin.specifier}{continued}{hashes}")
    return "\n".join(kept)


if __name__ == "__main__":
    print(main(sys.argv[1], sys.stdin.read()))
