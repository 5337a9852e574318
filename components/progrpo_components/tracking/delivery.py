"""From a spool to a server, each thing once.

A point is (key, step). What was sent and not answered may or may not have arrived; before it is sent again, the server
is asked what it has. A run that was there before has points of an earlier attempt, and is asked likewise. Times of
points are fixed when they are spooled: a request that the server was still working on when it was asked brings, if it
succeeds after all, the very same points, which MLflow's databases keep once (time and value are part of their key).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from progrpo_components.tracking import spool
from progrpo_components.tracking.place import Place
from progrpo_components.tracking.runs import (
    Finder,
    Run,
    RunGoneError,
    is_refusal,
    new_client,
    raise_if_gone,
    set_tags,
)
from progrpo_components.tracking.text import describe_error

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

POINTS_A_BATCH, PARAMS_A_BATCH = 1000, 100  # mlflow.utils.validation

T = TypeVar("T")


class Point(NamedTuple):
    """A value of a metric; ``corrects``: it is another point than one of the same step with another value."""

    key: str
    value: float
    time_ms: int
    step: int
    corrects: bool = False


class RunPoints:
    """The points of one run, each sent once.

    Args:
        client: of the server.
        run_id: of the run.
        is_new: whether nobody else can have logged into it.
    """

    def __init__(self, client: MlflowClient, run_id: str, *, is_new: bool) -> None:
        self._client, self._run_id = client, run_id
        # What the server has: of each key the last step with its value, which answers most questions, and, of those
        # that were asked further, every step. None: not known.
        self._last: dict[str, tuple[int, float]] | None = {} if is_new else None
        self._steps: dict[str, dict[int, float]] = {}

    def send(self, points: Sequence[Point]) -> None:
        """Send those that the server lacks.

        Raises:
            RunGoneError: the run was deleted.
            Exception: it is not known what arrived; sending the same again finds out.
        """
        lacking = {(p.key, p.step, p.value if p.corrects else None): p for p in points if not self._is_there(p)}
        wanted = list(lacking.values())
        for start in range(0, len(wanted), POINTS_A_BATCH):
            send_what_is_taken(self._client, self._run_id, wanted[start : start + POINTS_A_BATCH], self._log, _key)

    def _log(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        try:
            self._client.log_batch(self._run_id, metrics=[Metric(p.key, p.value, p.time_ms, p.step) for p in points])
        except Exception as error:
            if not is_refusal(error):
                self._last = None
            raise
        for p in points:
            if self._last is not None and p.step >= self._last.get(p.key, (p.step, 0.0))[0]:
                self._last[p.key] = (p.step, p.value)
            if p.key in self._steps:
                self._steps[p.key][p.step] = p.value

    def _is_there(self, point: Point) -> bool:
        if self._last is None:
            found = self._client.get_run(self._run_id).data._metric_objs  # data.metrics has no steps
            self._last, self._steps = {metric.key: (metric.step, metric.value) for metric in found}, {}
        last = self._last.get(point.key)
        if last is None or point.step > last[0]:
            return False
        if point.step < last[0]:
            if point.key not in self._steps:
                history = self._client.get_metric_history(self._run_id, point.key)
                in_time = sorted(history, key=lambda metric: metric.timestamp)
                self._steps[point.key] = {metric.step: metric.value for metric in in_time}
            if point.step not in self._steps[point.key]:
                return False
            last = (point.step, self._steps[point.key][point.step])
        return not point.corrects or point.value == last[1]


def send_what_is_taken(
    client: MlflowClient,
    run_id: str,
    items: Sequence[T],
    send: Callable[[Sequence[T]], object],
    name: Callable[[T], str],
) -> None:
    """Send a batch; of one that is refused, all but the items that are the reason.

    Raises:
        RunGoneError: the run was deleted.
        Exception: anything but a refusal.
    """
    if not items:
        return
    try:
        send(items)
    except Exception as error:
        if not is_refusal(error):
            raise
        raise_if_gone(client, run_id)
        if len(items) == 1:
            logger.warning("MLflow refused %s of run %s: %s", name(items[0]), run_id, describe_error(error))
            return
        for half in (items[: len(items) // 2], items[len(items) // 2 :]):
            send_what_is_taken(client, run_id, half, send, name)


@dataclass(frozen=True)
class Connection:
    """An open run: the client of its server, what was found there, the run, its points."""

    client: MlflowClient
    finder: Finder
    run: Run
    points: RunPoints


class Delivery:
    """Delivers one spool; only one may at a time (:func:`progrpo_components.tracking.sync.locked`)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state: spool.State | None = None
        self._client: MlflowClient | None = None
        self._connection: Connection | None = None
        self.num_sent = 0
        """Batches that were taken."""

    def deliver(self) -> None:
        """Find or make the run, and deliver everything that the spool holds and the server lacks.

        Raises:
            Exception: what stopped it, of mlflow's, requests' or sqlalchemy's types. What is known to have arrived is
                noted, and the next call goes on behind it.
        """
        connection = self._connect()
        for stream in spool.STREAMS:
            while (batch := self._next(stream)) is not None:
                lines, end = batch
                try:
                    self._send(connection, lines)
                except RunGoneError as gone:
                    if gone.superseded:
                        self._start_anew()
                        return self.deliver()
                    logger.warning("%s; the rest of this step is not logged there", gone)
                self._note(stream, end)
        return None

    def _connect(self) -> Connection:
        if self._connection is None:
            state = self._state or spool.read_state(self._path)
            if state is None:
                raise ValueError(f"{self._path} is no spool, or not one line of it was written")
            self._state = state
            if self._client is None:
                self._client = new_client(state.place.uri, repeats=False)
                self._finder = Finder(self._client)
            client, finder = self._client, self._finder
            run = finder.open_run(state.place, known=state.run_id)
            self._connection = Connection(client, finder, run, RunPoints(client, run.run_id, is_new=run.is_new))
            if run.run_id != state.run_id:
                self._state = replace(state, run_id=run.run_id)
                spool.append(self._path, {"run": run.run_id})
        return self._connection

    def _next(self, stream: str) -> tuple[list[dict[str, Any]], int] | None:
        """Return the next lines of a stream to send together, and where they end: points of many, else one line."""
        assert self._state is not None  # noqa: S101  # connected
        lines: list[dict[str, Any]] = []
        count, end = 0, 0
        for line, line_end in spool.read(self._path, self._state.sent[stream]):
            if spool.stream_of(line) != stream:
                continue
            num_points = len(line.get("metrics") or line.get("numbers") or ())
            if lines and (not num_points or count + num_points > POINTS_A_BATCH):
                break
            lines.append(line)
            count, end = count + num_points, line_end
            if not num_points:
                break
        return (lines, end) if lines else None

    def _note(self, stream: str, end: int) -> None:
        assert self._state is not None  # noqa: S101  # connected
        self._state.sent[stream] = end
        self.num_sent += 1
        spool.append(self._path, {"sent": end, "stream": stream})

    def _start_anew(self) -> None:
        """Two steps had made the run at the same moment, and this one is to log into the other's."""
        assert self._state is not None  # noqa: S101  # connected
        self._client = self._connection = None
        self._state = replace(self._state, run_id=None)
        spool.append(self._path, {"run": None})
        for stream in spool.STREAMS:
            self._note(stream, 0)

    # --- sending -----------------------------------------------------------------------------------------------------

    def _send(self, connection: Connection, lines: Sequence[Mapping[str, Any]]) -> None:
        client, run_id, line = connection.client, connection.run.run_id, lines[0]
        if "metrics" in line or "numbers" in line:
            connection.points.send([point for each in lines for point in points_of(each)])
        elif "params" in line:
            send_params(client, run_id, line["params"])
        elif "summaries" in line:
            for summary in line["summaries"]:
                _complete(connection, summary)
        elif "end" in line and connection.run.is_attached:
            pass  # whoever made the run ends it
        else:
            send_what_is_taken(client, run_id, [line], lambda _: self._send_whole(client, run_id, line), _first_key)

    def _send_whole(self, client: MlflowClient, run_id: str, line: Mapping[str, Any]) -> None:
        """Send what is sent by one request, or may arrive again without harm."""
        match line:
            case {"tags": tags}:
                set_tags(client, run_id, tags)
            case {"datasets": datasets}:
                _log_datasets(client, run_id, datasets)
            case {"config": name, "values": values}:
                client.log_dict(run_id, values, f"config/{name}.json")
            case {"artifacts": path, "inside": inside, "to": target}:
                if (root := self._find(path, inside)) is not None:
                    _upload(client, run_id, root, target)
            case {"record": kind, "of": path, "inside": inside}:
                if (root := self._find(path, inside)) is not None:
                    from progrpo_components.tracking import lineage

                    log = lineage.log_training if kind == "training" else lineage.log_evaluation
                    log(client, run_id, root)
            case {"end": status, "time": time_ms}:
                client.set_terminated(run_id, status, end_time=time_ms)

    def _find(self, path: str, inside: str | None) -> Path | None:
        """Return where a file of the output lies now: it may have been moved, and the spool with it."""
        places = [Path(path), *([] if inside is None else [self._path.parent / inside])]
        found = next((place for place in places if place.exists()), None)
        if found is None:
            logger.warning("%s is not there any more and is not logged to MLflow", path)
        return found


