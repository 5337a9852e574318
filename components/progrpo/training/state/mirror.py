"""The copy of a directory of resume points in S3, made by one background thread; training never waits for it."""

from __future__ import annotations

import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError

from progrpo.errors import ManifestError, ProGRPOError, StorageError
from progrpo.manifest import MANIFEST_NAME, Manifest, read_manifest, sha256_file, write_atomic
from progrpo.storage import check_file_name, s3_client, split_s3_uri
from progrpo.training.state.points import (
    DOWNLOAD,
    SHARED,
    PointDirectory,
    ResumePoint,
    point_name,
    points_to_keep,
    read_point,
)

logger = logging.getLogger(__name__)

MAX_BACKOFF_S = 300
MAX_CLOSING_BACKOFF_S = 5
ABANDONED_AFTER_S = 3600
"""Objects without a manifest are a dead writer's if none came in this long; until then it may be at a large file."""


@dataclass(frozen=True)
class RemotePoint:
    """A point as S3 lists it."""

    name: str
    """``step_0000040-`` and the start of the digest over its files: other files are never uploaded over these."""
    step: int
    sizes: dict[str, int]
    modified: datetime
    """Of the manifest, or of the newest object if there is none."""

    @property
    def complete(self) -> bool:
        """Whether the manifest, which is uploaded last, is there."""
        return MANIFEST_NAME in self.sizes


