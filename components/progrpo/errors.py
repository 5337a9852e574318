"""Every error a user can cause or must act on.

Each error is also the stdlib type a caller would expect, survives pickling (worker processes hand them back), and its
message says what was given, what is allowed and what to do. The command line turns any :class:`ProGRPOError` into one
message and exit code 2; anything else is our bug and keeps its traceback.
"""

from __future__ import annotations


class ProGRPOError(Exception):
    """Base of all errors with a message meant for the user."""


class ConfigError(ProGRPOError, ValueError):
    """A configuration key or value that is unknown, missing or not allowed."""


class DataError(ProGRPOError, ValueError):
    """A dataset file, row or column that cannot be used."""


class CheckpointError(ProGRPOError, ValueError):
    """A checkpoint that is incomplete, unsafe or does not fit its use."""


class ManifestError(ProGRPOError, ValueError):
    """A directory without a valid manifest, or whose files differ from it."""


class StorageError(ProGRPOError, OSError):
    """A location that cannot be read or written."""


class StateError(ProGRPOError, ValueError):
    """A saved state that a run cannot go on from: damaged, of another run, or in use by another process."""


class TrainingError(ProGRPOError, RuntimeError):
    """Training that cannot go on: non-finite loss, a failing reward, no memory."""


class ComparisonError(ProGRPOError, ValueError):
    """Evaluations that may not be compared with each other."""


def error_named(name: str, message: str) -> ProGRPOError | None:
    """Return an error that another process told by the name of its type; None if it is none of these."""
    kind = globals().get(name)
    return kind(message) if isinstance(kind, type) and issubclass(kind, ProGRPOError) else None
