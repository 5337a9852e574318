"""Runs on a server: finding the one of a place, making it, and ending those that a pipeline run left open.

A server has no lock that several steps could take, so a run is made, then looked for: of several, the oldest stays and
whoever sees the others deletes them. Each maker looks after its own run is there, and nobody deletes the oldest; so in
the end it alone is left, whatever the order. A step whose run went starts anew in the one that stayed, from its spool.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progrpo.redaction import redact
from progrpo_components.tracking.place import (
    ARM_TAG,
    ROLE_TAG,
    RUN_TAG,
    SEED_TAG,
    TASK_TAG,
    Place,
    is_off,
    tracking_uri,
)
from progrpo_components.tracking.server import RUN_ID_VARIABLE, handed_out, plugin_config, server_uri
from progrpo_components.tracking.text import describe_error

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

SUPERSEDED_TAG = "progrpo.superseded_by"
# MLflow's UI then opens the experiment on its runs, not on its traces.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
_ENVIRONMENT = {
    # mlflow's own settings, 7 retries of up to 120 s, hold whoever waits up for many minutes when a server is gone.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}


@dataclass(frozen=True)
class Run:
    """A run on the server.

    Attributes:
        run_id: its id.
        experiment_id: of its experiment.
        is_new: made just now, so that it holds nothing.
        is_attached: made by someone else, who ends it.
    """

    run_id: str
    experiment_id: str
    is_new: bool = False
    is_attached: bool = False


@dataclass(frozen=True)
class FoundRun:
    """A run of a pipeline run, as it was found.

    Attributes:
        run_id: its id.
        status: MLflow's word.
        tags: all of them.
    """

    run_id: str
    status: str
    tags: Mapping[str, str]

    @property
    def role(self) -> str:
        """What it is the run of: see :class:`progrpo_components.tracking.place.Place`."""
        return self.tags.get(ROLE_TAG, "")

    @property
    def arm(self) -> str | None:
        """Of a training or an evaluation."""
        return self.tags.get(ARM_TAG)

    @property
    def task(self) -> str:
        """The last step that logged into it: into a summary, which has no tag of it, at the end the evaluation."""
        return "evaluate" if self.role == "summary" else self.tags.get(TASK_TAG, "")

    @property
    def label(self) -> str:
        """What people know it by: ``progrpo seed 1``, which a training and an evaluation log into, or ``compare``."""
        seed = self.tags.get(SEED_TAG)
        of = self.arm if seed is None else f"{self.arm} seed {seed}"
        return " ".join(filter(None, (self.tags.get(TASK_TAG), of))) or self.run_id


class RunGoneError(Exception):
    """The run was deleted; ``superseded``: for another of the same place."""

    def __init__(self, run_id: str, superseded: bool) -> None:
        super().__init__(f"MLflow run {run_id} was deleted")
        self.superseded = superseded


def new_client(uri: str, *, repeats: bool = True) -> MlflowClient:
    """Return a client of the server that the environment names, else of ``uri``.

    Args:
        uri: of the server or database.
        repeats: let mlflow send again what was not answered, which may arrive twice then.
    """
    if not repeats:
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    from mlflow import MlflowClient

    uri = server_uri() or uri
    with one_at_a_time(uri):  # the first one makes the tables
        return MlflowClient(tracking_uri=uri, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or uri)


def connect(place: Place) -> tuple[MlflowClient, str]:
    """Return a client and the id of the run of a place, found or made.

    Raises:
        Exception: the server cannot be used; mlflow, requests, sqlalchemy and sqlite3 each raise their own.
    """
    client = new_client(place.uri)
    return client, Finder(client).open_run(place, resumes=False).run_id


class Finder:
    """Finds and makes runs, and remembers what it found, so that a server that fails now and then gets there."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client
        self._experiment_ids: dict[str, str] = {}
        self._runs: dict[tuple[str, str], Run] = {}
        self._known: dict[str, bool] = {}

    def open_run(
        self, place: Place, *, known: str | None = None, experiment_id: str | None = None, resumes: bool = True
    ) -> Run:
        """Find the run of a place, or make it, and with it, where runs are our own, the run of its pipeline run.

        Args:
            place: the run.
            known: its id, if an earlier call has returned it.
            experiment_id: where to look instead of in ``place.experiment``; then only this one run is made.
            resumes: show it as running, and with the tags of the place.

        Raises:
            Exception: the server cannot be used, or does not have the run to attach to.
        """
        client = self._client
        if place.run_id is not None:
            info = client.get_run(place.run_id).info
            if resumes:
                set_tags(client, place.run_id, place.all_tags)
            return Run(place.run_id, str(info.experiment_id), is_attached=True)
        if known is not None:
            return Run(known, str(client.get_run(known).info.experiment_id))
        with one_at_a_time(server_uri() or place.uri):
            if place.parent_id is not None and not self._has(place.parent_id):
                place = place.without_plugin
            if place.role == "pipeline" and place.parent_id is not None:
                set_tags(client, place.parent_id, {**place.all_tags, ROLE_TAG: "attached"})
                return Run(place.parent_id, str(place.experiment_id), is_attached=True)
            where = experiment_id or place.experiment_id or self._experiment_id(place)
            if place.role == "summary" and experiment_id is None and place.experiment_id is None:
                self._find_or_create(where, place.pipeline)
            run = self._find_or_create(where, place)
        if not run.is_new and resumes:
            client.update_run(run.run_id, status="RUNNING")
            set_tags(client, run.run_id, place.all_tags)
        return run

    def _find_or_create(self, experiment_id: str, place: Place) -> Run:
        """Return the one run of a place, also when several steps call this at once."""
        client, key = self._client, (experiment_id, str(sorted(place.key.items())))
        if key in self._runs:
            return self._runs[key]
        found = _find(client, experiment_id, place)
        made = None
        if not found:
            made = client.create_run(experiment_id, run_name=place.name, tags=place.all_tags)
            found = _find(client, experiment_id, place) or [made]
        winner, *others = sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))
        run_id = str(winner.info.run_id)
        for other in others:
            try:
                client.set_tag(other.info.run_id, SUPERSEDED_TAG, run_id)
                client.delete_run(other.info.run_id)
            except Exception as error:  # another step may have been faster
                logger.debug("run %s was not deleted: %s", other.info.run_id, describe_error(error))
        run = Run(run_id, experiment_id, is_new=made is not None and run_id == made.info.run_id)
        return self._runs.setdefault(key, run)

    def _has(self, run_id: str) -> bool:
        """Whether our server is the one of Kubeflow's plugin and lets us see its run."""
        from mlflow.exceptions import MlflowException

        if run_id not in self._known:
            try:
                self._client.get_run(run_id)
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED"):
                    raise
                self._known[run_id] = False
            else:
                self._known[run_id] = True
        return self._known[run_id]

    def _experiment_id(self, place: Place) -> str:
        name = place.experiment
        if name not in self._experiment_ids:
            self._experiment_ids[name] = _experiment_id(self._client, place)
        return self._experiment_ids[name]


