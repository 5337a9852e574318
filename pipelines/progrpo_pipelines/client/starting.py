"""Start a run once: the experiment, the request, and what keeps a repeated CI job from starting a second GPU run.

A run on the API server carries no labels. What is free to us and can be filtered by is its ``description``
(``runAPIToModelFieldMap`` in the server's ``model/run.go``), so that is where the idempotency key lies.
"""

from __future__ import annotations

import re
import secrets
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import kfp_server_api as kfp

from progrpo.errors import ConfigError
from progrpo_pipelines.client.api import Api, list_all, name_filter
from progrpo_pipelines.client.errors import ApiError
from progrpo_pipelines.client.package import Package, digest_of
from progrpo_pipelines.client.uploading import Uploaded, upload
from progrpo_pipelines.client.waiting import CANCELLING, FINAL

GIT_KEY = "git"
_MARK = "progrpo-idempotency:"
_KEY = re.compile(r"[\w./:@-]{1,128}")
_ENDED_BADLY = ("FAILED", "CANCELED", "CANCELING", "SKIPPED")
_LOOKS, _LOOK_EVERY_S = 5, 3.0
_RACE_S = 2.0  # created_at has whole seconds: runs of the same second must be visible to both jobs that made them
_PLUGINS_SINCE = (2, 17)


@dataclass(frozen=True)
class Request:
    """What is to run, and how.

    Attributes:
        package: the pipeline.
        arguments: of the pipeline, checked.
        experiment: name of the KFP experiment; made if there is none.
        name: of the run; absent: one that no other run has.
        upload: run an uploaded version of the pipeline; if not, the package goes with the run.
        version: name of that version; absent: after its content.
        pipeline_root: where artifacts go; absent: as the server is configured.
        service_account: that the pods run as; absent: as the server is configured.
        mlflow_experiment: for the server's MLflow plugin.
        idempotency_key: runs with the same key and the same content are one run.
    """

    package: Package
    arguments: dict[str, Any]
    experiment: str
    name: str | None = None
    upload: bool = False
    version: str | None = None
    pipeline_root: str | None = None
    service_account: str | None = None
    mlflow_experiment: str | None = None
    idempotency_key: str | None = None

    @property
    def digest(self) -> str:
        """Of what decides the result: two requests with the same digest ask for the same run."""
        return digest_of(
            [self.package.digest, self.arguments, self.experiment, self.pipeline_root, self.service_account]
        )

    @property
    def mark(self) -> str | None:
        """The line in the description by which a run is found again."""
        if self.idempotency_key is None:
            return None
        return f"{_MARK} {self.idempotency_key} sha256:{self.digest[:16]}"

    def body(self, experiment_id: str, name: str, uploaded: Uploaded | None = None) -> Any:
        """Return the run to create; without our own options it is what ``kfp run submit`` sends."""
        reference = None
        if uploaded is not None:
            reference = kfp.V2beta1PipelineVersionReference(
                pipeline_id=uploaded.pipeline_id, pipeline_version_id=uploaded.version_id
            )
        plugins = {"mlflow": {"experiment_name": self.mlflow_experiment}} if self.mlflow_experiment else None
        return kfp.V2beta1Run(
            experiment_id=experiment_id,
            display_name=name,
            description=self.mark,
            pipeline_spec=self.package.document if reference is None else None,
            pipeline_version_reference=reference,
            runtime_config=kfp.V2beta1RuntimeConfig(parameters=self.arguments, pipeline_root=self.pipeline_root),
            service_account=self.service_account,
            plugins_input=plugins,
        )


@dataclass(frozen=True)
class Started:
    """A run, and whether it was there already."""

    run: Any
    adopted: bool


def idempotency_key(text: str, *, git: Any = None) -> str:
    """Return the key itself: ``git`` stands for the commit that is checked out.

    Raises:
        ConfigError: characters that are not allowed, no commit, or changes that are not committed.
    """
    if text == GIT_KEY:
        return f"git-{(git or _git_commit)()}"
    if not _KEY.fullmatch(text):
        raise ConfigError(
            f"--idempotency-key {text!r}: allowed are up to 128 letters, digits and ._/:@-; or git, for the commit."
        )
    return text


def _git_commit() -> str:
    try:
        commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
        commit, changes = (
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() for command in commands
        )
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        raise ConfigError(f"--idempotency-key git: no commit is known: {said}. Give a key of your own.") from None
    if changes:
        raise ConfigError(
            "--idempotency-key git: tracked files differ from the commit, so it does not name what would run. "
            "Commit them, or give a key of your own."
        )
    return commit


def start(api: Api, request: Request) -> Started:
    """Start a run, or adopt the one that the same request has started before.

    A run of the same key that failed, was cancelled or is archived is not adopted: starting again is what one wants.

    Raises:
        ConfigError: the key was used for another request, or the server knows no MLflow plugin.
        ApiError: refused, unreachable, or it is not known whether the run was started.
    """
    version = "" if request.mlflow_experiment is None else _check_plugins(api)
    experiment_id = find_or_create_experiment(api, request.experiment)
    if (found := _find(api, request, experiment_id)) is not None:
        return Started(found, adopted=True)
    uploaded = upload(api, request.package, request.version) if request.upload else None
    name = request.name or f"{request.package.name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
    try:
        run = api.call(api.runs.run_service_create_run, request.body(experiment_id, name, uploaded), again=False)
    except ApiError as error:
        if version and error.status == 400 and "plugins_input" in str(error):
            raise ConfigError(f"{error} {_no_plugins(version)}") from None
        if not error.maybe_done:
            raise
        # The answer was lost, not necessarily the request: sending it again could start a second run.
        run = _look_for(api, request, experiment_id, name, error)
    return Started(run, adopted=False)


