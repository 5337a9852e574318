"""What a step holds: it writes into the spool, and the sender delivers."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal

from progrpo.manifest import read_manifest
from progrpo_components.tracking import spool
from progrpo_components.tracking.place import Place, is_off
from progrpo_components.tracking.text import PARAM_LENGTH, flatten, is_legal_name

logger = logging.getLogger(__name__)

CLOSE_S = 60.0
"""How long the end of a step waits for a server that takes things, slowly."""
DELIVERED, LEFT = 0, 3
"""Exit codes of the sender."""
_DIGEST_LENGTH = 36  # mlflow.utils.validation

Status = Literal["FINISHED", "FAILED", "KILLED"]


def open_tracking(place: Place, output: Path, *, system_metrics: bool = False) -> Tracker:
    """Start tracking a step; never raises, and does not wait for the server.

    Args:
        place: the run it logs into.
        output: directory that the step will write. The spool lies beside it, and in it at the end if MLflow lacks
            something then.
        system_metrics: also log use of CPU, memory, network and GPUs.

    Returns:
        A tracker, or one that does nothing if tracking is off or the spool cannot be written.
    """
    if is_off():
        return Tracker()
    path = spool.spool_beside(output)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        spool.append(path, {"place": place.model_dump(mode="json")})
    except OSError as error:
        logger.warning("this step is not logged to MLflow: %s cannot be written: %s", path, error.strerror or error)
        return Tracker()
    return Tracker(path, output, system_metrics=system_metrics)


class Tracker:
    """One MLflow run: a :class:`progrpo.metrics.MetricSink`, and a context manager that ends the run.

    Without arguments it does nothing. No method raises for MLflow's sake.
    """

    sender_command: ClassVar[Sequence[str]] = (sys.executable, "-m", "progrpo_components.tracking.sender")

    def __init__(self, path: Path | None = None, output: Path | None = None, *, system_metrics: bool = False) -> None:
        self._path, self._output, self._system_metrics = path, output, system_metrics
        self._run_id: str | None = None
        self._legal: dict[str, bool] = {}
        self._warned: set[str] = set()
        self._process = self._start() if path is not None else None

    @property
    def run_id(self) -> str | None:
        """Of the MLflow run; None if nothing is logged, or as long as the server has not answered."""
        if self._run_id is None and self._path is not None and (state := spool.read_state(self._path)) is not None:
            self._run_id = state.run_id
        return self._run_id

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of one step; returns at once. A step that was logged before is not logged again."""
        self._write({"metrics": self._loggable(metrics), "step": step, "time": _now_ms()}, "metrics")

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Take the numbers that the run as a whole has."""
        self._write({"numbers": self._loggable(metrics), "time": _now_ms()}, "numbers")

    def log_config(self, name: str, values: Mapping[str, Any]) -> None:
        """Take a step's resolved settings: as params below ``name``, and whole as ``config/NAME.json``.

        Params are flat: nested keys are joined with dots, None is left out, long values are cut off.
        """
        self.log_params(values, prefix=f"{name}.")
        self._write({"config": name, "values": values}, "values")

    def log_params(self, params: Mapping[str, Any], prefix: str = "") -> None:
        """Take settings as params; ``prefix`` is put before every key as it is: ``train.``."""
        texts = {
            key: text if len(text) <= PARAM_LENGTH else text[: PARAM_LENGTH - 3] + "..."
            for key, text in flatten(params, prefix)
            if self._is_legal(key)
        }
        self._write({"params": texts}, "params")

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tag the run."""
        self._write({"tags": dict(tags)}, "tags")

    def log_dataset(self, directory: Path, *, contexts: Mapping[str, str]) -> None:
        """Name a dataset artifact as the run's input.

        MLflow's digest holds 36 characters; the manifest's whole one is in the source and in the tag
        ``progrpo.dataset_digest``.

        Args:
            directory: the artifact.
            contexts: what each of its splits, ``train`` and ``eval``, is used for: ``training``, ``evaluation``.
        """
        if self._path is None:
            return
        try:
            manifest = read_manifest(directory, "dataset", verify=False)
        except ValueError as error:
            self._warn("dataset", f"the dataset is not logged to MLflow: {error}")
            return
        tasks = "-".join(manifest.metadata.get("tasks") or ["dataset"])
        source = json.dumps({"uri": directory.resolve().as_uri(), "digest": manifest.digest})
        datasets = [
            {
                "name": f"{tasks}-{split}",
                "digest": manifest.digest[:_DIGEST_LENGTH],
                "source": source,
                "profile": json.dumps({"num_rows": manifest.metadata.get(f"num_{split}")}),
                "context": context,
            }
            for split, context in contexts.items()
        ]
        self._write({"datasets": datasets}, "datasets")
        self.set_tags({"progrpo.dataset_digest": manifest.digest})

    def log_artifacts(self, path: Path, artifact_path: str = "") -> None:
        """Upload a file, or everything in a directory, below ``artifact_path`` of the run's artifacts.

        They must stay as they are until the tracker is closed. Files whose name starts with a dot are left out.
        """
        self._write({"artifacts": str(path.absolute()), "inside": self._inside(path), "to": artifact_path}, "artifacts")

    def log_record(self, kind: Literal["training", "evaluation"], directory: Path) -> None:
        """Log what people read of an artifact: :mod:`progrpo_components.tracking.lineage`. It must stay, likewise."""
        self._write({"record": kind, "of": str(directory.absolute()), "inside": self._inside(directory)}, "record")

    def log_summaries(self, summaries: Sequence[Mapping[str, Any]]) -> None:
        """Complete the summary runs of a comparison; see :func:`progrpo_components.tracking.summaries.summaries_of`."""
        self._write({"summaries": list(summaries)}, "summaries")

    def close(self, status: Status = "FINISHED") -> None:
        """End the run and wait until everything was delivered; what is logged afterwards is dropped.

        A server that is slow is given a minute, one that has taken nothing for 15 s no time. What it lacks is then kept
        in the output.
        """
        path, process = self._path, self._process
        if path is None:
            return
        self._write({"end": status, "time": _now_ms()}, "end")
        if process is None or process.poll() is not None:  # killed, perhaps for memory, which is free again now
            process = self._start()
        code = LEFT if process is None else _wait(process)
        _ = self.run_id
        self._path = self._process = None
        if code == DELIVERED:
            path.unlink(missing_ok=True)
            return
        kept = path
        if self._output is not None and self._output.is_dir() and status == "FINISHED":
            kept = path.rename(self._output / path.name)
        self._warn("left", f"MLflow lacks a part of this step. It is in {kept}; progrpo track sync delivers it.")

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the run: FINISHED, FAILED on an error, KILLED on an interrupt or SIGTERM."""
        self.close("FINISHED" if error is None else "FAILED" if isinstance(error, Exception) else "KILLED")

    def _start(self) -> subprocess.Popen[bytes] | None:
        command = [*self.sender_command, str(self._path), *(["--system-metrics"] if self._system_metrics else [])]
        try:
            # What a step prints may be its result; what the sender says goes with the step's warnings.
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        except (OSError, ValueError) as error:
            self._warn("sender", f"what this step logs to MLflow is kept, as no process could be started: {error}")
            return None

    def _inside(self, path: Path) -> str | None:
        """Where the output may be moved or downloaded, only its inside keeps its names."""
        root = None if self._output is None else self._output.absolute()
        path = path.absolute()
        return path.relative_to(root).as_posix() if root is not None and path.is_relative_to(root) else None

    def _write(self, line: Mapping[str, Any], kind: str) -> None:
        if self._path is None or not line[kind]:
            return
        try:
            spool.append(self._path, line)
        except (OSError, TypeError) as error:
            self._warn("spool", f"MLflow will lack {kind} of this step: {error}")

    def _loggable(self, metrics: Mapping[str, float]) -> dict[str, float]:
        kept = {}
        for key, value in metrics.items():
            if not self._is_legal(key):
                continue
            if math.isfinite(value):
                kept[key] = float(value)
            else:
                # MLflow stores infinity as 1.8e308, which makes a chart of everything else a flat line.
                self._warn(f"value {key}", f"{key} is {value} and is left out of MLflow; metrics.jsonl has it")
        return kept

    def _is_legal(self, key: str) -> bool:
        if key not in self._legal:
            self._legal[key] = is_legal_name(key)
            if not self._legal[key]:
                logger.warning("%r is left out of MLflow: not a name that it takes", key)
        return self._legal[key]

    def _warn(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            logger.warning("%s", message)


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Tell the sender that nothing more comes, and wait for it."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        return process.wait(CLOSE_S)
    except subprocess.TimeoutExpired:
        process.kill()  # it may be in the middle of a request; the spool says what is not known to have arrived
        return process.wait()


def _now_ms() -> int:
    return int(time.time() * 1000)
