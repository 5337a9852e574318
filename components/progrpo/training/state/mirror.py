"""The copy of a directory of resume points in S3, made by one background thread; training never waits for it."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from progrpo.backoff import Backoff
from progrpo.errors import ManifestError, ProGRPOError, StorageError
from progrpo.manifest import MANIFEST_NAME, Manifest, parse_manifest, read_manifest, sha256_file, write_atomic
from progrpo.storage import check_file_name, list_objects, s3_client, split_s3_uri
from progrpo.training.state.points import (
    DOWNLOAD,
    SHARED,
    PointDirectory,
    PointName,
    ResumePoint,
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
    """A point as S3 lists it: sizes of its files, and when the newest of them came."""

    name: PointName
    sizes: dict[str, int]
    modified: datetime

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
        self._damaged: set[PointName] = set()
        """Points that turned out to be invalid; removed after the next upload."""
        self._scores: dict[PointName, float | None] = {}
        self._lock = threading.Lock()
        self._waiting: list[PointName] = []
        self._uploading: PointName | None = None
        self._woken = threading.Event()
        self._backoff = Backoff(longest_s=MAX_BACKOFF_S)
        self._closing = self._aborted = False
        self._thread: threading.Thread | None = None
        self._client: Any = None

    # --- what the caller's thread does -------------------------------------------------------------------------------

    def offer(self, points: Sequence[PointName] | None = None) -> None:
        """Upload the shared files, and points in place of those that wait still; the first point goes first."""
        with self._lock:
            if points is not None:
                self._waiting = list(points)
        self._woken.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="state-upload", daemon=True)
            self._thread.start()

    def busy_points(self) -> set[PointName]:
        """Return the points that are being uploaded or wait for it: their files are needed still."""
        with self._lock:
            return {*self._waiting, *([self._uploading] if self._uploading else [])}

    def close(self, timeout_s: float) -> list[str]:
        """Upload what waits still, for at most ``timeout_s``, and return the names of what could not be."""
        self._backoff = Backoff(longest_s=MAX_CLOSING_BACKOFF_S)
        self._closing = True
        self._woken.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        self._aborted = True
        self._woken.set()
        return [*self.local.shared(), *map(str, self._waiting)]

    def points(self) -> list[RemotePoint]:
        """List the points, complete or not.

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
        try:
            with self._connection() as client:
                text, manifest = self._read_manifest(client, remote.name)
                for name, entry in manifest.files.items():
                    if remote.sizes.get(name) != entry.size:
                        found = f"{remote.sizes[name]} bytes" if name in remote.sizes else "missing"
                        raise ManifestError(
                            f"{self.uri}: {remote.name}/{name} is {found}; its manifest lists {entry.size} bytes."
                        )
                    path = directory / name
                    if not (path.is_file() and sha256_file(path) == entry.sha256):
                        self._get(client, f"{remote.name}/{name}", path)
                directory.mkdir(parents=True, exist_ok=True)
                write_atomic(directory / MANIFEST_NAME, text)
                read_manifest(directory, "resume")
                return read_point(self.local.install(directory, remote.name), verify=False)
        except ManifestError:
            self._damaged.add(remote.name)
            shutil.rmtree(directory, ignore_errors=True)
            raise

    def fetch_shared(self, directory: Path, accept: Callable[[str], bool]) -> list[str]:
        """Download the shared files whose names ``accept`` takes into ``directory`` and return their names.

        Raises:
            StorageError: S3 cannot be reached or refuses, or the disk is full.
        """
        prefix = f"{self.prefix}{SHARED}/"
        with self._connection() as client:
            names = [item["Key"].removeprefix(prefix) for item in list_objects(client, self.bucket, prefix)]
            names = [name for name in names if accept(name)]
            for name in names:
                check_file_name(f"{self.uri}/{SHARED}", name)
                self._get(client, f"{SHARED}/{name}", directory / name)
        return names

    # --- what the background thread does -----------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._aborted:
            self._woken.clear()
            pause_s = None  # until something is offered
            try:
                with self._connection() as client:
                    self._upload_all(client)
                if self._closing and not self._woken.is_set():
                    return
            except ProGRPOError as error:
                pause_s = self._pause_after(str(error))
            except Exception as error:  # a bug here must neither end the thread silently nor the training
                logger.exception("copying to %s failed", self.uri)
                pause_s = self._pause_after(repr(error))
            self._woken.wait(pause_s)

    def _pause_after(self, reason: str) -> float | None:
        """Count a failure, unless the run ended meanwhile, and return how long to wait before the next attempt."""
        with self._lock:
            self._uploading = None
        if self._aborted:
            return 0.0
        pause_s = self._backoff.pause_s()
        self.num_failures += 1
        logger.warning(
            "cannot copy the state to S3 (failure %d, next try in %d s): %s", self.num_failures, pause_s, reason
        )
        return pause_s

    def _upload_all(self, client: Any) -> None:
        while not self._aborted:
            for name, path in self.local.shared().items():
                self._upload_shared(client, name, path)
                self._backoff.reset()
            with self._lock:
                point = self._uploading = next(iter(self._waiting), None)
            if point is None:
                return
            self._upload_point(client, point)
            with self._lock:
                self._uploading = None
                self._waiting = [name for name in self._waiting if name != point]
            self._backoff.reset()
            self._prune(client, point)

    def _upload_shared(self, client: Any, name: str, path: Path) -> None:
        with path.open("rb") as file:
            self._put(client, file, f"{SHARED}/{name}")
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):  # not replaced meanwhile
                path.unlink()  # here it only waited

    def _upload_point(self, client: Any, point: PointName) -> None:
        directory = self.local.path(point)
        manifest = parse_manifest((directory / MANIFEST_NAME).read_bytes(), "resume", where=str(directory))
        prefix = f"{self.prefix}{point}/"
        listed = {item["Key"].removeprefix(prefix): item["Size"] for item in list_objects(client, self.bucket, prefix)}
        if point in self._damaged:
            listed = {}
        if MANIFEST_NAME not in listed:
            # The prefix holds these contents only, so an object of the right size is whole and need not be sent.
            missing = [name for name, entry in manifest.files.items() if listed.get(name) != entry.size]
            for name in (*missing, MANIFEST_NAME):
                with (directory / name).open("rb") as file:
                    self._put(client, file, f"{point}/{name}")
            self._damaged.discard(point)

    def _put(self, client: Any, file: BinaryIO, name: str) -> None:
        def stop(_: int) -> None:
            if self._aborted:
                raise StorageError(f"{name} was not copied: the run ended first")

        client.upload_fileobj(file, self.bucket, f"{self.prefix}{name}", Callback=stop)

    def _prune(self, client: Any, uploaded: PointName) -> None:
        """Remove what is not to be kept: the manifest first, so that what is left of a point is not taken for one."""
        points = self._list_points(client)
        scores = {point.name: self._scores[point.name] for point in points if self._is_sound(client, point)}
        kept = points_to_keep(scores, self.keep_last, self.keep_best) | {uploaded}
        for point in points:
            age_s = (datetime.now(UTC) - point.modified).total_seconds()
            if point.name in kept or (not point.complete and age_s < ABANDONED_AFTER_S):
                continue
            for file in sorted(point.sizes, key=lambda file: file != MANIFEST_NAME):
                client.delete_object(Bucket=self.bucket, Key=f"{self.prefix}{point.name}/{file}")
            self._damaged.discard(point.name)

    def _is_sound(self, client: Any, point: RemotePoint) -> bool:
        """Whether a point is complete and not known to be damaged; its score is known then."""
        if point.complete and point.name not in self._scores and point.name not in self._damaged:
            try:
                self._scores[point.name] = self._read_manifest(client, point.name)[1].metadata.get("score")
            except ManifestError:
                self._damaged.add(point.name)
        return point.complete and point.name not in self._damaged

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

    def _list_points(self, client: Any) -> list[RemotePoint]:
        found: dict[PointName, dict[str, dict[str, Any]]] = {}
        for item in list_objects(client, self.bucket, f"{self.prefix}step_"):
            name, _, file = item["Key"].removeprefix(self.prefix).partition("/")
            if (point := PointName.of(name)) is not None:
                found.setdefault(point, {})[file] = item
        return [
            RemotePoint(
                point,
                {file: item["Size"] for file, item in files.items()},
                max(item["LastModified"] for item in files.values()),
            )
            for point, files in found.items()
        ]

    def _read_manifest(self, client: Any, point: PointName) -> tuple[str, Manifest]:
        where = f"{self.uri}/{point}"
        try:
            key = f"{self.prefix}{point}/{MANIFEST_NAME}"
            text = client.get_object(Bucket=self.bucket, Key=key)["Body"].read().decode(errors="replace")
        except client.exceptions.NoSuchKey:
            raise ManifestError(f"{where}/{MANIFEST_NAME} is gone: another run removed it.") from None
        return text, parse_manifest(text, "resume", where=where)

    def _get(self, client: Any, name: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        client.download_file(self.bucket, f"{self.prefix}{name}", os.fspath(path))  # a temporary file, then a rename
