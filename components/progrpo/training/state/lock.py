"""One writer a directory: a retried pod may start while the one before it still dies."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from progrpo.errors import StateError, StorageError

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"

_held: set[int] = set()


class DirectoryLock:
    """flock on ``.lock`` of a directory. The kernel releases it when the process dies, however that happens.

    On NFS version 4 it holds between machines as well.
    """

    def __init__(self, directory: Path, *, timeout_s: float) -> None:
        """Take the lock, waiting up to ``timeout_s`` for a writer that is about to end.

        Raises:
            StateError: another process holds it still; the message names its pid and host.
            StorageError: the file cannot be opened.
        """
        self.path = directory / LOCK_NAME
        self.exclusive = True
        """False where the file system knows no locks."""
        try:
            self._descriptor: int | None = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StorageError(
                f"cannot write to {directory}: {error}. Give a directory that you may write to."
            ) from None
        deadline = time.monotonic() + timeout_s
        while not self._try():
            if time.monotonic() >= deadline:
                os.close(self._descriptor)
                self._descriptor = None
                raise StateError(
                    f"{directory} is in use by {self._holder()}. Two runs cannot save to one place: wait for that one "
                    f"to end, stop it, or give this run another train.checkpointing.name."
                )
            time.sleep(0.1)
        _held.add(self._descriptor)
        with suppress(OSError):  # the disk may be full; the lock holds all the same
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)

    def release(self) -> None:
        """Let the next writer in."""
        if self._descriptor is not None:
            _held.discard(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    def _try(self) -> bool:
        assert self._descriptor is not None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                raise StorageError(f"cannot lock {self.path}: {error}. Give a directory on another disk.") from None
            self.exclusive = False
            logger.warning(
                "%s cannot be locked (%s): see to it that one process saves there", self.path, error.strerror
            )
        return True

    def _holder(self) -> str:
        try:
            holder = json.loads(self.path.read_text())
            return f"process {holder['pid']} on {holder['host']}"
        except (OSError, ValueError, TypeError, KeyError):
            return "another process"


def _close_in_child() -> None:
    """A forked worker would hold its parent's lock beyond the parent's death."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
