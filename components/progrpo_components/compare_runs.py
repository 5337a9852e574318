"""Compare what MLflow runs measured: fetch their evaluations, and make the comparison again from the completions."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progrpo.comparison.checks import protocol_differences
from progrpo.comparison.sources import Evaluation, read_evaluation
from progrpo.config import ARM_NAME, START, CompareConfig
from progrpo.errors import ComparisonError, ConfigError
from progrpo.manifest import MANIFEST_NAME, Manifest
from progrpo_components import steps
from progrpo_components.errors import PipelineError
from progrpo_components.steps import Tracking
from progrpo_components.tracking import describe_error
from progrpo_components.tracking.lineage import EVALUATION_PATH, TRAINING_PATH
from progrpo_components.tracking.server import server_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

MAX_RUNS = 200


@dataclass(frozen=True)
class Fetched:
    """What a summary run has of an evaluation.

    Attributes:
        run_id: of the MLflow run.
        name: of the run, as MLflow shows it.
        evaluation: the evaluation's directory.
        training: the record of the training behind it; None for a checkpoint, or where it was not logged.
    """

    run_id: str
    name: str
    evaluation: Path
    training: Path | None


def find_runs(client: MlflowClient, experiment: str, query: str) -> list[str]:
    """Return the ids of the runs of an experiment that a query of MLflow's finds and that have an evaluation.

    Raises:
        ConfigError: no such experiment, a query that MLflow refuses, nothing found, or more than may be compared.
    """
    found = client.get_experiment_by_name(experiment)
    if found is None:
        names = sorted(e.name for e in client.search_experiments(max_results=50))
        raise ConfigError(f"--experiment {experiment!r}: MLflow has none of that name. There are: {', '.join(names)}.")
    try:
        runs = client.search_runs([found.experiment_id], query, max_results=MAX_RUNS + 1)
    except Exception as error:
        if getattr(error, "error_code", "") != "INVALID_PARAMETER_VALUE":
            raise
        raise ConfigError(
            f"--filter {query!r}: {describe_error(error)}. An example: tags.`progrpo.run_name` = 'nightly'."
        ) from None
    if len(runs) > MAX_RUNS:
        raise ConfigError(f"--filter {query!r} finds more than {MAX_RUNS} runs. Narrow it.")
    measured = [str(run.info.run_id) for run in runs if _has_evaluation(client, str(run.info.run_id))]
    if not measured:
        raise ConfigError(
            f"none of the {len(runs)} runs that --filter {query!r} finds in {experiment!r} has an evaluation."
        )
    return measured


def fetch(client: MlflowClient, run_id: str, directory: Path) -> Fetched:
    """Download a run's evaluation, and its training's record.

    Raises:
        ConfigError: no such run.
        ComparisonError: a run without an evaluation.
    """
    try:
        run = client.get_run(run_id)
    except Exception as error:
        if getattr(error, "error_code", "") not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise ConfigError(f"MLflow has no run {run_id!r}. Give a run's id, or --experiment and --filter.") from None
    if not _has_evaluation(client, run_id):
        raise ComparisonError(
            f"run {run.info.run_name} ({run_id}) has no {EVALUATION_PATH}/{MANIFEST_NAME}, so no evaluation ended in "
            f"it. Give the runs that evaluated: ARM-seedN and {START}, or Kubeflow's of the evaluate tasks."
        )
    target = directory / run_id
    target.mkdir(parents=True, exist_ok=True)
    client.download_artifacts(run_id, EVALUATION_PATH, str(target))
    training = None
    if any(file.path == TRAINING_PATH for file in client.list_artifacts(run_id)):
        client.download_artifacts(run_id, TRAINING_PATH, str(target))
        training = target / TRAINING_PATH
    name = str(run.info.run_name)
    return Fetched(run_id, name, target / EVALUATION_PATH, training)


def compare_fetched(
    config: CompareConfig,
    fetched: Sequence[Fetched],
    output: Path,
    *,
    names: Mapping[str, str] | None = None,
    unlike: bool = False,
    tracking: Tracking | None = None,
) -> Manifest:
    """Compare evaluations that were fetched.

    Args:
        config: the baseline, and how intervals are made.
        fetched: what is compared; the same evaluation of the start checkpoint in several pipeline runs counts once.
        output: directory of the comparison.
        names: run id -> another name of its arm, to tell apart two arms that had the same name.
        unlike: compare although protocols differ; the report says so on top.
        tracking: where the comparison is logged; None: nowhere.

    Raises:
        ConfigError: a new name that is not allowed, or of a run that is not compared.
        ComparisonError: other problems, unlike protocols, or two runs of the same arm and seed.
    """
    names = names or {}
    for run_id, name in names.items():
        if run_id not in {each.run_id for each in fetched}:
            raise ConfigError(f"--name {run_id}={name}: that run is not among those compared.")
        if not re.fullmatch(ARM_NAME, name) or name == START:
            raise ConfigError(f"--name {run_id}={name}: not a name of an arm: {ARM_NAME}, and not {START!r}.")
    read = [(each, read_evaluation(each.evaluation, arm=names.get(each.run_id))) for each in fetched]
    read = _without_twins(read)
    _refuse_same_arm(read)
    if not unlike and (differing := protocol_differences([evaluation for _, evaluation in read])):
        raise ComparisonError(
            "the evaluations were made by different protocols:\n  "
            + "\n  ".join(differing)
            + "\nMeasure all of them in the same way, or give --unlike to compare them with that warning on top."
        )
    return steps.compare(
        config.model_dump(),
        evaluations=[each.evaluation for each, _ in read],
        trainings=[each.training for each, _ in read if each.training is not None],
        output=output,
        names={
            path: names[each.run_id]
            for each, _ in read
            for path in (each.evaluation, each.training)
            if path is not None and each.run_id in names
        },
        tracking=tracking,
    )


def _without_twins(read: Sequence[tuple[Fetched, Evaluation]]) -> list[tuple[Fetched, Evaluation]]:
    """Leave one of several evaluations of the same start checkpoint."""
    chosen: list[tuple[Fetched, Evaluation]] = []
    starts: set[str] = set()
    for each, evaluation in read:
        digest = evaluation.summary.checkpoint_digest
        if evaluation.arm == START and digest in starts:
            logger.info("%s (%s) measured the same start checkpoint again and is left out", each.name, each.run_id)
            continue
        if evaluation.arm == START:
            starts.add(digest)
        chosen.append((each, evaluation))
    return chosen


def _refuse_same_arm(read: Sequence[tuple[Fetched, Evaluation]]) -> None:
    seen: dict[tuple[str, int | None], Fetched] = {}
    for each, evaluation in read:
        twin = seen.setdefault((evaluation.arm, evaluation.seed), each)
        if twin is each:
            continue
        if evaluation.arm == START:
            raise ComparisonError(
                f"runs {twin.run_id} and {each.run_id} measured different start checkpoints. Compare runs that started "
                f"from one checkpoint, or leave one of the two out."
            )
        raise ComparisonError(
            f"runs {twin.run_id} and {each.run_id} are both {evaluation.label}. To compare them, give the arm another "
            f"name for the runs of one side: --name {each.run_id}={evaluation.arm}.2"
        )


def experiment_of(client: MlflowClient, run_id: str) -> str:
    """Return the name of a run's experiment."""
    return str(client.get_experiment(client.get_run(run_id).info.experiment_id).name)


def _has_evaluation(client: MlflowClient, run_id: str) -> bool:
    wanted = f"{EVALUATION_PATH}/{MANIFEST_NAME}"
    return any(file.path == wanted for file in client.list_artifacts(run_id, EVALUATION_PATH))


def connect() -> Any:
    """Return a client of the store that the environment names.

    Raises:
        ConfigError: it names none.
        PipelineError: it does not answer.
    """
    from mlflow import MlflowClient

    uri = server_uri()
    if not uri:
        raise ConfigError(
            "MLFLOW_TRACKING_URI is not set. Set it to the server, or to sqlite:///runs/mlflow.db for local runs."
        )
    try:
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    except Exception as error:
        raise PipelineError(f"MLflow cannot be used: {describe_error(error)}. Check MLFLOW_TRACKING_URI.") from None
    return client
