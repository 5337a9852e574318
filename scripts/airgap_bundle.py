"""Make one folder with all that a site without the internet needs: images, charts, compiled pipelines, checksums.

    python scripts/airgap_bundle.py --registry registry.site.example/progrpo --output bundle --dry-run

Images come from the Docker Engine of this machine: build ours with ``make images`` and pull the others first. What is
packed follows from the charts' values: give ``--values CHART=FILE`` for other images, ``--chart`` for fewer charts. On
the site, ``./load.sh`` checks the sums, pushes the images, and writes one file of values for each chart with the
registry and the digests that the images have there: pushing changes a digest, as an engine packs layers anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python
import yaml

from progrpo_components.images import REGISTRY_VARIABLE

ROOT = Path(__file__).resolve().parents[1]
CHARTS = ("progrpo", "progrpo-dev", "progrpo-serve")
LOADER = Path(__file__).with_name("airgap_load.sh")
_UNITS = ("B", "kB", "MB", "GB")


@dataclass(frozen=True)
class Image:
    """An image to pack.

    Attributes:
        reference: as the charts' defaults name it.
        name: repository and tag below the site's registry.
        places: chart and dotted path of every value that names it.
        image_id: of the engine; empty if it is not there.
        size: unpacked bytes; 0 if it is not there.
    """

    reference: str
    name: str
    places: tuple[tuple[str, str], ...]
    image_id: str = ""
    size: int = 0

    @property
    def file(self) -> str:
        """Name of its archive in the bundle."""
        return f"images/{self.name.replace('/', '_').replace(':', '_')}.tar"


class BundleError(ValueError):
    """Something to pack is not there."""


def find_images(charts: Mapping[str, Mapping[str, Any]]) -> list[Image]:
    """Return the images that the charts' values name.

    Args:
        charts: own values by chart.
    """
    found: dict[str, Image] = {}
    for chart, own in charts.items():
        with helm_python.Chart.load(str(ROOT / "charts" / chart)) as loaded:
            values, version = loaded.merge_values(dict(own)), loaded.metadata["appVersion"]
        for path, value in _image_values(values, ()):
            registry = value.get("registry") or _shared_registry(values, path)
            name = f"{value['repository']}:{value.get('tag') or version}"
            digest = f"@{value['digest']}" if value.get("digest") else ""
            image = found.get(name) or Image(f"{registry}/{name}{digest}", name, ())
            found[name] = Image(image.reference, name, (*image.places, (chart, ".".join(path))))
    return [found[name] for name in sorted(found)]


def _image_values(values: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield the mappings that name an image, but for the parts of a chart that are off."""
    if values.get("enabled") is False:
        return
    for key, value in values.items():
        if isinstance(value, dict):
            if "repository" in value:
                yield (*path, key), value
            else:
                yield from _image_values(value, (*path, key))


def _shared_registry(values: Mapping[str, Any], path: tuple[str, ...]) -> str:
    """Return the registry that stands beside the images instead of in each."""
    for part in path[:-1]:
        values = values[part]
    return str(values["registry"])


def inspect(image: Image, docker: str) -> Image:
    """Return the image with what the engine knows of it.

    An engine knows an image by its digest only if it was pulled by it; else the tag is looked up.
    """
    name, at, digest = image.reference.partition("@")
    untagged = f"{name.rpartition(':')[0]}@{digest}" if at else name
    for reference in (untagged, name):
        done = subprocess.run(
            [docker, "image", "inspect", "--format", "{{.Id}} {{.Size}}", reference], capture_output=True, text=True
        )
        if done.returncode == 0:
            image_id, size = done.stdout.split()
            return Image(image.reference, image.name, image.places, image_id, int(size))
        if not at:
            break
    return image


def package_charts(charts: Sequence[str], output: Path) -> None:
    """Pack the charts."""
    for chart in charts:
        helm_python.package(str(ROOT / "charts" / chart), destination=str(output / "charts"))


def compile_pipelines(registry: str, output: Path) -> None:
    """Compile every pipeline for images of the site's registry."""
    command = [sys.executable, "-m", "progrpo_pipelines.cli", "compile", "--all", "--output", str(output / "pipelines")]
    environment = {**os.environ, REGISTRY_VARIABLE: registry}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise BundleError(f"the pipelines cannot be compiled:\n{done.stdout}{done.stderr}")


def write_values(charts: Mapping[str, Mapping[str, Any]], images: Sequence[Image], registry: str, output: Path) -> None:
    """Write each chart's values for the site, with ``@FILE@`` where load.sh puts the digest of an image."""
    for chart, own in charts.items():
        values = json.loads(json.dumps(own))
        values.setdefault("global", {})["imageRegistry"] = registry
        for image in images:
            for place_chart, path in image.places:
                if place_chart == chart:
                    _set(values, path.split("."), {"tag": image.name.rpartition(":")[2], "digest": f"@{image.file}@"})
        path = output / "values" / f"{chart}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def _set(values: dict[str, Any], path: Sequence[str], entries: Mapping[str, str]) -> None:
    for part in path:
        values = values.setdefault(part, {})
    values.update(entries)


