"""What lies at a URI right now: equal identities mean equal content, so that a cached result may be used again.

A URI alone does not: the file behind it can be written anew. For S3 it is each object's ETag and size, for a file its
digest, or, above :data:`MAX_HASHED` bytes, its size and the time of its last change.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from progrpo import __version__
from progrpo.errors import StorageError
from progrpo.manifest import sha256_file
from progrpo.storage import find_objects, localize, s3_client

MAX_HASHED = 64 << 20


@dataclass(frozen=True)
class Identity:
    """What was found at a URI.

    Attributes:
        digest: sha256 over names, sizes and contents' tags.
        num_bytes: of all files together.
    """

    digest: str
    num_bytes: int


def identify(uri: str) -> Identity:
    """Return the identity of what lies at ``uri``: one file, or everything below a directory or prefix.

    Args:
        uri: see :func:`progrpo.storage.localize`; nothing is downloaded.

    Raises:
        StorageError: not found, not reachable, not allowed, or a malformed URI.
    """
    entries = _objects(uri) if uri.startswith("s3://") else _files(uri)
    digest = hashlib.sha256(json.dumps([__version__, sorted(entries)]).encode()).hexdigest()
    return Identity(digest, sum(size for _, size, _ in entries))


def _objects(uri: str) -> list[tuple[str, int, str]]:
    with s3_client(uri) as client:
        return [(item["Key"], item["Size"], item["ETag"]) for item in find_objects(client, uri)]


def _files(uri: str) -> list[tuple[str, int, str]]:
    root = localize(uri, Path())  # takes it where it lies
    paths = [root] if root.is_file() else [path for path in root.rglob("*") if path.is_file()]
    try:
        return [(path.relative_to(root).as_posix(), path.stat().st_size, _tag(path)) for path in paths]
    except OSError as error:
        raise StorageError(f"{uri!r} cannot be read: {error.strerror} ({error.filename}). Check its rights.") from None


def _tag(path: Path) -> str:
    stat = path.stat()
    if stat.st_size > MAX_HASHED:
        return str(stat.st_mtime_ns)
    return sha256_file(path)
