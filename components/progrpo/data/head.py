"""The first rows of a problem file, of which only those are fetched if it lies in S3."""

from __future__ import annotations

import io
from pathlib import Path, PurePosixPath
from typing import Any

from progrpo.data.read import check_columns
from progrpo.errors import DataError
from progrpo.storage import localize, s3_client, split_s3_uri

HEAD_BYTES = 1 << 20
HEAD_ROWS = 100


def read_head(uri: str, destination: Path, *, columns: tuple[str, ...]) -> Path:
    """Return a local file of the same kind that holds the first rows of ``uri``.

    Args:
        uri: a JSONL, parquet or CSV file; see :func:`progrpo.storage.localize`.
        destination: directory to write it into.
        columns: those that must be there; a parquet file is cut to them.

    Raises:
        DataError: not readable, or a missing column.
        StorageError: not found, not reachable, not allowed.
    """
    destination.mkdir(parents=True, exist_ok=True)
    path = destination / PurePosixPath(uri).name
    if not uri.startswith("s3://"):
        with localize(uri, destination).open("rb") as file:
            _copy_head(file, path, uri, columns)
        return path
    bucket, key = split_s3_uri(uri)
    with s3_client(uri) as client:
        size = client.head_object(Bucket=bucket, Key=key)["ContentLength"]
        with io.BufferedReader(_Object(client, bucket, key, size), HEAD_BYTES) as file:
            _copy_head(file, path, uri, columns)
    return path


def _copy_head(file: Any, path: Path, uri: str, columns: tuple[str, ...]) -> None:
    if path.suffix.lower() != ".parquet":
        head = file.read(HEAD_BYTES)
        if len(head) == HEAD_BYTES:
            head = head[: head.rfind(b"\n") + 1]
        path.write_bytes(head)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Pages as they are read, not all at once.
        whole = pq.ParquetFile(file, pre_buffer=False, buffer_size=HEAD_BYTES)
        check_columns(whole.schema_arrow.names, columns, uri)
        batch = next(whole.iter_batches(HEAD_ROWS, columns=list(columns)), None)
        table = pa.Table.from_batches([] if batch is None else [batch], whole.schema_arrow if batch is None else None)
        pq.write_table(table, path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{uri} is not a readable parquet file: {error}. Write or copy it again.") from None


class _Object(io.RawIOBase):
    """An S3 object that is read by ranges."""

    def __init__(self, client: Any, bucket: str, key: str, size: int) -> None:
        super().__init__()
        self._client, self._bucket, self._key, self._size = client, bucket, key, size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        last = min(self._position + len(buffer), self._size) - 1
        if last < self._position:
            return 0
        span = f"bytes={self._position}-{last}"
        part = self._client.get_object(Bucket=self._bucket, Key=self._key, Range=span)["Body"].read()
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)