def settle_race(api: Api, request: Request, started: Started) -> Started:
    """Return the run to follow where two jobs may have started the same one at the same moment.

    Both saw no run then; after a moment both see both, and the younger run ends. Without a key there is no such pair.
    """
    run = started.run
    if request.mark is None or started.adopted:
        return started
    api.sleep(_RACE_S)
    try:
        first = next(iter(_same(api, request, run.experiment_id)), run)
        if first.run_id == run.run_id:
            return started
        api.notify(f"another job started the same run at the same time; {run.run_id} is ended for {first.run_id}.")
        terminate(api, run.run_id)
    except ApiError as error:
        api.notify(f"whether another job started the same run at the same time is not known: {error}")
        return started
    return Started(first, adopted=True)


def find_or_create_experiment(api: Api, name: str) -> str:
    """Return the id of the experiment called ``name``."""
    if (found := _find_experiment(api, name)) is not None:
        return found
    body = kfp.V2beta1Experiment(display_name=name, namespace=api.namespace)
    try:
        return str(api.call(api.experiments.experiment_service_create_experiment, body, again=False).experiment_id)
    except ApiError as error:  # another job may have made it at the same moment
        found = _find_experiment(api, name) if error.maybe_done or error.status in (400, 409) else None
        if found is None:
            raise
        return found


def terminate(api: Api, run_id: str) -> None:
    """Ask the server to end a run; its pods are deleted, its state becomes CANCELING and at last FAILED.

    The server refuses a run that ends already or has ended (``TerminateRun`` in its ``run_store.go``, 2.17.0), which is
    also the answer to a request that is repeated because its first answer was lost.
    """
    try:
        api.call(api.runs.run_service_terminate_run, run_id)
    except ApiError as error:
        if error.status != 400 or api.call(api.runs.run_service_get_run, run_id).state not in (CANCELLING, *FINAL):
            raise


def _find_experiment(api: Api, name: str) -> str | None:
    found = list_all(
        api,
        api.experiments.experiment_service_list_experiments,
        "experiments",
        namespace=api.namespace or "",
        filter=name_filter(name),
    )
    if any(experiment.storage_state == "ARCHIVED" for experiment in found):
        raise ConfigError(f"experiment {name} is archived. Restore it in the UI, or give another --experiment.")
    return str(found[0].experiment_id) if found else None


def _marked(api: Api, request: Request, experiment_id: str) -> list[Any]:
    """Runs of our key that are worth having, the first one first; both times are the server's, so no clock is wrong."""
    key = f"{_MARK} {request.idempotency_key} "
    found = list_all(
        api,
        api.runs.run_service_list_runs,
        "runs",
        experiment_id=experiment_id,
        filter=name_filter(key, key="description", operation="IS_SUBSTRING"),
    )
    # LIKE, which the filter becomes, takes _ for any character.
    useful = [
        run
        for run in found
        if (run.description or "").startswith(key) and run.state not in _ENDED_BADLY and run.storage_state != "ARCHIVED"
    ]
    return sorted(useful, key=lambda run: (run.created_at is None, run.created_at, run.run_id))


def _same(api: Api, request: Request, experiment_id: str) -> list[Any]:
    """Those of them that the same request started."""
    return [run for run in _marked(api, request, experiment_id) if run.description == request.mark]


def _find(api: Api, request: Request, experiment_id: str) -> Any:
    if request.mark is None:
        return None
    runs = _marked(api, request, experiment_id)
    same = [run for run in runs if run.description == request.mark]
    if runs and not same and not (request.idempotency_key or "").startswith(f"{GIT_KEY}-"):
        raise ConfigError(
            f"--idempotency-key {request.idempotency_key} belongs to another request already: run "
            f"{api.connection.run_url(runs[0].run_id)} has another pipeline or other arguments. Give another key."
        )
    return next((run for run in same if run.state == "SUCCEEDED"), same[0] if same else None)


def _look_for(api: Api, request: Request, experiment_id: str, name: str, error: ApiError) -> Any:
    """Find the run of a request whose answer was lost."""
    if request.mark is None and request.name is not None:
        raise ApiError(
            f"{error} The run may have been started: look for {name!r} in experiment {request.experiment!r} before "
            f"trying again. With --idempotency-key a second try takes up the first one.",
            error.status,
        )
    for look in range(_LOOKS):
        if look:
            api.sleep(_LOOK_EVERY_S)
        if request.mark is not None:
            found = _same(api, request, experiment_id)
        else:  # the name is ours alone
            function = api.runs.run_service_list_runs
            found = list_all(api, function, "runs", experiment_id=experiment_id, filter=name_filter(name))
        if found:
            api.notify("the answer was lost, but the run was started.")
            return found[0]
    raise ApiError(f"{error} The run was not started, as far as the server shows. Try again.", error.status)


def _check_plugins(api: Api) -> str:
    """Return the server's version, which it need not know; refused is one that does not know plugins_input."""
    tag = str(api.health().get("tag_name", "unknown"))
    version = re.match(r"v?(\d+)\.(\d+)", tag)
    if version is not None and (int(version[1]), int(version[2])) < _PLUGINS_SINCE:
        raise ConfigError(_no_plugins(tag))
    return tag


def _no_plugins(version: str) -> str:
    return (
        f"--mlflow-experiment needs Kubeflow Pipelines 2.17 with its MLflow plugin; this server says {version!r}. "
        f"Leave it out, and set the pipeline's own parameter instead: --set experiment=NAME."
    )