def set_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Tag a run in one request."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def raise_if_gone(client: MlflowClient, run_id: str) -> None:
    """Tell a refusal of what was sent from one of the run.

    Raises:
        RunGoneError: the run was deleted.
    """
    run = client.get_run(run_id)
    if run.info.lifecycle_stage == "deleted":
        raise RunGoneError(run_id, SUPERSEDED_TAG in run.data.tags)


def is_refusal(error: Exception) -> bool:
    """Tell a request that will never be taken from a server that is away, full or does not let us in for now."""
    # Of an answer that is not JSON the sender is something in between, which knows nothing of the request.
    code = getattr(error, "error_code", None)
    return code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST") and not str(error).startswith("API request to endpoint")


def runs_of_pipeline(*, experiment: str, pipeline_run_id: str) -> list[FoundRun]:
    """Return every run of a pipeline run that can be found, also those that Kubeflow's plugin made.

    Never raises: it is what a pipeline does last, whatever happened.

    Args:
        experiment: MLflow experiment.
        pipeline_run_id: of the pipeline run.
    """
    if is_off():
        return []
    uri = tracking_uri()
    try:
        database = _database_of(uri)
        if database is not None and not database.exists():
            return []
        client = new_client(uri)
        found = client.get_experiment_by_name(experiment)
        experiment_ids = {None if found is None else found.experiment_id, _experiment_of_plugin()}
        run_id = os.environ.get(RUN_ID_VARIABLE, pipeline_run_id)
        runs = client.search_runs(sorted(filter(None, experiment_ids)), f"tags.`{RUN_TAG}` = {_quote(run_id)}")
        return [FoundRun(str(run.info.run_id), str(run.info.status), dict(run.data.tags)) for run in runs]
    except Exception as error:
        logger.warning("MLflow at %s may show ended runs as running: %s", redact(uri), describe_error(error))
        return []