class S3Mirror:
    """Keeps newest (and best) points and shared files of a local directory under an ``s3://`` prefix.

    A failure never reaches the caller: it is logged with its reason, counted in ``num_failures`` and tried again after
    a pause that doubles up to five minutes, and at once when something new is offered and at :meth:`close`. The parts
    of a large file whose upload was killed are removed by the bucket's lifecycle rule for multipart uploads only.
    """

    def __init__(self, uri: str, local: PointDirectory, *, keep_last: int, keep_best: bool) -> None:
        """Take the prefix, the directory to copy and which points to keep there. Nothing is reached yet."""
        self.uri = uri
        self.bucket, key = split_s3_uri(uri)
        self.prefix = f"{key.strip('/')}/" if key.strip("/") else ""
        self.local, self.keep_last, self.keep_best = local, keep_last, keep_best
        self.num_failures = 0
        self.damaged: set[str] = set()
        """Names of points that turned out to be invalid; removed after the next upload."""
        self._scores: dict[str, float | None] = {}
        self._changed = threading.Condition()
        # Each with a token: what is offered again during its upload is uploaded again.
        self._files: dict[str, object] = {}
        self._points: dict[int, object] = {}
        self._uploading: int | None = None
        self._backoff_s = 0.0
        self._retry_at = 0.0
        self._closing = self._aborted = False
        self._thread: threading.Thread | None = None
        self._client: Any = None

    # --- what the caller's thread does -------------------------------------------------------------------------------

    def offer(self, *, points: Sequence[int] | None = None, files: Sequence[str] = ()) -> None:
        """Queue shared files, and points in place of those that wait still; the first point goes first."""
        with self._changed:
            self._files |= {name: object() for name in files}
            if points is not None:
                self._points = {step: object() for step in points}
            self._retry_at = 0.0
            if self._thread is None and (self._files or self._points):
                self._thread = threading.Thread(target=self._run, name="state-upload", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def busy_points(self) -> set[int]:
        """Return the steps that are being uploaded or wait for it: their files are needed still."""
        with self._changed:
            return {*self._points, *(() if self._uploading is None else (self._uploading,))}

    def close(self, timeout_s: float) -> list[str]:
        """Upload what waits still, for at most ``timeout_s``, and return the names of what could not be."""
        with self._changed:
            self._closing, self._retry_at, self._backoff_s = True, 0.0, 0.0
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)
        with self._changed:
            self._aborted = True
            self._changed.notify_all()
            return [*self._files, *(point_name(step) for step in self._points)]

    def points(self) -> list[RemotePoint]:
        """List the points, complete or not, newest first.

        Raises:
            StorageError: S3 cannot be reached or refuses.
        """
        with self._connection() as client:
            return self._list_points(client)

    def download(self, remote: RemotePoint) -> ResumePoint:
        """Make a remote point a local one. What an earlier call got is not downloaded again.

        Raises:
            ManifestError: it is incomplete or damaged.
            StorageError: S3 cannot be reached or refuses, or the disk is full.
        """
        directory = self.local.root / f"{DOWNLOAD}{remote.name}"
        with self._connection() as client:
            text, manifest = self._read_manifest(client, remote)
            for name, entry in manifest.files.items():
                self._check_listed(remote, name, entry.size)
                path = directory / name
                if path.is_file() and path.stat().st_size == entry.size and sha256_file(path) == entry.sha256:
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                client.download_file(self.bucket, f"{self.prefix}{remote.name}/{name}", os.fspath(path))
            directory.mkdir(parents=True, exist_ok=True)
            write_atomic(directory / MANIFEST_NAME, text)
            try:
                read_manifest(directory, "resume")
            except ManifestError:
                shutil.rmtree(directory, ignore_errors=True)
                raise
            return read_point(self.local.install(directory, remote.step), verify=False)

    def fetch_shared(self, directory: Path, accept: Callable[[str], bool]) -> list[str]:
        """Download the shared files whose names ``accept`` takes into ``directory`` and return their names.

        Raises:
            StorageError: S3 cannot be reached or refuses, or the disk is full.
        """
        prefix = f"{self.prefix}{SHARED}/"
        with self._connection() as client:
            names = [item["Key"].removeprefix(prefix) for item in self._list(client, prefix)]
            names = [name for name in names if accept(name)]
            for name in names:
                check_file_name(f"{self.uri}/{SHARED}", name)
                path = directory / name
                path.parent.mkdir(parents=True, exist_ok=True)
                client.download_file(self.bucket, prefix + name, os.fspath(path))  # atomic: a temporary file, a rename
        return names

    # --- what the background thread does -----------------------------------------------------------------------------

    def _run(self) -> None:
        while self._wait():
            try:
                with self._connection() as client:
                    self._upload_all(client)
            except ProGRPOError as error:
                self._count_failure(str(error))
            except Exception as error:  # a bug here must neither end the thread silently nor the training
                logger.exception("copying to %s failed", self.uri)
                self._count_failure(repr(error))

    def _wait(self) -> bool:
        """Wait until there is something to do; False: end."""
        with self._changed:
            while not self._aborted:
                pause_s = self._retry_at - time.monotonic()
                if not self._files and not self._points:
                    if self._closing:
                        return False
                    self._changed.wait()
                elif pause_s > 0:
                    self._changed.wait(pause_s)
                else:
                    return True
            return False

    def _count_failure(self, reason: str) -> None:
        with self._changed:
            self._uploading = None
            if self._aborted:
                return
            self.num_failures += 1
            longest_s = MAX_CLOSING_BACKOFF_S if self._closing else MAX_BACKOFF_S
            self._backoff_s = min(max(2 * self._backoff_s, 1), longest_s)
            self._retry_at = time.monotonic() + self._backoff_s
        logger.warning(
            "cannot copy the state to S3 (failure %d, next try in %d s): %s", self.num_failures, self._backoff_s, reason
        )

    def _upload_all(self, client: Any) -> None:
        while not self._aborted:
            with self._changed:
                name, token = next(iter(self._files.items()), (None, None))
                step, point_token = next(iter(self._points.items()), (None, None))
                self._uploading = step if name is None else None
            if name is not None:
                self._upload_shared(client, name, token)
            elif step is not None:
                self._upload_point(client, step, point_token)
            else:
                return
            self._backoff_s = 0.0

    def _upload_shared(self, client: Any, name: str, token: object) -> None:
        path = self.local.root / SHARED / name
        try:
            with path.open("rb") as file:
                sent = os.fstat(file.fileno())
                self._put(client, file, f"{SHARED}/{name}")
            now = path.stat()
            if os.path.samestat(sent, now) and sent.st_mtime_ns == now.st_mtime_ns:  # not replaced meanwhile
                path.unlink()  # here it only waited
        except FileNotFoundError:
            logger.warning("%s is gone before it was copied to %s", path, self.uri)
        with self._changed:
            if self._files.get(name) is token:
                del self._files[name]

    def _upload_point(self, client: Any, step: int, token: object) -> None:
        name = None
        try:
            name = self._upload_files(client, step)
        except FileNotFoundError:  # replaced by a newer point of its step, which is offered next
            logger.warning("%s was removed before it was copied to %s", point_name(step), self.uri)
        with self._changed:
            self._uploading = None
            if self._points.get(step) is token:
                del self._points[step]
        if name is not None:
            self._prune(client, name)

    def _upload_files(self, client: Any, step: int) -> str:
        # By descriptor: should the directory be replaced meanwhile, these are its files still, or there are none.
        directory = os.open(self.local.path(step), os.O_RDONLY)
        try:
            with _open_in(directory, MANIFEST_NAME) as file:
                manifest = Manifest.model_validate_json(file.read())
            name = f"{point_name(step)}-{manifest.digest[:16]}"
            listed = {item["Key"]: item["Size"] for item in self._list(client, f"{self.prefix}{name}/")}
            if f"{self.prefix}{name}/{MANIFEST_NAME}" not in listed or name in self.damaged:
                for path, entry in manifest.files.items():
                    # The prefix holds these contents only, so an object of that size is whole and need not be sent.
                    if listed.get(f"{self.prefix}{name}/{path}") != entry.size or name in self.damaged:
                        with _open_in(directory, path) as file:
                            self._put(client, file, f"{name}/{path}")
                with _open_in(directory, MANIFEST_NAME) as file:
                    self._put(client, file, f"{name}/{MANIFEST_NAME}")
                self.damaged.discard(name)
            return name
        finally:
            os.close(directory)

    def _put(self, client: Any, file: BinaryIO, name: str) -> None:
        def stop(_: int) -> None:
            if self._aborted:
                raise StorageError(f"{name} was not copied: the run ended first")

        client.upload_fileobj(file, self.bucket, f"{self.prefix}{name}", Callback=stop)

    def _prune(self, client: Any, uploaded: str) -> None:
        """Remove what is not to be kept: the manifest first, so that what is left of a point is not taken for one."""
        points = self._list_points(client)
        newest = {point.step: point for point in reversed(points) if point.complete and self._is_sound(client, point)}
        kept = points_to_keep(
            {step: self._scores[point.name] for step, point in newest.items()}, self.keep_last, self.keep_best
        )
        names = {newest[step].name for step in kept} | {uploaded}
        for point in points:
            age_s = (datetime.now(UTC) - point.modified).total_seconds()
            if point.name in names or (not point.complete and age_s < ABANDONED_AFTER_S):
                continue
            for file in sorted(point.sizes, key=lambda file: file != MANIFEST_NAME):
                client.delete_object(Bucket=self.bucket, Key=f"{self.prefix}{point.name}/{file}")
            self.damaged.discard(point.name)

    def _is_sound(self, client: Any, point: RemotePoint) -> bool:
        if point.name not in self._scores and point.name not in self.damaged:
            try:
                self._scores[point.name] = self._read_manifest(client, point)[1].metadata.get("score")
            except ManifestError:
                self.damaged.add(point.name)
        return point.name not in self.damaged

    # --- reading S3 --------------------------------------------------------------------------------------------------

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        try:
            with s3_client(self.uri, self._client) as client:
                self._client = client
                yield client
        except Exception:
            self._client = None  # the next may find other credentials
            raise

    def _list(self, client: Any, prefix: str) -> Iterator[dict[str, Any]]:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
            yield from page.get("Contents", ())

    def _list_points(self, client: Any) -> list[RemotePoint]:
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for item in self._list(client, f"{self.prefix}step_"):
            name, _, file = item["Key"].removeprefix(self.prefix).partition("/")
            found.setdefault(name, {})[file] = item
        points = []
        for name, files in found.items():
            match = re.fullmatch(r"step_(\d{7,})-[0-9a-f]{16}", name)
            if match:
                dated = [files[MANIFEST_NAME]] if MANIFEST_NAME in files else files.values()
                modified = max(item["LastModified"] for item in dated)
                sizes = {file: item["Size"] for file, item in files.items()}
                points.append(RemotePoint(name, int(match[1]), sizes, modified))
        return sorted(points, key=lambda point: (point.step, point.modified), reverse=True)

    def _read_manifest(self, client: Any, point: RemotePoint) -> tuple[str, Manifest]:
        where = f"{self.uri}: {point.name}/{MANIFEST_NAME}"
        try:
            body = client.get_object(Bucket=self.bucket, Key=f"{self.prefix}{point.name}/{MANIFEST_NAME}")[
                "Body"
            ].read()
            return body.decode(), Manifest.model_validate_json(body)
        except client.exceptions.NoSuchKey:
            raise ManifestError(f"{where} is gone: another run removed it.") from None
        except (ValidationError, UnicodeDecodeError) as error:
            raise ManifestError(f"{where} is not a valid manifest: {error}") from None

    def _check_listed(self, point: RemotePoint, name: str, size: int) -> None:
        """Refuse a file that need not be downloaded to be found wanting."""
        try:
            check_file_name(self.uri, name)
        except StorageError as error:
            raise ManifestError(str(error)) from None
        if point.sizes.get(name) != size:
            found = f"{point.sizes[name]} bytes" if name in point.sizes else "missing"
            raise ManifestError(f"{self.uri}: {point.name}/{name} is {found}; its manifest lists {size} bytes.")


def _open_in(directory: int, name: str) -> BinaryIO:
    return os.fdopen(os.open(name, os.O_RDONLY, dir_fd=directory), "rb")