def write_sums(output: Path) -> None:
    """Write the SHA-256 of every file, last."""
    lines = []
    for path in sorted(output.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.relative_to(output)}\n")
    (output / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def make_bundle(
    charts: Mapping[str, Mapping[str, Any]], images: Sequence[Image], registry: str, output: Path, docker: str
) -> None:
    """Write the bundle; ``output`` appears once it is whole.

    Raises:
        BundleError: an image is not on this machine, or something cannot be written.
    """
    if missing := [image.reference for image in images if not image.image_id]:
        pulls = "".join(f"\n  {_advice(reference)}" for reference in missing)
        raise BundleError(f"{len(missing)} of {len(images)} images are not on this machine:{pulls}")
    if output.exists():
        raise BundleError(f"{output} exists. Give another folder, or remove it.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as temporary:
        folder = Path(temporary) / output.name
        (folder / "images").mkdir(parents=True)
        for image in images:
            # By its id: a tag may mean another image by now, and a digest is not saved.
            done = subprocess.run([docker, "save", "--output", str(folder / image.file), image.image_id], stderr=-1)
            if done.returncode:
                raise BundleError(f"{image.reference} cannot be saved: {done.stderr.decode().strip()}")
        lines = [f"{image.file}\t{image.name}\t{image.reference}\n" for image in images]
        (folder / "images.tsv").write_text("".join(lines), encoding="utf-8")
        package_charts(list(charts), folder)
        compile_pipelines(registry, folder)
        write_values(charts, images, registry, folder)
        (folder / "load.sh").write_text(LOADER.read_text(encoding="utf-8").replace("@REGISTRY@", registry))
        (folder / "load.sh").chmod(0o755)
        write_sums(folder)
        shutil.move(folder, output)


def _advice(reference: str) -> str:
    return "make images" if reference.startswith("localhost/") else f"docker pull {reference}"


def print_plan(charts: Sequence[str], images: Sequence[Image], registry: str) -> None:
    """List everything that would be packed, with sizes."""
    for image in images:
        size = readable(image.size) if image.image_id else f"not here: {_advice(image.reference)}"
        print(f"image     {image.reference}\n          -> {registry}/{image.name}   {size}")
    for chart in charts:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(helm_python.package(str(ROOT / "charts" / chart), destination=directory))
            print(f"chart     {path.name}   {readable(path.stat().st_size)}")
    for path in sorted((ROOT / "pipelines" / "compiled").glob("*.yaml")):
        print(f"pipeline  {path.name}   {readable(path.stat().st_size)}")
    print(f"total     {readable(sum(image.size for image in images))} of images, unpacked")


def readable(size: int) -> str:
    """Return a number of bytes as people write it."""
    number, unit = float(size), 0
    while number >= 1000 and unit < len(_UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:.0f} {_UNITS[unit]}" if unit == 0 else f"{number:.1f} {_UNITS[unit]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a bundle or list one; 2 with a message where that is not possible."""
    summary, _, rest = str(__doc__).partition("\n\n")
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=summary, epilog=rest, formatter_class=formatter)
    parser.add_argument("--registry", required=True, help="the site's registry, and a folder in it")
    parser.add_argument("--output", type=Path, default=Path("airgap-bundle"), help="folder to make")
    parser.add_argument("--chart", action="append", choices=CHARTS, help="pack only this one; may be repeated")
    parser.add_argument("--values", action="append", default=[], metavar="CHART=FILE", help="own values of a chart")
    parser.add_argument("--docker", default="docker", help="the docker command")
    parser.add_argument("--dry-run", action="store_true", help="list everything with sizes; write nothing")
    parsed = parser.parse_args(arguments)
    try:
        charts = _own_values(parsed.chart or CHARTS, parsed.values)
        if shutil.which(parsed.docker) is None:
            raise BundleError(f"there is no command {parsed.docker!r}. Install Docker's, or give another by --docker.")
        images = [inspect(image, parsed.docker) for image in find_images(charts)]
        registry = parsed.registry.rstrip("/")
        if parsed.dry_run:
            print_plan(list(charts), images, registry)
        else:
            make_bundle(charts, images, registry, parsed.output, parsed.docker)
            print(f"{parsed.output} holds {len(images)} images and {len(charts)} charts. On the site: ./load.sh")
    except (BundleError, helm_python.HelmError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _own_values(charts: Sequence[str], given: Sequence[str]) -> dict[str, dict[str, Any]]:
    values: dict[str, dict[str, Any]] = {chart: {} for chart in charts}
    for text in given:
        chart, _, file = text.partition("=")
        if chart not in values or not Path(file).is_file():
            raise BundleError(f"--values {text}: write CHART=FILE with one of {', '.join(values)} and a file.")
        values[chart] = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    return values


if __name__ == "__main__":
    sys.exit(main())
