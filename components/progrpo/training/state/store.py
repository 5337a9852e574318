"""Where a run keeps its resume points: a directory that outlives the step, or a prefix in S3."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from progrpo.config.merging import flatten
from progrpo.errors import ManifestError, StateError, StorageError
from progrpo.storage import check_file_name, local_path, make_directory
from progrpo.training.state.lock import DirectoryLock
from progrpo.training.state.mirror import S3Mirror
from progrpo.training.state.points import (
    DOWNLOAD,
    SHARED,
    PointDirectory,
    PointName,
    ResumePoint,
    as_json,
    copy_atomic,
    read_point,
)

logger = logging.getLogger(__name__)


class StateStore:
    """Resume points of one run: ``step_0000040-TIME/`` with a manifest, and ``shared/`` with files that all share.

    **A directory.** One process at a time holds it, by a lock that ends with the process. A kill at any moment leaves
    every older point whole; what a dead writer left half-written is removed when its successor starts.

    **S3.** A point is saved in ``scratch`` and copied from there by one background thread, files first and the manifest
    last; a newer point takes the place of one that waits still. Training neither waits for S3 nor fails with it. The
    lock guards the scratch directory of one machine only. Should two machines write to one prefix (a pod that dies
    slowly and the one in its place), each point is whole all the same, since its objects lie under a name of its own;
    of two points of a step the one saved last counts, the manifest's ``writer`` says whose it is, and both prune by the
    same rule. Leftovers of a dead writer are removed once they are an hour old.
    """

    def __init__(
        self,
        uri: str,
        *,
        keep_last: int = 2,
        keep_best: bool = False,
        scratch: Path | None = None,
        lock_timeout_s: float = 30.0,
    ) -> None:
        """Open the store for writing. S3 is not reached yet.

        Args:
            uri: a local path, ``file://`` or ``s3://BUCKET/PREFIX``, of this run alone.
            keep_last: how many of the newest points are kept.
            keep_best: whether the one with the highest score is kept, too.
            scratch: for S3, a local directory with room for ``keep_last + 1`` points; several stores may share it.
                Points in it that were not uploaded are found again if it outlives the process. Absent: a temporary one.
            lock_timeout_s: how long to wait for a writer that is about to end.

        Raises:
            StorageError: a malformed URI, or a directory that cannot be written to.
            StateError: another process uses the store.
        """
        self.uri, self.keep_last, self.keep_best = uri, keep_last, keep_best
        self._temporary: Path | None = None
        is_remote = uri.startswith("s3://")
        if is_remote:
            if scratch is None:
                scratch = self._temporary = Path(tempfile.mkdtemp(prefix="progrpo-state-"))
            root = scratch / f"state-{hashlib.sha256(uri.rstrip('/').encode()).hexdigest()[:16]}"
        elif (path := local_path(uri)) is not None:
            root = path.expanduser().absolute()
        else:
            raise StorageError(
                f"{uri.partition('://')[0]}:// is no place for a run's state. Allowed: a local path, file:///PATH or "
                f"s3://BUCKET/PREFIX."
            )
        self._local = PointDirectory(root)
        self._mirror = S3Mirror(uri, self._local, keep_last=keep_last, keep_best=keep_best) if is_remote else None
        make_directory(root, name=uri if not is_remote else str(root))
        self._closed = False
        self._lock = DirectoryLock(root, timeout_s=lock_timeout_s)
        if self._lock.exclusive:
            self._local.clean()

    # --- saving ------------------------------------------------------------------------------------------------------

    def save(
        self,
        step: int,
        write: Callable[[Path], None],
        *,
        fingerprint: Mapping[str, Any],
        score: float | None = None,
    ) -> ResumePoint:
        """Save a point, then remove those that need not be kept.

        Args:
            step: optimizer steps done.
            write: fills the directory it is given; other processes of the run may write there too, before it returns.
            fingerprint: what the run is, JSON-serialisable, without secrets; see :func:`check_fingerprint`.
            score: of the policy, higher is better; absent or not finite: not measured.

        Returns:
            The point, on the disk; for S3, on the scratch disk and on its way.

        Raises:
            StorageError: the disk is full or refuses. Older points are untouched, and training may go on.
        """
        new = PointName.new(step, score)
        point = self._local.write(new, write, fingerprint)
        kept = {new, *self._local.to_keep(self.keep_last, self.keep_best)}
        if self._mirror is not None:
            self._mirror.wake()
            kept.add(self._mirror.uploading() or new)
        for name in self._local.names():
            if name not in kept:
                self._local.remove(name)
        return point

    def add_shared(self, path: Path, name: str) -> None:
        """Keep a copy of a file that is written once and belongs to every later point, such as a step's rollouts.

        Args:
            path: the finished file.
            name: relative path under which :meth:`fetch_shared` gives it back; one that exists is replaced.

        Raises:
            StorageError: the disk is full or refuses, or an unsafe name.
        """
        check_file_name(self.uri, name)
        with self._local.refusals_explained(name):
            copy_atomic(path, self._local.root / SHARED / name)
        if self._mirror is not None:
            self._mirror.wake()

    @property
    def num_upload_failures(self) -> int:
        """Failed attempts to copy something to S3 so far, each of which was logged."""
        return 0 if self._mirror is None else self._mirror.num_failures

    def close(self, timeout_s: float = 60.0) -> list[str]:
        """Finish the uploads and let the next writer in.

        Args:
            timeout_s: how long to try.

        Returns:
            Names of what S3 lacks still, which is logged as well. It stays in ``scratch``. A second call does nothing.
        """
        if self._closed:
            return []
        self._closed = True
        left = [] if self._mirror is None else self._mirror.close(timeout_s)
        if left:
            logger.error(
                "%s lacks %s: not copied within %g s. It is kept in %s",
                *(self.uri, ", ".join(left), timeout_s, self._local.root),
            )
        self._lock.release()
        if self._temporary is not None and not left:
            shutil.rmtree(self._temporary, ignore_errors=True)
        return left

    def __enter__(self) -> StateStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- resuming ----------------------------------------------------------------------------------------------------

    def latest(self) -> ResumePoint | None:
        """Return the newest valid point, every file of it compared with its digest; None if there is none.

        A damaged point is skipped with a warning and removed after the next save. From S3 the point is downloaded to
        the scratch directory; a second call goes on with a download that broke off. If S3 cannot be reached, a point
        in the scratch directory is taken.

        Raises:
            StateError: there are points, but none is valid.
            StorageError: S3 cannot be reached or refuses, and there is no point on this machine.
        """
        remotes = set() if self._mirror is None else self._mirror.whole_points()
        reasons = []
        for name in sorted({*self._local.names(), *remotes}, reverse=True):
            try:
                point = self._read(name, name in remotes)
            except ManifestError as error:
                self._local.damaged.add(name)
                reasons.append(str(error))
                logger.warning("skipping the resume point of step %d: %s", name.step, error)
                continue
            for path in self._local.root.glob(f"{DOWNLOAD}*"):
                shutil.rmtree(path, ignore_errors=True)
            return point
        if reasons:
            raise StateError(
                f"none of the {len(reasons)} resume points under {self.uri} is valid: {' | '.join(reasons)} "
                f"Restore one from a backup, or start anew: remove them or give another train.checkpointing.name."
            )
        return None

    def _read(self, name: PointName, is_remote: bool) -> ResumePoint:
        """Read a point: the local one if it is there and whole, else the one in S3."""
        try:
            point = read_point(self._local.path(name))
        except ManifestError:
            if self._mirror is None or not is_remote:
                raise
            return self._mirror.download(name)
        if self._mirror is not None:
            self._mirror.wake()  # nothing is sent if it is there already
        return point

    def fetch_shared(self, directory: Path, accept: Callable[[str], bool]) -> list[str]:
        """Copy shared files back when a run goes on.

        Args:
            directory: where they go, under their names.
            accept: told a name, says whether the file is wanted; those of later steps than the point's are not.

        Returns:
            The names, sorted.

        Raises:
            StorageError: S3 cannot be reached or refuses, or the disk is full.
        """
        names = set()
        for name, path in self._local.shared().items():
            if accept(name):
                try:
                    copy_atomic(path, directory / name)
                    names.add(name)
                except FileNotFoundError:  # uploaded meanwhile: S3 gives it
                    continue
                except OSError as error:
                    raise StorageError(f"cannot copy {path} to {directory}: {error}. Free space there.") from None
        if self._mirror is not None:
            names |= set(self._mirror.fetch_shared(directory, lambda name: name not in names and accept(name)))
        return sorted(names)


def check_fingerprint(point: ResumePoint, expected: Mapping[str, Any], *, free: Collection[str] = ()) -> None:
    """Refuse to go on with a run that is not the one that saved the point.

    Args:
        point: what would be resumed.
        expected: the fingerprint of this run, nested.
        free: dotted keys (``train.steps``) that may differ, with all below them.

    Raises:
        StateError: naming each key that differs, with both values.
    """
    saved, given = flatten(point.fingerprint), flatten(as_json(expected))
    differing = [
        f"{key} was {_shown(saved, key)[:200]} and is {_shown(given, key)[:200]} now"
        for key in sorted({*saved, *given})
        if not any(key == name or key.startswith(f"{name}.") for name in free)
        and (key not in saved or key not in given or saved[key] != given[key])
    ]
    if differing:
        raise StateError(
            f"{point.directory} (step {point.step}) was saved by another run: {'; '.join(differing)}. Give back the "
            f"old values to go on, or another train.checkpointing.name to start anew."
        )


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], sort_keys=True) if key in values else "absent"
