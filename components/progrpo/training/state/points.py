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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from progrpo.errors import ManifestError, StorageError
from progrpo.manifest import read_manifest, replacing, sync, write_manifest

logger = logging.getLogger(__name__)

SHARED = "shared"
UNFINISHED, DOWNLOAD = ".unfinished-", ".download-"
"""Hidden directories: a point that is being written or removed, and one that is being downloaded."""


class PointName(NamedTuple):
    """Name of a point's directory: enough to choose among points. No two are alike, so nothing is written over."""

    step: int
    text: str
    """``step_0000040-20261231T235959.123456-score0.5``, the time in UTC; names of a step sort by it."""
    score: float | None
    """Higher is better; None if it was not measured."""

    @classmethod
    def new(cls, step: int, score: float | None) -> PointName:
        """Return the name of a point that is saved now."""
        measured = score if score is not None and math.isfinite(score) else None
        suffix = "" if measured is None else f"-score{measured!r}"
        return cls(step, f"step_{step:07d}-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}{suffix}", measured)

    @classmethod
    def of(cls, text: str) -> PointName | None:
        """Read a name; None if it is no point's."""
        match = re.fullmatch(r"step_(\d{7,})(?:-[0-9a-fT.]+)?(?:-score(-?\d+(?:\.\d+)?(?:e[-+]\d+)?))?", text)
        return cls(int(match[1]), text, float(match[2]) if match[2] else None) if match else None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class ResumePoint:
    """What a run needs to go on after ``step`` optimizer steps."""

    step: int
    directory: Path
    score: float | None
    """Higher is better; None if it was not measured."""
    fingerprint: dict[str, Any]
    """What the run was: see :func:`progrpo.training.state.store.check_fingerprint`."""
    metadata: dict[str, Any]
    """``step``, and the ``writer`` by ``host`` and ``pid``."""


def read_point(directory: Path, *, verify: bool = True) -> ResumePoint:
    """Read a resume point; ``verify`` compares every file with its digest.

    Raises:
        ManifestError: it is incomplete, damaged or no resume point.
    """
    try:
        manifest = read_manifest(directory, "resume", verify=verify)
    except OSError as error:  # a disk that fails to read, or a point that another process removes meanwhile
        raise ManifestError(f"{directory} cannot be read: {error}. Copy or make the artifact again.") from None
    step, name = manifest.metadata.get("step"), PointName.of(directory.name)
    if name is None or step != name.step:
        raise ManifestError(f"{directory} says that it is of step {step}. Give the directory its name back.")
    return ResumePoint(step, directory, name.score, manifest.config, manifest.metadata)


def points_to_keep(names: Iterable[PointName], keep_last: int, keep_best: bool) -> set[PointName]:
    """Return the points to keep: of the newest steps, and the best (of equal ones the newest) if asked for.

    Args:
        names: of all points; of those of one step the newest counts.
        keep_last: how many of the newest.
        keep_best: whether to keep the one with the highest score, too.
    """
    newest = list({name.step: name for name in sorted(names)}.values())
    scored = [(name.score, name) for name in newest if name.score is not None]
    return {*newest[-keep_last:], *([max(scored)[1]] if keep_best and scored else [])}


class PointDirectory:
    """The resume points below a directory, and the files they share. One process writes, see ``lock.py``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.damaged: set[PointName] = set()
        """Those of which no valid copy was found, here or in S3."""

    def names(self) -> list[PointName]:
        """Return the names of all points, valid or not, oldest first."""
        return sorted(name for path in self.root.iterdir() if (name := PointName.of(path.name)) is not None)

    def to_keep(self, keep_last: int, keep_best: bool) -> set[PointName]:
        """Return what :func:`points_to_keep` says of the points that are not damaged."""
        return points_to_keep(set(self.names()) - self.damaged, keep_last, keep_best)

    def path(self, name: PointName) -> Path:
        """Return the directory of a point, which may not exist."""
        return self.root / str(name)

    def clean(self) -> None:
        """Remove what a dead writer left behind. Only its successor may do this."""
        for path in self.root.glob(f"{UNFINISHED}*"):
            logger.warning("removing %s, which an earlier run did not finish", path)
            shutil.rmtree(path, ignore_errors=True)
        for path in (self.root / SHARED).rglob(".*.tmp"):
            path.unlink(missing_ok=True)

    def write(self, name: PointName, write: Callable[[Path], None], fingerprint: Mapping[str, Any]) -> ResumePoint:
        """Write a point: files, manifest, rename, each on the disk before the next.

        Raises:
            StorageError: the disk is full or refuses; nothing of the point is left then.
        """
        config = as_json(fingerprint)
        facts = {"step": name.step, "writer": {"host": socket.gethostname(), "pid": os.getpid()}}
        temporary = self.root / f"{UNFINISHED}{name}"
        with self.refusals_explained(f"the state of step {name.step}"):
            try:
                temporary.mkdir()
                write(temporary)
                for path in sorted(temporary.rglob("*")):
                    sync(path)
                write_manifest(temporary, "resume", config=config, metadata=facts)
                sync(temporary)
                return read_point(self.install(temporary, name), verify=False)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def install(self, finished: Path, name: PointName) -> Path:
        """Make a finished directory a point and return its place; a damaged one of that name is replaced."""
        self.remove(name)
        finished.replace(self.path(name))
        sync(self.root)
        return self.path(name)

    def remove(self, name: PointName) -> None:
        """Remove a point, if it is there; a kill in between leaves nothing that looks like one."""
        removed = self.root / f"{UNFINISHED}{name}"
        try:
            self.path(name).replace(removed)
        except FileNotFoundError:
            return
        except OSError as error:  # the next pruning tries again
            logger.warning("cannot remove %s: %s", self.path(name), error)
        shutil.rmtree(removed, ignore_errors=True)

    def shared(self) -> dict[str, Path]:
        """Return the path of every shared file by its name."""
        root = self.root / SHARED
        paths = (path for path in sorted(root.rglob("*")) if path.is_file() and not path.name.startswith("."))
        return {path.relative_to(root).as_posix(): path for path in paths}

    @contextmanager
    def refusals_explained(self, what: str) -> Iterator[None]:
        """Say what to do where the disk is full or refuses.

        Raises:
            StorageError: instead of the disk's own error.
        """
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


def copy_atomic(source: Path, target: Path) -> None:
    """Copy a file so that ``target`` is the old one or the whole new one, also after a power cut."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
    sync(target.parent)