def close_runs(runs: Sequence[FoundRun], outcome: str) -> list[str]:
    """End the runs that are still shown as running, but for those that Kubeflow's plugin made, which it ends.

    A comparison that went well has ended the run of its pipeline run; one that failed later is shown as failed.

    Args:
        runs: of a pipeline run.
        outcome: how it ended: succeeded, failed, cancelled or unknown.

    Returns:
        The ids of the runs that were ended.
    """
    status = {"succeeded": "FINISHED", "failed": "FAILED"}.get(outcome, "KILLED")
    left = [run for run in runs if run.status == "RUNNING" and run.role != "attached"]
    if outcome == "failed":
        left += [run for run in runs if run.status == "FINISHED" and run.role == "pipeline"]
    if not left:
        return []
    ended: list[str] = []
    uri = tracking_uri()
    try:
        client = new_client(uri)
        for run in left:
            client.set_terminated(run.run_id, status)
            ended.append(run.run_id)
    except Exception as error:
        logger.warning("MLflow at %s may show ended runs as running: %s", redact(uri), describe_error(error))
    return ended


def _experiment_of_plugin() -> str | None:
    config = plugin_config()
    return handed_out().get("experiment_id") or (None if config is None else config.experiment_id)


def _find(client: MlflowClient, experiment_id: str, place: Place) -> list[Any]:
    conditions = " and ".join(f"tags.`{key}` = {_quote(value)}" for key, value in place.key.items())
    runs = client.search_runs([experiment_id], conditions)
    # A condition cannot ask for a tag that is not there.
    return [run for run in runs if run.data.tags.get(SEED_TAG) == place.key.get(SEED_TAG)]


def _experiment_id(client: MlflowClient, place: Place) -> str:
    found = client.get_experiment_by_name(place.experiment)
    if found is None:
        database = _database_of(server_uri() or place.uri)
        # Absolute, or a server that was started elsewhere looks for the artifacts in its own working directory.
        location = None if database is None else (database.parent / "mlartifacts").as_uri()
        try:
            return str(client.create_experiment(place.experiment, artifact_location=location, tags=_EXPERIMENT_TAGS))
        except Exception:  # another process was faster, or the server is broken: asking again tells
            found = client.get_experiment_by_name(place.experiment)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise RuntimeError(
            f"experiment {place.experiment!r} was deleted. Restore it (mlflow experiments restore --experiment-id "
            f"{found.experiment_id}) or give another one in the parameter 'experiment'"
        )
    return str(found.experiment_id)


def _database_of(uri: str) -> Path | None:
    """Return the file behind a sqlite URI; None for a server or another database."""
    if not uri.startswith("sqlite"):
        return None
    from sqlalchemy.engine import make_url

    path = make_url(uri).database
    return Path(path).resolve() if path and path != ":memory:" else None


@contextmanager
def one_at_a_time(uri: str) -> Iterator[None]:
    """Let one process at a time make tables, experiment and run in a sqlite file.

    mlflow has a lock of its own around the tables, but in the temporary directory, which two runs need not share.
    """
    database = _database_of(uri)
    if database is None:
        yield
        return
    import fcntl

    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f".{database.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, also by a kill
        yield


def _quote(value: str) -> str:
    return f'"{value}"' if "'" in value else f"'{value}'"
