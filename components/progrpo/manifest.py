"""The manifest: what makes a directory an artifact.

Every step writes a directory and, last, its ``manifest.json``: temporary file, fsync, rename. A directory without a
valid manifest is incomplete and is never read as an input, so a killed step leaves nothing half-written behind that
a later one could take for whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from progrpo import __version__
from progrpo.errors import ManifestError
from progrpo.storage import is_file_name

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1

Kind = Literal["dataset", "checkpoint", "training", "resume", "evaluation", "ability", "comparison", "promotion"]


class FileEntry(BaseModel):
    """One file of an artifact: its content digest and its size in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sha256: str
    size: int


class Manifest(BaseModel):
    """Contents of ``manifest.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int = SCHEMA_VERSION
    kind: Kind
    created_by: str = f"progrpo {__version__}"
    inputs: dict[str, str] = Field(default_factory=dict, description="name of an input artifact -> its digest")
    config: dict[str, Any] = Field(default_factory=dict, description="the resolved configuration of the step")
    files: dict[str, FileEntry] = Field(default_factory=dict)
    metadata: dict[str, Any] = Field(default_factory=dict)

    @property
    def digest(self) -> str:
        """sha256 over kind and file digests: equal contents give equal digests, wherever they lie."""
        lines = [self.kind, *(f"{path}:{entry.sha256}" for path, entry in sorted(self.files.items()))]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file or a directory's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path for what takes the place of ``path`` if, and only if, the block ends well.

    A reader sees the old file or the whole new one, also after a power cut.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Write ``text`` as :func:`replacing` does."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_manifest(
    directory: Path,
    kind: Kind,
    *,
    inputs: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Manifest:
    """Digest every file below ``directory`` and write its manifest, last and atomically.

    Args:
        directory: the finished artifact. Files whose name starts with a dot are not part of it.
        kind: what the directory holds.
        inputs: digests of the artifacts it was made from, by name.
        config: the resolved configuration, JSON-serialisable, without secrets.
        metadata: facts worth showing beside the artifact (counts, versions).
    """
    files = {
        path.relative_to(directory).as_posix(): FileEntry(sha256=sha256_file(path), size=path.stat().st_size)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME and not path.name.startswith(".")
    }
    manifest = Manifest(
        kind=kind, inputs=dict(inputs or {}), config=dict(config or {}), files=files, metadata=dict(metadata or {})
    )
    write_atomic(directory / MANIFEST_NAME, json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True))
    return manifest


def read_manifest(directory: Path, kind: Kind, *, verify: bool = True) -> Manifest:
    """Read and check the manifest of an artifact of ``kind``.

    Args:
        directory: the artifact.
        kind: what the caller needs it to be.
        verify: compare size and sha256 of every file with the manifest.

    Raises:
        ManifestError: no or a broken manifest, another kind or schema version, a missing or changed file.
    """
    path = directory / MANIFEST_NAME
    if not path.is_file():
        raise ManifestError(
            f"{directory} has no {MANIFEST_NAME}: it is not a finished {kind} artifact. "
            f"Give the output directory of a step that ended well, or run that step again."
        )
    manifest = parse_manifest(path.read_bytes(), kind, where=str(directory))
    if verify:
        for name, entry in manifest.files.items():
            _check_file(directory, name, entry)
    return manifest


def parse_manifest(text: str | bytes, kind: Kind, *, where: str) -> Manifest:
    """Return the manifest of an artifact of ``kind``; ``where`` is the artifact's place, for messages.

    Raises:
        ManifestError: it is broken, or of another kind or schema version.
    """
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise ManifestError(
            f"{where}/{MANIFEST_NAME} is not a valid manifest ({error.error_count()} errors): {error}"
        ) from None
    if manifest.schema_version != SCHEMA_VERSION:
        raise ManifestError(
            f"{where}/{MANIFEST_NAME} has schema version {manifest.schema_version}, this progrpo {__version__} reads "
            f"{SCHEMA_VERSION}. Make the artifact again with this version."
        )
    for name in manifest.files:
        if not is_file_name(name):
            raise ManifestError(f"{where}/{MANIFEST_NAME} names {name!r}, which lies outside its directory.")
    if manifest.kind != kind:
        raise ManifestError(f"{where} holds a {manifest.kind} artifact, but a {kind} artifact is needed here.")
    return manifest


def _check_file(directory: Path, name: str, entry: FileEntry) -> None:
    path = directory / name
    if not path.resolve().is_relative_to(directory.resolve()):
        raise ManifestError(f"{directory / MANIFEST_NAME} names {name!r}, which lies outside its directory.")
    if not path.is_file():
        raise ManifestError(f"{directory} lacks {name}, which its manifest lists. Copy or make the artifact again.")
    if path.stat().st_size != entry.size or sha256_file(path) != entry.sha256:
        raise ManifestError(
            f"{path} differs from its manifest: changed or cut off after it was made. Copy or make the artifact again."
        )