def _upload(client: MlflowClient, run_id: str, root: Path, target: str) -> None:
    files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
    for file in files:
        if not file.name.startswith("."):
            folder = Path(target) if file == root else Path(target) / file.relative_to(root).parent
            client.log_artifact(run_id, str(file), None if folder == Path() else folder.as_posix())


def _complete(connection: Connection, summary: Mapping[str, Any]) -> None:
    """Give a summary run what it lacks: all of it where Kubeflow's plugin has the runs of the tasks."""
    client, place = connection.client, Place.model_validate(summary["place"])
    run = connection.finder.open_run(place, experiment_id=connection.run.experiment_id, resumes=False)
    set_tags(client, run.run_id, place.all_tags)
    send_params(client, run.run_id, summary["params"])
    points = RunPoints(client, run.run_id, is_new=False)
    points.send([point for line in summary["lines"] for point in points_of(line)])
    if client.get_run(run.run_id).info.status == "RUNNING":
        client.set_terminated(run.run_id, "FINISHED")


def points_of(line: Mapping[str, Any]) -> list[Point]:
    """Return the points of a line of metrics or numbers."""
    if "metrics" in line:
        return [Point(key, value, line["time"], line["step"]) for key, value in line["metrics"].items()]
    return [Point(key, value, line["time"], 0, corrects=True) for key, value in line["numbers"].items()]


def send_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    """Log params in batches; one that has another value already keeps it, with a warning."""
    from mlflow.entities import Param

    def log(some: Sequence[tuple[str, str]]) -> None:
        client.log_batch(run_id, params=[Param(key, value) for key, value in some])

    items = list(params.items())
    for start in range(0, len(items), PARAMS_A_BATCH):
        send_what_is_taken(client, run_id, items[start : start + PARAMS_A_BATCH], log, lambda item: f"param {item[0]}")


def _log_datasets(client: MlflowClient, run_id: str, datasets: Iterable[Mapping[str, str]]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for item in datasets:
        values = {key: item[key] for key in ("name", "digest", "source", "profile")}
        inputs.append(
            DatasetInput(Dataset(source_type="local", **values), [InputTag("mlflow.data.context", item["context"])])
        )
    client.log_inputs(run_id, inputs)


def _key(point: Point) -> str:
    return f"{point.key} of step {point.step}"


def _first_key(line: Mapping[str, Any]) -> str:
    return str(next(iter(line)))
