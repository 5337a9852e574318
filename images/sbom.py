"""Write what an image holds as CycloneDX 1.5: python sbom.py NAME VERSION [SITE_PACKAGES] > sbom.cdx.json.

Python packages from their own metadata, Debian's from dpkg. Without time and serial number: two builds of the same
content write the same bytes.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

DPKG = Path("/var/lib/dpkg/status")
OS_RELEASE = Path("/etc/os-release")


def python_packages(paths: list[str]) -> Iterator[dict[str, Any]]:
    """Describe every distribution below ``paths``."""
    for found in metadata.distributions(path=paths):
        name = re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower()
        component: dict[str, Any] = {"type": "library", "name": name, "version": found.version}
        component["purl"] = f"pkg:pypi/{name}@{quote(found.version)}"
        if expression := found.metadata["License-Expression"]:
            component["licenses"] = [{"expression": expression}]
        yield component


def debian_packages(status: Path) -> Iterator[dict[str, Any]]:
    """Describe every package that dpkg has installed; none where there is no dpkg."""
    if not status.is_file():
        return
    release = dict(line.split("=", 1) for line in OS_RELEASE.read_text().splitlines() if "=" in line)
    distribution = f"{release['ID']}-{release.get('VERSION_ID', '')}".replace('"', "")
    vendor = distribution.partition("-")[0]
    for entry in status.read_text(encoding="utf-8").split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", entry, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            name, version, machine = fields["Package"], fields["Version"], fields["Architecture"]
            place = f"pkg:deb/{vendor}/{quote(name)}@{quote(version)}?arch={machine}&distro={distribution}"
            yield {"type": "library", "name": name, "version": version, "purl": place}


def main(name: str, version: str, paths: list[str]) -> None:
    """Print the bill of materials."""
    components = [*python_packages(paths or sys.path), *debian_packages(DPKG)]
    unique = {component["purl"]: component for component in components}
    content = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": name, "version": version}},
        "components": [unique[purl] for purl in sorted(unique)],
    }
    json.dump(content, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
