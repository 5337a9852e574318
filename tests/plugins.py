"""Install a package of entry points without a network: its module, and the metadata that pip would write beside it."""

import shutil
import tomllib
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "plugins"


def install(site: Path, source: Path = EXAMPLE) -> None:
    """Put the package of ``source``, a folder with pyproject.toml and modules, into ``site``."""
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    write(site, project["name"], project["version"], project["entry-points"])
    for module in source.glob("*.py"):
        shutil.copy(module, site)


def write(site: Path, name: str, version: str, entry_points: dict[str, dict[str, str]]) -> None:
    """Write the metadata of a package."""
    directory = site / f"{name.replace('-', '_')}-{version}.dist-info"
    directory.mkdir(parents=True)
    (directory / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        line
        for group, points in entry_points.items()
        for line in (f"[{group}]", *(f"{key} = {value}" for key, value in points.items()))
    ]
    (directory / "entry_points.txt").write_text("\n".join(lines) + "\n")
