"""What follows from the gate of a comparison: a registration in MLflow, a record, and whether the step fails."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from progrpo.comparison.result import GateResult, read_comparison
from progrpo.comparison.tables import outcome_words
from progrpo.errors import ConfigError
from progrpo.manifest import Manifest, read_manifest, write_atomic, write_manifest
from progrpo.storage import local_path
from progrpo_components.errors import PromotionError
from progrpo_components.registry import Registration, register
from progrpo_components.tracking import SWITCH, Place, connect, describe_error


def read_gate(comparison: Path) -> GateResult | None:
    """Read what the gate of a comparison decided; None without one."""
    return read_comparison(comparison).gate


def register_candidate(
    summary: Place, gate: GateResult, training_uri: str, tags: Mapping[str, str]
) -> Registration | None:
    """Register the candidate as its outcome says; None where it was rejected.

    Args:
        summary: the summary run of the candidate, which the version is linked to.
        gate: the outcome.
        training_uri: its training run; may be empty where it was rejected.
        tags: further tags of the version.

    Raises:
        ConfigError: the training run was not given to compare, or is another one.
        PromotionError: MLflow cannot be used or refuses. A promotion that is not on record is none.
    """
    if gate.outcome != "reject":
        _check_training(gate, training_uri)
    decided = f"{gate.candidate}: {outcome_words(gate.outcome)}"
    tags = {**tags, "progrpo.arm": gate.candidate, "progrpo.seed": str(gate.seed)}
    try:
        client, run_id = connect(summary)
    except Exception as error:  # mlflow, requests, sqlalchemy and sqlite3 each raise their own
        raise PromotionError(
            f"{decided}, but MLflow cannot be used, so nothing is registered: {describe_error(error)}. Check "
            f"MLFLOW_TRACKING_URI and run the step again, or set {SWITCH}=off."
        ) from error
    try:
        return register(client, run_id, gate, training_uri, tags)
    except Exception as error:  # and boto3
        raise PromotionError(
            f"{decided}, but MLflow did not take it as {gate.model!r}: {describe_error(error)}. Run the step again "
            f"when that is mended."
        ) from error


def _check_training(gate: GateResult, training_uri: str) -> None:
    if not training_uri:
        raise ConfigError(
            f"the training run of {gate.candidate} seed {gate.seed} was not given to compare, so its checkpoint cannot "
            f"be registered. Give it in trainings."
        )
    path = local_path(training_uri)
    if path is None:
        return  # an object store's artifact was verified by the step that measured it
    digest = read_manifest(path / "checkpoint", "checkpoint").digest
    if digest != gate.checkpoint_digest:
        raise ConfigError(
            f"{path} made checkpoint {digest[:12]}, but the gate judged {gate.checkpoint_digest[:12]}. Give the "
            f"training run of {gate.candidate} seed {gate.seed} that was evaluated."
        )


def finish(comparison: Path, gate: GateResult, registration: Registration | None, output: Path) -> Manifest:
    """Write promotion.json and its manifest, or fail the step where the gate says so.

    Raises:
        PromotionError: the outcome is one of the gate's ``fail_on``.
    """
    if gate.outcome in gate.fail_on:
        raise PromotionError(
            f"{gate.candidate}: {outcome_words(gate.outcome)}. {gate.reason}. The report is {comparison}/report.html."
        )
    output.mkdir(parents=True, exist_ok=True)
    content = {"gate": gate.model_dump(mode="json"), "registration": registration and vars(registration)}
    write_atomic(output / "promotion.json", json.dumps(content, indent=2) + "\n")
    shown = {} if registration is None else {"model": registration.model, "version": registration.version}
    return write_manifest(
        output,
        "promotion",
        inputs={"comparison": read_manifest(comparison, "comparison", verify=False).digest},
        metadata={"candidate": gate.candidate, "outcome": gate.outcome, **shown},
    )
