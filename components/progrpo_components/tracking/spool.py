"""The spool: what one step has to say to MLflow, one JSON object a line, and how much of it was delivered.

The step and its sender both append, each line by one write, so that a kill leaves whole lines. Lines of the step:

    {"place": {...}}                                        first, once: the run
    {"metrics": {KEY: VALUE}, "step": N, "time": MS}        once for each (key, step), whoever says it first
    {"numbers": {KEY: VALUE}, "time": MS}                   of the run as a whole; another value is a correction
    {"params": {KEY: TEXT}}, {"tags": {KEY: TEXT}}
    {"config": NAME, "values": {...}}                       an artifact, config/NAME.json
    {"datasets": [{...}]}                                   inputs
    {"artifacts": PATH, "inside": PATH, "to": PATH}         a file or directory
    {"record": KIND, "of": PATH, "inside": PATH}            what lineage.py makes of an artifact
    {"summaries": [{...}]}                                  the summary runs of a comparison
    {"end": STATUS, "time": MS}

and of whoever delivers: ``{"run": ID}`` once the run is known, ``{"sent": OFFSET, "stream": S}`` for all of a stream
before that byte. Artifacts are a stream of their own: a store that does not take files must not hold numbers up.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from progrpo_components.tracking.place import Place

logger = logging.getLogger(__name__)

PATTERN = ".tracking-*.jsonl"
STREAMS = ("data", "files")
_JOURNAL = {"place", "run", "sent"}


def stream_of(line: Mapping[str, Any]) -> str | None:
    """Return what a line is delivered with; None for one that is not delivered."""
    if line.keys() & _JOURNAL:
        return None
    return "files" if line.keys() & {"artifacts", "config", "record"} else "data"


def spool_beside(output: Path) -> Path:
    """Return a path for a new spool beside ``output``, where it outlives a step that fails."""
    return output.absolute().parent / f".tracking-{output.name.lstrip('.')}-{time.time_ns():x}.jsonl"


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line.

    Raises:
        OSError: it cannot be written; a part of it that was is no line.
    """
    # The line break in front ends what an earlier write may have left half done.
    data = b"\n" + json.dumps(line, separators=(",", ":")).encode() + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if os.write(descriptor, data) != len(data):
            raise OSError(f"{path} took only a part of a line")
    finally:
        os.close(descriptor)


def read(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each whole line behind ``offset``, in bytes, and where it ends."""
    with path.open("rb") as file:
        file.seek(offset)
        for raw in file:
            if not raw.endswith(b"\n"):
                return
            offset += len(raw)
            if not raw.strip():
                continue
            try:
                line = json.loads(raw)
            except ValueError:
                logger.warning("%s holds a line that was cut off before byte %d", path, offset)
                continue
            if isinstance(line, dict):
                yield line, offset


@dataclass(frozen=True)
class State:
    """What a spool holds and how far it was delivered.

    Attributes:
        place: of the run.
        run_id: of the run, once it is known.
        sent: for each stream the byte up to which it was delivered.
        pending: lines that were not.
        ended: whether the step said how it ended.
    """

    place: Place
    run_id: str | None
    sent: dict[str, int]
    pending: int
    ended: bool


def read_state(path: Path) -> State | None:
    """Return the state of a spool; None if it does not even hold the place."""
    place, run_id, ended = None, None, False
    sent = dict.fromkeys(STREAMS, 0)
    ends: dict[str, list[int]] = {stream: [] for stream in STREAMS}
    for line, end in read(path):
        if "place" in line:
            place = Place.model_validate(line["place"])
        elif "run" in line:
            run_id = line["run"]
        elif "sent" in line:
            sent[line["stream"]] = line["sent"]
        else:
            ended = ended or "end" in line
            ends[stream_of(line) or ""].append(end)
    if place is None:
        return None
    pending = sum(end > sent[stream] for stream in STREAMS for end in ends[stream])
    return State(place, run_id, sent, pending, ended)
