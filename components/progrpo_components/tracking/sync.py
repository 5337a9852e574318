"""Delivering later what a server did not take while the steps ran."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from progrpo.errors import ConfigError
from progrpo_components.tracking import spool
from progrpo_components.tracking.delivery import Delivery
from progrpo_components.tracking.text import describe_error


@dataclass(frozen=True)
class Synced:
    """What became of one spool.

    Attributes:
        path: the spool; it is deleted once everything has arrived, unless its step never ended.
        name: of the run.
        run_id: on the server; None if it is not known.
        num_lines: that the server lacked before.
        problem: why something is still lacking; None if nothing is.
    """

    path: Path
    name: str
    run_id: str | None
    num_lines: int
    problem: str | None


def sync(directory: Path) -> Iterator[Synced]:
    """Deliver every spool in and below a directory, in the order of their making.

    Raises:
        ConfigError: there is no such directory.
    """
    if not directory.is_dir():
        raise ConfigError(f"{directory} is not a directory. Give the output of a step or of a run.")
    found = [(path, spool.read_state(path)) for path in sorted(directory.rglob(spool.PATTERN))]
    for path, state in sorted(found, key=lambda item: item[1].place.opened_s if item[1] else 0.0):
        if state is None:
            yield Synced(path, path.name, None, 0, "not one whole line was written")
            continue
        with locked(path) as free:
            yield _deliver(path, state) if free else _synced(path, state, "a step that still runs is sending it")


def _deliver(path: Path, state: spool.State) -> Synced:
    try:
        if not state.ended:
            # Killed, most likely; should it still run, it goes on writing here and ends the run itself.
            spool.append(path, {"end": "KILLED", "time": int(time.time() * 1000)})
        if state.pending or not state.ended:
            Delivery(path).deliver()
    except Exception as error:  # mlflow, requests, boto3 and sqlalchemy each raise their own
        return _synced(path, spool.read_state(path) or state, describe_error(error), state.pending)
    after = spool.read_state(path) or state
    if state.ended:
        path.unlink()
    return _synced(path, after, None, state.pending)


def _synced(path: Path, state: spool.State, problem: str | None, num_lines: int | None = None) -> Synced:
    return Synced(path, state.place.name, state.run_id, state.pending if num_lines is None else num_lines, problem)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Give whether this process alone may deliver a spool, as long as the block lasts."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
