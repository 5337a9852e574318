"""Metrics to MLflow, without MLflow being able to fail or slow down a step.

Each (pipeline run, arm, seed) has one *summary run*: the step that trains creates it, the step that evaluates, in
another process, finds it by its tags. A tracking server that is down costs one warning: every number is also in
``metrics.jsonl`` and ``evaluation.json``. mlflow is imported when tracking is opened, not with this module.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from progrpo.manifest import read_manifest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

logger = logging.getLogger(__name__)

SWITCH = "PROGRPO_TRACKING"
"""Environment variable; ``off`` logs nothing and never imports mlflow."""
RUN_TAG, ARM_TAG, SEED_TAG = "progrpo.pipeline_run_id", "progrpo.arm", "progrpo.seed"

FLUSH_S = 2.0
RETRY_S = 30.0
_CLOSE_S = 60.0
_MAX_BUFFERED = 200_000  # metrics kept while a server is away, about 100 MB; the oldest go first
# mlflow.utils.validation: what a server refuses, and with it the whole batch.
_METRICS_A_BATCH, _PARAMS_A_BATCH = 1000, 100
_KEY_LENGTH, _PARAM_LENGTH, _DIGEST_LENGTH = 250, 6000, 36
_LEGAL_NAME = re.compile(r"\w[/\w.\- :]*")
_ENVIRONMENT = {
    # mlflow's own settings, 7 retries of up to 120 s, hold a step up for many minutes when a server is gone.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}

Status = Literal["FINISHED", "FAILED", "KILLED"]


def open_tracking(
    *,
    experiment: str,
    pipeline_run_id: str,
    name: str,
    arm: str,
    seed: int | None,
    tags: Mapping[str, str] | None = None,
) -> Tracker:
    """Find or create the summary run of (pipeline_run_id, arm, seed); never raises.

    Where: ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the working directory. With sqlite, artifacts go to
    ``mlartifacts`` beside the database.

    Args:
        experiment: MLflow experiment; created if there is none.
        pipeline_run_id: of the pipeline run that the step belongs to.
        name: shown in MLflow, if the run is created here.
        arm: of the comparison.
        seed: of the training; None if nothing is trained.
        tags: further tags, if the run is created here.

    Returns:
        A tracker on that run, or one that does nothing if tracking is off or the store cannot be used.
    """
    if os.environ.get(SWITCH, "").lower() == "off":
        return Tracker()
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    own = {RUN_TAG: pipeline_run_id, ARM_TAG: arm} | ({} if seed is None else {SEED_TAG: str(seed)})
    try:
        client, run_id = _open_run(uri, experiment, name, own, dict(tags or {}))
    except Exception as error:  # mlflow, sqlalchemy, alembic, requests and sqlite3 each raise their own
        logger.warning(
            "MLflow at %s cannot be used, so this step is not logged there; its numbers are in its output all the "
            "same. Check MLFLOW_TRACKING_URI, or set %s=off. Cause: %s",
            redact(uri),
            SWITCH,
            describe_error(error),
        )
        return Tracker()
    return Tracker(client, run_id, trained=seed is not None)


def close_runs(*, experiment: str, pipeline_run_id: str, status: str) -> list[str]:
    """End every MLflow run of a pipeline run that a task left open when it was killed; never raises.

    Args:
        experiment: MLflow experiment.
        pipeline_run_id: of the pipeline run.
        status: how it ended, as KFP says; a run that is still open then was cut off.

    Returns:
        Ids of the MLflow runs that were ended.
    """
    if os.environ.get(SWITCH, "").lower() == "off":
        return []
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    closed: list[str] = []
    try:
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI"))
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return []
        own = f"tags.`{RUN_TAG}` = {_quote(pipeline_run_id)} and attributes.status = 'RUNNING'"
        for run in client.search_runs([found.experiment_id], own):
            client.set_terminated(run.info.run_id, "FINISHED" if status == "SUCCEEDED" else "KILLED")
            closed.append(str(run.info.run_id))
    except Exception as error:  # mlflow, sqlalchemy, requests: what they raise must not fail a run that went well
        logger.warning("MLflow runs that were left open stay so: %s", describe_error(error))
    return closed


class Tracker:
    """One MLflow run: a :class:`progrpo.metrics.MetricSink`, and a context manager that ends the run.

    Numbers are buffered and sent from a thread. While the server is away they are kept and tried again; what never
    got through when the tracker is closed is only in the step's own files. No method raises for a server's sake.

    Attributes:
        run_id: of the MLflow run; None if nothing is logged.
        client: of its server, for what may fail; None likewise.
    """

    def __init__(self, client: MlflowClient | None = None, run_id: str | None = None, *, trained: bool = True) -> None:
        self.run_id, self.client = run_id, client
        self._client, self._trained = client, trained
        self._metrics: deque[Metric] = deque(maxlen=_MAX_BUFFERED)
        self._params: deque[Param] = deque()
        self._legal: dict[str, bool] = {}
        self._warned: set[str] = set()
        self._retry_at = float("-inf")
        self._sending = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of one step; returns at once."""
        if self._client is None or self._stop.is_set():
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for key, value in metrics.items():
            if self._loggable(key, value):
                self._metrics.append(Metric(key, float(value), now, step))
        self._start(self._client)

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Take the numbers that the run as a whole has."""
        self.log(0, metrics)

    def log_params(self, params: Mapping[str, Any], prefix: str = "") -> None:
        """Take settings: nested keys are joined with dots, None is left out, long values are cut off.

        Args:
            params: JSON-serialisable.
            prefix: put before every key as it is: ``train.``.
        """
        if self._client is None or self._stop.is_set():
            return
        from mlflow.entities import Param

        for key, value in _flatten(params, prefix):
            text = value if isinstance(value, str) else json.dumps(value)
            short = text if len(text) <= _PARAM_LENGTH else text[: _PARAM_LENGTH - 3] + "..."
            if self._legal_name(key):
                self._params.append(Param(key, short))
        self._start(self._client)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tag the run."""
        if self._client is not None:
            client, run_id = self._client, self.run_id
            self._attempt("tags", lambda: [client.set_tag(run_id, key, value) for key, value in tags.items()])

    def log_dataset(self, directory: Path) -> None:
        """Name a dataset artifact as the run's input: a split each, with context ``training`` and ``evaluation``.

        MLflow's digest holds 36 characters; the manifest's whole one is in the source and in the tag
        ``progrpo.dataset_digest``.
        """
        if self._client is None:
            return
        client, run_id = self._client, self.run_id

        def send() -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            manifest = read_manifest(directory, "dataset", verify=False)
            tasks = "-".join(manifest.metadata.get("tasks") or ["dataset"])
            source = json.dumps({"uri": directory.resolve().as_uri(), "digest": manifest.digest})
            contexts = {"train": "training", "eval": "evaluation"} if self._trained else {"eval": "evaluation"}
            inputs = [
                DatasetInput(
                    Dataset(
                        name=f"{tasks}-{split}",
                        digest=manifest.digest[:_DIGEST_LENGTH],
                        source_type="local",
                        source=source,
                        profile=json.dumps({"num_rows": manifest.metadata.get(f"num_{split}")}),
                    ),
                    [InputTag("mlflow.data.context", context)],
                )
                for split, context in contexts.items()
            ]
            client.log_inputs(run_id, inputs)
            client.set_tag(run_id, "progrpo.dataset_digest", manifest.digest)

        self._attempt("the dataset", send)

    def log_artifacts(self, path: Path, artifact_path: str | None = None) -> None:
        """Upload a file, or everything in a directory, below ``artifact_path`` of the run's artifacts."""
        if self._client is None:
            return
        upload = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        self._attempt(f"the artifact {path}", lambda: upload(self.run_id, str(path), artifact_path))

    def close(self, status: Status = "FINISHED") -> None:
        """Send what is buffered and end the run. What is logged afterwards is dropped.

        Takes two requests that time out, by default 40 s, when the server is gone.
        """
        if self._client is None or self._stop.is_set():
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_S)
        client = self._client
        if self._send(client, final=True):
            self._attempt("the end of the run", lambda: client.set_terminated(self.run_id, status))

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the run: FINISHED, FAILED on an error, KILLED on an interrupt or SIGTERM."""
        self.close("FINISHED" if error is None else "FAILED" if isinstance(error, Exception) else "KILLED")

    def _start(self, client: MlflowClient) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._send_regularly, args=(client,), name="mlflow-sender", daemon=True
            )
            self._thread.start()

    def _send_regularly(self, client: MlflowClient) -> None:
        while not self._stop.wait(FLUSH_S):
            if time.monotonic() >= self._retry_at:
                self._send(client)

    def _send(self, client: MlflowClient, *, final: bool = False) -> bool:
        """Send everything buffered in batches; False if the server cannot be reached, and then nothing is lost."""
        with self._sending:
            return self._drain(client, self._params, "params", _PARAMS_A_BATCH, final) and self._drain(
                client, self._metrics, "metrics", _METRICS_A_BATCH, final
            )

    def _drain(self, client: MlflowClient, buffer: deque[Any], kind: str, size: int, final: bool) -> bool:
        while buffer:
            batch = [buffer.popleft() for _ in range(min(size, len(buffer)))]
            try:
                client.log_batch(self.run_id, **{kind: batch})
            except Exception as error:
                if _is_refusal(error):
                    self._warn(kind, f"MLflow refused {len(batch)} {kind}: {describe_error(error)}")
                    continue
                buffer.extendleft(reversed(batch))
                self._retry_at = time.monotonic() + RETRY_S
                if final:
                    text = f"MLflow lacks {len(buffer)} {kind} of run {self.run_id}; they are in the step's output"
                else:
                    text = f"MLflow cannot be reached; {kind} are kept and tried again"
                self._warn(text, f"{text}. Cause: {describe_error(error)}")
                return False
        return True

    def _attempt(self, what: str, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:
            self._warn(what, f"MLflow did not take {what} of run {self.run_id}: {describe_error(error)}")

    def _loggable(self, key: str, value: float) -> bool:
        if not self._legal_name(key):
            return False
        if math.isfinite(value):
            return True
        # MLflow stores infinity as 1.8e308, which makes a chart of everything else a flat line.
        self._warn(f"value {key}", f"{key} is {value} and is left out of MLflow; metrics.jsonl has it")
        return False

    def _legal_name(self, key: str) -> bool:
        if key not in self._legal:
            path = os.path.normpath(key)  # MLflow keeps metrics under their name as a path
            self._legal[key] = bool(_LEGAL_NAME.fullmatch(key)) and len(key) <= _KEY_LENGTH and path == key
            if not self._legal[key]:
                logger.warning("%r is left out of MLflow: not a name that it takes", key)
        return self._legal[key]

    def _warn(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            logger.warning("%s", message)


def _open_run(
    uri: str, experiment: str, name: str, own: Mapping[str, str], further: Mapping[str, str]
) -> tuple[MlflowClient, str]:
    from mlflow import MlflowClient

    database = _database_of(uri)
    with _one_at_a_time(database):
        client = MlflowClient(tracking_uri=uri)
        experiment_id = _experiment_id(client, experiment, database)
        run_id = _find_run(client, experiment_id, own)
        if run_id is None:
            run_id = str(client.create_run(experiment_id, run_name=name, tags={**further, **own}).info.run_id)
        else:
            client.update_run(run_id, status="RUNNING")
        return client, run_id


def _database_of(uri: str) -> Path | None:
    """Return the file behind a sqlite URI; None for a server or another database."""
    if not uri.startswith("sqlite"):
        return None
    from sqlalchemy.engine import make_url

    path = make_url(uri).database
    return Path(path).resolve() if path and path != ":memory:" else None


@contextmanager
def _one_at_a_time(database: Path | None) -> Iterator[None]:
    """Let one process at a time create tables, experiment and run in a sqlite file.

    mlflow has a lock of its own around the tables, but in the temporary directory, which two runs need not share.
    """
    if database is None:
        yield
        return
    import fcntl

    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f".{database.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, also by a kill
        yield


def _experiment_id(client: MlflowClient, name: str, database: Path | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        # Absolute, or a server that was started elsewhere looks for the artifacts in its own working directory.
        location = None if database is None else (database.parent / "mlartifacts").as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except Exception:  # another process was faster, or the server is broken: asking again tells
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise RuntimeError(
            f"experiment {name!r} was deleted. Restore it (mlflow experiments restore --experiment-id "
            f"{found.experiment_id}) or give another one in the parameter 'experiment'"
        )
    return str(found.experiment_id)


def _find_run(client: MlflowClient, experiment_id: str, own: Mapping[str, str]) -> str | None:
    """Return the oldest run with these tags, so that all steps agree on one even if two were made at once."""
    conditions = " and ".join(f"tags.`{key}` = {_quote(value)}" for key, value in own.items())
    runs = client.search_runs([experiment_id], conditions, order_by=["attributes.start_time ASC"])
    same_seed = (run for run in runs if run.data.tags.get(SEED_TAG) == own.get(SEED_TAG))
    return next((str(run.info.run_id) for run in same_seed), None)


def _quote(value: str) -> str:
    return f'"{value}"' if "'" in value else f"'{value}'"


def _flatten(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value


def _is_refusal(error: Exception) -> bool:
    """Tell a request that will never be taken from a server that is away."""
    codes = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "UNAUTHENTICATED")
    return getattr(error, "error_code", None) in codes


def redact(text: str) -> str:
    """Return ``text`` without the user and password of any URI in it."""
    return re.sub(r"://[^/\s]*@", "://***@", text)


def describe_error(error: Exception) -> str:
    """Return type and first line of an error, without passwords."""
    lines = str(error).strip().splitlines()
    return redact(f"{type(error).__name__}: {lines[0][:300] if lines else ''}")
