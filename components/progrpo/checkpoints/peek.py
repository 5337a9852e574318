"""Look at a checkpoint without its tensors: of an S3 prefix only small files and safetensors headers are fetched."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from progrpo.checkpoints.preflight import MAX_HEADER, UNSAFE_SUFFIXES
from progrpo.errors import StorageError
from progrpo.storage import check_file_name, localize, s3_client, split_s3_uri

_MAX_FILE = 64 << 20  # a large tokenizer.json has some 30 MB


def peek(uri: str, destination: Path) -> Path:
    """Return a directory with everything of a checkpoint but, if it lies in S3, its tensors.

    A safetensors file of such a copy holds its header and, up to the size it says, a hole: it reads like the original,
    takes no room, and its tensors must not be used.

    Args:
        uri: of a checkpoint; see :func:`progrpo.storage.localize`.
        destination: directory for what must be fetched.

    Raises:
        StorageError: not found, not reachable, not allowed, or a malformed URI.
    """
    if not uri.startswith("s3://"):
        return localize(uri, destination)
    bucket, key = split_s3_uri(uri)
    prefix = f"{key.rstrip('/')}/" if key.strip("/") else ""
    with s3_client(uri) as client:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
        sizes = {item["Key"].removeprefix(prefix): item["Size"] for page in pages for item in page.get("Contents", ())}
        sizes.pop("", None)
        if not sizes:
            raise StorageError(f"{uri!r}: bucket {bucket!r} has no prefix {key!r} with files. Check the key.")
        destination.mkdir(parents=True, exist_ok=True)
        for name, size in sizes.items():
            check_file_name(uri, name)
            path = destination / name
            if path.suffix == ".safetensors":
                path.write_bytes(_header(client, bucket, prefix + name, size))
                with path.open("r+b") as file:
                    file.truncate(size)
            elif path.suffix in (*UNSAFE_SUFFIXES, ".gguf"):  # that it is there is all that is looked at
                with path.open("wb") as file:
                    file.truncate(size)
            elif size <= _MAX_FILE:
                client.download_file(bucket, prefix + name, str(path))
    return destination


def _header(client: Any, bucket: str, key: str, size: int) -> bytes:
    """Fetch the length and the JSON of a safetensors header; the length alone if it cannot be one."""

    def fetch(first: int, last: int) -> bytes:
        content: bytes = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={first}-{last}")["Body"].read()
        return content

    prefix = fetch(0, 7) if size > 8 else b""
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 2 <= length <= min(MAX_HEADER, size - 8):
        return prefix  # reading it says what is wrong
    return prefix + fetch(8, 7 + length)
