"""The copy of a directory of resume points in S3, made by one background thread; training never waits for it."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from progrpo.backoff import Backoff
from progrpo.errors import ManifestError, ProGRPOError, StorageError
from progrpo.manifest import MANIFEST_NAME, read_manifest, sha256_file
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
        self._lock = threading.Lock()
        self._uploading: PointName | None = None
        self._uploaded: set[PointName] = set()
        self._woken = threading.Event()
        self._backoff = Backoff(longest_s=MAX_BACKOFF_S)
        self._closing = self._aborted = False
        self._thread: threading.Thread | None = None
        self._client: Any = None

    # --- what the caller's thread does -------------------------------------------------------------------------------

    def wake(self) -> None:
        """Upload what there is now: the shared files, the newest point, the best one. Points between may be left out.

        Points that were found here must have been read before.
        """
        self._woken.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="state-upload", daemon=True)
            self._thread.start()

    def uploading(self) -> PointName | None:
        """Return the point that is being uploaded, whose files are needed still."""
        with self._lock:
            return self._uploading

    def lacking(self) -> list[str]:
        """Return the names of what is not in S3 yet."""
        return [*self.local.shared(), *map(str, self._waiting())]

    def close(self, timeout_s: float) -> list[str]:
        """Upload what waits still, for at most ``timeout_s``, and return the names of what could not be."""
        self._backoff = Backoff(longest_s=MAX_CLOSING_BACKOFF_S)
        self._closing = True
        self._woken.set()
        if self._thread is None:
            return []
        self._thread.join(timeout_s)
        self._aborted = True
        self._woken.set()
        return self.lacking()

    def whole_points(self) -> set[PointName]:
        """Return the points in S3 that were uploaded to their end.

        None, with a warning, if S3 does not answer but there are points on this machine.

        Raises:
            StorageError: S3 cannot be reached or refuses, and there is no point on this machine.
        """
        try:
            with self._connection() as client:
                points = self._list_points(client)
        except StorageError as error:
            if not self.local.names():
                raise
            logger.warning("taking the newest point on this machine, since S3 does not answer: %s", error)
            return set()
        for name in points:
            if MANIFEST_NAME not in points[name]:
                logger.warning("%s: skipping %s, which was not uploaded to its end", self.uri, name)
        return {name for name in points if MANIFEST_NAME in points[name]}

    def download(self, point: PointName) -> ResumePoint:
        """Make a remote point a local one. What an earlier call got is not downloaded again.

        Raises:
            ManifestError: it is incomplete or damaged.
            StorageError: S3 cannot be reached or refuses, or the disk is full.
        """
        directory = self.local.root / f"{DOWNLOAD}{point}"
        try:
            with self._connection() as client:
                self._get(client, f"{point}/{MANIFEST_NAME}", directory / MANIFEST_NAME)
                for name, entry in read_manifest(directory, "resume", verify=False).files.items():
                    path = directory / name
                    if not (path.is_file() and sha256_file(path) == entry.sha256):
                        self._get(client, f"{point}/{name}", path)
                read_manifest(directory, "resume")
                self._uploaded.add(point)
                return read_point(self.local.install(directory, point), verify=False)
        except ManifestError:
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
            with self._lock:  # so that what is chosen is not removed
                point = self._uploading = next(iter(self._waiting()), None)
            if point is None:
                return
            self._upload_point(client, point)
            with self._lock:
                self._uploading = None
                self._uploaded.add(point)
            self._backoff.reset()
            self._prune(client, point)

    def _waiting(self) -> list[PointName]:
        """Return the points to upload, the newest first."""
        return sorted(self.local.to_keep(1, self.keep_best) - self._uploaded, reverse=True)

    def _upload_shared(self, client: Any, name: str, path: Path) -> None:
        with path.open("rb") as file:
            sent = os.fstat(file.fileno())
            self._put(client, file, f"{SHARED}/{name}")  # which closes it
        now = path.stat()
        if os.path.samestat(sent, now) and sent.st_mtime_ns == now.st_mtime_ns:  # not replaced meanwhile
            path.unlink()  # here it only waited

    def _upload_point(self, client: Any, point: PointName) -> None:
        directory = self.local.path(point)
        manifest = read_manifest(directory, "resume", verify=False)
        prefix = f"{self.prefix}{point}/"
        listed = {item["Key"].removeprefix(prefix): item["Size"] for item in list_objects(client, self.bucket, prefix)}
        if MANIFEST_NAME not in listed:
            # The prefix holds these contents only, so an object of the right size is whole and need not be sent.
            missing = [name for name, entry in manifest.files.items() if listed.get(name) != entry.size]
            for name in (*missing, MANIFEST_NAME):
                with (directory / name).open("rb") as file:
                    self._put(client, file, f"{point}/{name}")

    def _put(self, client: Any, file: BinaryIO, name: str) -> None:
        def stop(_: int) -> None:
            if self._aborted:
                raise StorageError(f"{name} was not copied: the run ended first")

        client.upload_fileobj(file, self.bucket, f"{self.prefix}{name}", Callback=stop)

    def _prune(self, client: Any, uploaded: PointName) -> None:
        """Remove what is not to be kept: the manifest first, so that what is left of a point is not taken for one."""
        points = self._list_points(client)
        whole = {name for name, files in points.items() if MANIFEST_NAME in files} - self.local.damaged
        kept = points_to_keep(whole, self.keep_last, self.keep_best) | {uploaded}
        for name in points.keys() - kept:
            files = points[name]
            age = datetime.now(UTC) - max(item["LastModified"] for item in files.values())
            if MANIFEST_NAME in files or age.total_seconds() >= ABANDONED_AFTER_S:
                for file in sorted(files, key=lambda file: file != MANIFEST_NAME):
                    client.delete_object(Bucket=self.bucket, Key=files[file]["Key"])

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

    def _list_points(self, client: Any) -> dict[PointName, dict[str, dict[str, Any]]]:
        """Return what S3 says of each file of each point, complete or not."""
        found: dict[PointName, dict[str, dict[str, Any]]] = {}
        for item in list_objects(client, self.bucket, f"{self.prefix}step_"):
            name, _, file = item["Key"].removeprefix(self.prefix).partition("/")
            if (point := PointName.of(name)) is not None:
                found.setdefault(point, {})[file] = item
        return found

    def _get(self, client: Any, name: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            client.download_file(self.bucket, f"{self.prefix}{name}", os.fspath(path))  # and a rename when it is whole
        except client.exceptions.ClientError as error:
            if error.response["Error"]["Code"] == "404":
                raise ManifestError(f"{self.uri}/{name} is gone: another run removed it.") from None
            raise
