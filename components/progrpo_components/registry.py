"""The candidate of a promotion gate in the MLflow model registry.

What is promoted becomes a version with the alias ``champion``; what is not resolved becomes one with the alias
``candidate``, to be measured further; what is rejected is not registered, and a version made of the same checkpoint
before loses the alias ``candidate``. The same checkpoint never becomes two versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from progrpo.comparison.result import GateResult
from progrpo.storage import local_path, s3_uri
from progrpo_components.tracking.lineage import CHECKPOINT_TAG, find_model

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

CHAMPION, CANDIDATE = "champion", "candidate"
_GATE_TAG = "progrpo.gate"
_DESCRIPTION_LENGTH = 5000  # mlflow.utils.validation


@dataclass(frozen=True)
class Registration:
    """A version of a registered model."""

    model: str
    version: str
    alias: str
    source: str


def register(
    client: MlflowClient, run_id: str, gate: GateResult, training_uri: str, tags: Mapping[str, str]
) -> Registration | None:
    """Put the candidate where its outcome belongs; None where it was rejected.

    Args:
        client: of the tracking server.
        run_id: MLflow run of the candidate's training, which the version is linked to.
        gate: the outcome and its reason, which become the version's tag and description.
        training_uri: the training run that holds the checkpoint: a path, file:// or an object store's URI. Only the
            former are uploaded, to the artifacts of the logged model or else of the run; the server takes no version
            from a path of its own.
        tags: further tags of the version.
    """
    versions = client.search_model_versions(f"name = '{gate.model}'")
    version = next((v for v in versions if v.tags.get(CHECKPOINT_TAG) == gate.checkpoint_digest), None)
    if gate.outcome == "reject":
        if version is not None:
            _describe(client, gate, version.version)
            _drop_alias(client, gate.model, version.version)
        return None
    if version is None:
        logged = find_model(client, run_id, gate.checkpoint_digest)
        source = _source(client, run_id, training_uri, logged)
        _ensure_model(client, gate.model)
        version = client.create_model_version(
            gate.model,
            source,
            run_id=run_id,
            model_id=None if logged is None else logged.model_id,
            tags={**tags, CHECKPOINT_TAG: gate.checkpoint_digest},
        )
    _describe(client, gate, version.version)
    alias = CHAMPION if gate.outcome == "promote" else CANDIDATE
    client.set_registered_model_alias(gate.model, alias, version.version)
    if alias == CHAMPION:
        _drop_alias(client, gate.model, version.version)
    return Registration(gate.model, str(version.version), alias, str(version.source))


def _source(client: MlflowClient, run_id: str, training_uri: str, logged: LoggedModel | None) -> str:
    path = local_path(training_uri)
    if path is None:
        return s3_uri(training_uri).rstrip("/") + "/checkpoint"
    if logged is not None:
        client.log_model_artifacts(logged.model_id, str(path / "checkpoint"))
        return str(logged.artifact_location)
    client.log_artifacts(run_id, str(path / "checkpoint"), "checkpoint")
    return f"{client.get_run(run_id).info.artifact_uri}/checkpoint"


def _ensure_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _describe(client: MlflowClient, gate: GateResult, version: Any) -> None:
    client.set_model_version_tag(gate.model, version, _GATE_TAG, gate.outcome)
    client.update_model_version(gate.model, version, gate.reason[:_DESCRIPTION_LENGTH])


def _drop_alias(client: MlflowClient, name: str, version: Any) -> None:
    """Take the alias ``candidate`` from a version about which there is nothing left to find out."""
    aliases = client.get_registered_model(name).aliases
    if str(aliases.get(CANDIDATE)) == str(version):
        client.delete_registered_model_alias(name, CANDIDATE)
