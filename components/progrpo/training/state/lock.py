"""One writer a directory: a retried pod may start while the one before it still dies."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from progrpo.errors import StateError, StorageError

logger = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


class DirectoryLock:
    """``.lock`` of a directory, by flock: the kernel releases it when the process dies, however that happens.

    On NFS version 4 it holds between machines as well. A forked worker does not inherit it.
    """

    def __init__(self, directory: Path, *, timeout_s: float) -> None:
        """Take the lock, waiting up to ``timeout_s`` for a writer that is about to end.

        Raises:
            StateError: another process holds it still; the message names its pid and host.
            StorageError: the file cannot be opened or locked.
        """
        self.path = directory / ".lock"
        self.exclusive = True
        """False where the file system knows no locks."""
        self._lock = FileLock(
            self.path,
            timeout=timeout_s,
            thread_local=False,  # whoever closes the store may be another thread
            fallback_to_soft=False,  # a file that a killed process leaves behind would lock its successor out
            on_acquired=_sign,
        )
        try:
            self._lock.acquire()
        except Timeout:
            raise StateError(
                f"{directory} is in use by {self._holder()}. Two runs cannot save to one place: wait for that one "
                f"to end, stop it, or give this run another train.checkpointing.name."
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise StorageError(
                    f"cannot lock {directory}: {error}. Give a directory that you may write to."
                ) from None
            self.exclusive = False
            logger.warning(
                "%s cannot be locked (%s): see to it that one process saves there", self.path, error.strerror
            )

    def release(self) -> None:
        """Let the next writer in."""
        self._lock.release()

    def _holder(self) -> str:
        try:
            holder = json.loads(self.path.read_text())
            return f"process {holder['pid']} on {holder['host']}"
        except (OSError, ValueError, TypeError, KeyError):
            return "another process"


def _sign(descriptor: int) -> None:
    with suppress(OSError):  # the disk may be full; the lock holds all the same
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
