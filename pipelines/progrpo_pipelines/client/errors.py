"""What can go wrong between a client and the KFP API, and the exit codes of the commands that talk to it."""

from __future__ import annotations

from enum import IntEnum

from progrpo.errors import ProGRPOError


class ExitCode(IntEnum):
    """Exit codes of ``progrpo submit``; what a CI job branches on."""

    SUCCEEDED = 0
    FAILED = 1
    USAGE = 2
    TIMEOUT = 3
    CANCELLED = 4
    API = 5
    INTERRUPTED = 130


class ApiError(ProGRPOError, RuntimeError):
    """The KFP API refused a request, or could not be reached.

    Args:
        message: for the user.
        status: HTTP status; None if there was no answer.
        maybe_done: whether the server may have done what it was asked all the same.
    """

    def __init__(self, message: str, status: int | None = None, maybe_done: bool = False) -> None:
        super().__init__(message, status, maybe_done)
        self.status = status
        self.maybe_done = maybe_done

    def __str__(self) -> str:
        return str(self.args[0])
