"""Resume points in a local directory: each whole or not there, whenever the writer is killed."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from progrpo.errors import ManifestError, StorageError
from progrpo.manifest import Manifest, read_manifest, write_manifest

logger = logging.getLogger(__name__)

SHARED = "shared"
WRITING, REPLACED, REMOVED, DOWNLOAD = ".writing-", ".replaced-", ".removed-", ".download-"
"""Hidden directories: a point being written, replaced by a new one of its step, removed, or downloaded."""


def point_name(step: int) -> str:
    """Return the directory name of a step's point; names sort like steps up to ten million."""
    return f"step_{step:07d}"


def point_step(name: str) -> int | None:
    """Return the step a directory name stands for, None if it is no point's."""
    match = re.fullmatch(r"step_(\d{7,})", name)
    return int(match[1]) if match else None


@dataclass(frozen=True)
class ResumePoint:
    """What a run needs to go on after ``step`` optimizer steps."""

    step: int
    directory: Path
    manifest: Manifest

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the run was: see :func:`progrpo.training.state.store.check_fingerprint`."""
        return self.manifest.config

    @property
    def score(self) -> float | None:
        """Higher is better; None if it was not measured."""
        score: float | None = self.manifest.metadata.get("score")
        return score

    @property
    def metadata(self) -> dict[str, Any]:
        """What the caller gave, and ``step``, ``score`` and ``writer``."""
        return self.manifest.metadata


def read_point(directory: Path, *, verify: bool = True) -> ResumePoint:
    """Read a resume point; ``verify`` compares every file with its digest.

    Raises:
        ManifestError: it is incomplete, damaged or no resume point.
    """
    try:
        manifest = read_manifest(directory, "resume", verify=verify)
    except OSError as error:  # a disk that fails to read, or a point that another process removes meanwhile
        raise ManifestError(f"{directory} cannot be read: {error}. Copy or make the artifact again.") from None
    step = manifest.metadata.get("step")
    if not isinstance(step, int) or step != point_step(directory.name):
        raise ManifestError(f"{directory} says that it is of step {step}. Give the directory its name back.")
    return ResumePoint(step, directory, manifest)


def points_to_keep(scores: Mapping[int, float | None], keep_last: int, keep_best: bool) -> set[int]:
    """Return the steps to keep: the newest, and the best (of equal ones the newest) if asked for.

    Args:
        scores: score by step.
        keep_last: how many of the newest.
        keep_best: whether to keep the one with the highest score, too.
    """
    kept = set(sorted(scores)[-keep_last:])
    scored = {step: score for step, score in scores.items() if score is not None}
    if keep_best and scored:
        kept.add(max(scored, key=lambda step: (scored[step], step)))
    return kept


class PointDirectory:
    """The resume points below a directory, and the files they share. One process writes, see ``lock.py``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def steps(self) -> list[int]:
        """Return the steps of all points, valid or not, newest first."""
        steps = (point_step(path.name) for path in self.root.iterdir() if path.is_dir())
        return sorted((step for step in steps if step is not None), reverse=True)

    def path(self, step: int) -> Path:
        """Return the directory of a step's point, which may not exist."""
        return self.root / point_name(step)

    def clean(self) -> None:
        """Remove what a dead writer left behind. Only its successor may do this."""
        for path in self.root.glob(".*"):
            name = path.name
            if name.startswith(REPLACED):  # killed between the two renames of write()
                target = self.root / name.removeprefix(REPLACED)
                if not target.exists():
                    path.replace(target)
                    continue
            if name.startswith((WRITING, REPLACED, REMOVED)):
                logger.warning("removing %s, which an earlier run did not finish", path)
                shutil.rmtree(path, ignore_errors=True)
        for path in (self.root / SHARED).rglob(".*.tmp"):
            path.unlink(missing_ok=True)

    def write(
        self,
        step: int,
        write: Callable[[Path], None],
        fingerprint: Mapping[str, Any],
        score: float | None,
        metadata: Mapping[str, Any],
    ) -> ResumePoint:
        """Write a point: files, manifest, rename, each on the disk before the next.

        Raises:
            StorageError: the disk is full or refuses; nothing of the point is left then.
        """
        config = as_json(fingerprint)
        facts = as_json(metadata) | {
            "step": step,
            "score": score if score is not None and math.isfinite(score) else None,
            "writer": {"host": socket.gethostname(), "pid": os.getpid()},
        }
        with self._refusals_explained(f"the state of step {step}"):
            temporary = Path(tempfile.mkdtemp(prefix=f"{WRITING}{point_name(step)}-", dir=self.root))
            try:
                temporary.chmod(0o755)
                write(temporary)
                for path in sorted(temporary.rglob("*")):
                    sync(path)
                manifest = write_manifest(temporary, "resume", config=config, metadata=facts)
                sync(temporary)
                return ResumePoint(step, self.install(temporary, step), manifest)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def install(self, finished: Path, step: int) -> Path:
        """Make a finished directory the point of its step and return its place."""
        target, replaced = self.path(step), self.root / f"{REPLACED}{point_name(step)}"
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            target.replace(replaced)
        try:
            finished.replace(target)
        except OSError:
            if replaced.exists():
                replaced.replace(target)
            raise
        sync(self.root)
        shutil.rmtree(replaced, ignore_errors=True)
        return target

    def remove(self, step: int) -> None:
        """Remove a point; a kill in between leaves nothing that looks like one."""
        removed = self.root / f"{REMOVED}{point_name(step)}"
        try:
            self.path(step).replace(removed)
        except OSError as error:  # the next pruning tries again
            logger.warning("cannot remove %s: %s", self.path(step), error)
        shutil.rmtree(removed, ignore_errors=True)

    def add_shared(self, path: Path, name: str) -> Path:
        """Copy a file to ``shared/<name>``, atomically.

        Raises:
            StorageError: the disk is full or refuses.
        """
        with self._refusals_explained(name):
            return copy_atomic(path, self.root / SHARED / name)

    def shared(self) -> Iterator[tuple[str, Path]]:
        """Yield name and path of every shared file."""
        root = self.root / SHARED
        for path in sorted(root.rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                yield path.relative_to(root).as_posix(), path

    @contextmanager
    def _refusals_explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            number = refused_by_disk(error)
            if number is None:
                raise
            raise StorageError(
                f"cannot save {what} to {self.root}: {os.strerror(number)}. What was saved before is untouched. "
                f"Free space there, lower train.checkpointing.keep_last, or give another train.checkpointing.uri."
            ) from error


_REFUSALS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ESTALE),
)


def refused_by_disk(error: BaseException) -> int | None:
    """Return the errno with which the disk refused, None if ``error`` is about something else.

    safetensors raises no OSError: it says "(os error 28)" in words.
    """
    seen: BaseException | None = error
    while seen is not None:
        match = re.search(r"\(os error (\d+)\)", str(seen))
        number = seen.errno if isinstance(seen, OSError) else int(match[1]) if match else None
        if number in _REFUSALS:
            return number
        seen = seen.__cause__ or seen.__context__
    return None


def as_json(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``mapping`` as it will be once written and read: tuples are lists then, keys strings."""
    document: dict[str, Any] = json.loads(json.dumps(mapping, allow_nan=False))
    return document


def sync(path: Path) -> None:
    """Wait until a file or a directory's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_atomic(source: Path, target: Path) -> Path:
    """Copy a file so that ``target`` is the old one or the whole new one, also after a power cut."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        shutil.copyfile(source, temporary)
        sync(temporary)
        temporary.replace(target)
        sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return target
