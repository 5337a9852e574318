"""The steps: configuration, progress and tracking around one library function each.

The KFP components and ``progrpo step`` call the same functions. Numbers that KFP turned into floats inside structs are
taken for the integers they were; a configuration that is wrong raises :class:`progrpo.errors.ConfigError` before
anything is read or written. The library is imported inside the functions: naming a step needs no torch.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from progrpo.config import (
    MAX_SEED,
    Arm,
    CheckpointConfig,
    CompareConfig,
    Config,
    DatasetConfig,
    EvaluateConfig,
    TrainConfig,
    parse,
)
from progrpo.errors import ConfigError, ManifestError, StorageError
from progrpo.manifest import MANIFEST_NAME, Kind, Manifest, read_manifest
from progrpo.metrics import TRAIN_WALL_TIME
from progrpo_components.reporting import reported
from progrpo_components.settings import TrainJobConfig
from progrpo_components.tracking.place import RUN_NAME_VARIABLE as RUN_NAME_VARIABLE
from progrpo_components.tracking.place import Place, is_off, locate, summary_name
from progrpo_components.tracking.server import RUN_ID_VARIABLE as RUN_ID_VARIABLE
from progrpo_components.tracking.summaries import identity_of, read_evaluation, summaries_of

if TYPE_CHECKING:
    from progrpo.training.launch import Nodes
    from progrpo_components.tracking import Tracker
    from progrpo_components.trainjob.spec import TaskConfig
    from progrpo_components.validation import Resolved

START = "start"


class Run(Config):
    """One training run of a pipeline: what its loop goes over."""

    arm: Arm
    seed: int = Field(0, ge=0, le=MAX_SEED)


class Tracking(Config):
    """Where a step's numbers go in MLflow; the server itself is named by the environment."""

    experiment: str = Field("progrpo", min_length=1, max_length=200)
    run_id: str = Field(min_length=1, description="of the pipeline run: one summary run per (run_id, arm, seed)")
    run_name: str = Field("", description="of the pipeline run, as shown; absent: run_id")

    def locate(
        self,
        task: str,
        arm: str | None = None,
        seed: int | None = None,
        tags: Mapping[str, str] | None = None,
        *,
        own: bool = False,
    ) -> Place:
        """Return the MLflow run of a step; see :func:`progrpo_components.tracking.locate`."""
        where = {"experiment": self.experiment, "pipeline_run_id": self.run_id, "run_name": self.run_name}
        return locate(**where, task=task, arm=arm, seed=seed, tags=tags, own=own)

    @classmethod
    def of_pipeline(cls, experiment: str, run_id: str, run_name: str = "") -> Tracking:
        """Track for a task of the pipeline run ``run_id``, which people know as ``run_name``.

        ``progrpo run`` names its runs by environment: the ids that kfp.local makes up are eight random digits.
        """
        if RUN_ID_VARIABLE in os.environ:
            run_id = os.environ[RUN_ID_VARIABLE]
            run_name = os.environ.get(RUN_NAME_VARIABLE, run_id)
        given = {"experiment": experiment} if experiment else {}  # an empty field of the form: the default
        return parse(cls, {**given, "run_id": run_id, "run_name": run_name}, source="tracking")


def validate_inputs(
    pipeline: str,
    form: Mapping[str, Any],
    *,
    preset: Mapping[str, Any] | None = None,
    train_retries: int = 0,
    card: Path | None = None,
    output_uri: str | None = None,
) -> Resolved:
    """Check everything about a pipeline run that can be known before any of its work starts.

    Args:
        pipeline: its name, one of :data:`progrpo_components.settings.PIPELINES`.
        form: what was submitted; see :mod:`progrpo_components.form`.
        preset: settings that the compiled package brings along.
        train_retries: how often the compiled package has a failed training tried again.
        card: Markdown file to write, with the settings of the run and the warnings.
        output_uri: where Kubeflow puts an output of this step.

    Returns:
        The training runs, seed by seed and arm by arm, the checked settings of each step, the inputs' identities.

    Raises:
        ConfigError, DataError, CheckpointError, StorageError: everything that cannot work, and how to mend it.
    """
    with reported("validate-inputs"):
        from progrpo_components.cards import inputs_card
        from progrpo_components.validation import validate

        found = validate(pipeline, form, preset=preset or {}, train_retries=train_retries, output_uri=output_uri)
        if card is not None:
            model, dataset = found.checkpoint.model, found.dataset
            text = inputs_card(
                pipeline,
                found.settings.model_dump(mode="json", exclude_none=True),
                runs=found.resolved.runs,
                checkpoint={"model": model.name, "parameters": model.num_parameters} if model else {},
                dataset={"training problems": dataset.num_train, "held-out problems": dataset.num_heldout},
                warnings=found.findings.warnings,
            )
            card.write_text(text, encoding="utf-8")
        return found.resolved


def finish(
    pipeline: str,
    *,
    experiment: str,
    run_id: str,
    run_name: str = "",
    state: str,
    error: str = "",
    workflow: str = "",
) -> str:
    """End what a pipeline run left open in MLflow; the last step of every run, however it went.

    Args:
        pipeline: its name.
        experiment: MLflow experiment.
        run_id: of the pipeline run.
        run_name: of the pipeline run, as shown; absent: its id.
        state: how it ended, in a word of Kubeflow: see :data:`progrpo_components.ending.SAID`.
        error: of the task that failed; always empty on a cluster.
        workflow: name of the workflow that the pipeline run is.

    Returns:
        Markdown that says how it ended.
    """
    from progrpo_components.cards import run_card
    from progrpo_components.ending import judge, read_workflow
    from progrpo_components.tracking import close_runs, runs_of_pipeline

    tracking = Tracking.of_pipeline(experiment, run_id, run_name)
    runs = runs_of_pipeline(experiment=tracking.experiment, pipeline_run_id=tracking.run_id)
    ending = judge(pipeline, state, runs, read_workflow(workflow))
    closed = close_runs(runs, ending.outcome)
    return run_card(pipeline, run_id=tracking.run_id, ending=ending, error=error, closed=closed)


def prepare_dataset(config: Mapping[str, Any], *, output: Path, identity: str | None = None) -> Manifest:
    """Make the dataset artifact.

    Args:
        config: a :class:`progrpo.config.DatasetConfig`.
        output: directory of the artifact.
        identity: what the cache will know the result by; see :func:`_check_identity`. None: not checked.
    """
    with reported("prepare-dataset", output=output) as progress:
        from progrpo.data.prepare import prepare_dataset as run
        from progrpo.inputs import dataset_identity

        settings = parse(DatasetConfig, config, source="dataset")
        manifest = run(settings, output, progress=progress)
        if identity is not None:
            _check_identity(identity, dataset_identity(settings))
        return manifest


def import_checkpoint(config: Mapping[str, Any], *, output: Path, identity: str | None = None) -> Manifest:
    """Make the checkpoint artifact.

    Args:
        config: a :class:`progrpo.config.CheckpointConfig`.
        output: directory of the artifact.
        identity: what the cache will know the result by; see :func:`_check_identity`. None: not checked.
    """
    with reported("import-checkpoint", output=output) as progress:
        _preload("progrpo.checkpoints.importer", "transformers:AutoTokenizer")
        from progrpo.checkpoints.importer import import_checkpoint as run
        from progrpo.identity import identify

        settings = parse(CheckpointConfig, config, source="checkpoint")
        manifest = run(settings, output, progress=progress)
        if identity is not None:
            _check_identity(identity, identify(settings.uri).digest)
        return manifest


def _check_identity(looked_at: str, read: str) -> None:
    """Refuse what changed between the first task's look and the reading: the cache would know it by a wrong key."""
    if read != looked_at:
        raise StorageError("what lies at the URI changed while the run was under way. Submit the run again.")


def train(
    run: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    dataset: Path,
    checkpoint: Path,
    output: Path,
    tracking: Tracking | None = None,
    nodes: Nodes | None = None,
) -> Manifest:
    """Train one arm with one seed.

    Args:
        run: a :class:`Run`.
        config: a :class:`progrpo.config.TrainConfig`.
        dataset: dataset artifact.
        checkpoint: checkpoint artifact to start from.
        output: directory of the training run.
        tracking: the summary run to log into; None: nowhere.
        nodes: those that train together, each of which makes this call; None: this machine alone.
    """
    parsed = parse(Run, run, source="run")
    arm, seed = parsed.arm, parsed.seed
    with reported("train", arm=arm.name, seed=seed, output=output) as progress:
        settings = parse(TrainConfig, config, source="train")
        inputs = _check_artifacts({"dataset": dataset, "checkpoint": checkpoint})
        launches = nodes is not None or settings.distributed.num_processes > 1  # then this process watches its ranks
        trains = () if launches else ("progrpo.training.trainer", "progrpo.training.train")
        _preload(*trains)
        library_train: Callable[..., Manifest]
        if launches:
            from progrpo.training.launch import launch

            library_train = partial(launch, nodes=nodes)
        else:
            from progrpo.training.train import train as library_train

        tags = {"progrpo.algorithm": arm.algorithm.type, **inputs}
        with _tracker(tracking, "train", output, arm.name, seed, tags, system_metrics=True) as tracker:
            sinks = []
            if tracker is not None:
                tracker.log_params(parsed.model_dump(mode="json"))
                tracker.log_config("train", settings.model_dump(mode="json"))
                tracker.log_dataset(dataset, contexts={"train": "training", "eval": "evaluation"})
                sinks.append(tracker)
            manifest = library_train(
                arm,
                seed,
                settings,
                dataset=dataset,
                checkpoint=checkpoint,
                output=output,
                run_id=os.environ.get(RUN_ID_VARIABLE, "run") if tracking is None else tracking.run_id,
                sinks=sinks,
                progress=progress,
            )
            if tracker is not None:
                if "train_wall_time_s" in manifest.metadata:
                    tracker.log_metrics({TRAIN_WALL_TIME: float(manifest.metadata["train_wall_time_s"])})
                trained = read_manifest(output / "checkpoint", "checkpoint", verify=False)
                tracker.set_tags({"progrpo.trained_checkpoint_digest": trained.digest})
                tracker.log_record("training", output)
        return _with_run(manifest, tracker)


def launch_train(
    run: Mapping[str, Any],
    config: Mapping[str, Any],
    trainjob: Mapping[str, Any],
    *,
    dataset: Path,
    checkpoint: Path,
    uris: Mapping[str, str],
    task: TaskConfig | None = None,
    tracking: Tracking,
) -> tuple[Manifest, str]:
    """Train one arm with one seed on several nodes, by a TrainJob; needs no torch.

    Args:
        run: a :class:`Run`.
        config: a :class:`progrpo.config.TrainConfig`; its ranks are those of all nodes.
        trainjob: a :class:`progrpo_components.settings.TrainJobConfig`.
        dataset: dataset artifact, looked at before GPUs are asked for; the nodes take it by its URI.
        checkpoint: checkpoint artifact to start from, likewise.
        uris: of ``dataset``, ``checkpoint`` and the ``training`` run to be written.
        task: resources and placement of the nodes.
        tracking: the pipeline run, and where the first node logs.

    Returns:
        The manifest of the training run and its URI, where the first node wrote it.
    """
    parsed = parse(Run, run, source="run")
    with reported("train", arm=parsed.arm.name, seed=parsed.seed):
        settings = parse(TrainConfig, config, source="train")
        how = parse(TrainJobConfig, trainjob, source="trainjob")
        _check_artifacts({"dataset": dataset, "checkpoint": checkpoint})
        from progrpo_components.trainjob.artifacts import plain_uri
        from progrpo_components.trainjob.job import WorkerJob
        from progrpo_components.trainjob.launcher import launch

        job = WorkerJob(
            run=parsed,
            train=settings,
            dataset=plain_uri(uris["dataset"]),
            checkpoint=plain_uri(uris["checkpoint"]),
            output=uris["training"],  # as it is: Kubeflow refuses an output that does not begin as its root does
            run_id=tracking.run_id,
            tracking=tracking,
        )
        return launch(job, how, task=task)


def evaluate(
    config: Mapping[str, Any],
    *,
    dataset: Path,
    model: Path,
    output: Path,
    tracking: Tracking | None = None,
) -> Manifest:
    """Measure the start checkpoint or what a training run made of it.

    Args:
        config: a :class:`progrpo.config.EvaluateConfig`.
        dataset: dataset artifact; its held-out problems are used.
        model: a checkpoint artifact, evaluated as ``start``, or a training run, whose arm and seed its manifest names.
        output: directory of the evaluation.
        tracking: the summary run to log into; None: nowhere.
    """
    run = _run_of(model)
    arm_name, seed = (run.arm.name, run.seed) if run else (START, None)
    with reported("evaluate", arm=arm_name, seed=seed, output=output) as progress:
        settings = parse(EvaluateConfig, config, source="evaluation")
        inputs = _check_artifacts({"dataset": dataset})
        _preload(
            "progrpo.generation.transformers_engine",
            "transformers:AutoModelForCausalLM",
            "progrpo.evaluation.evaluate",
        )
        from progrpo.evaluation.evaluate import evaluate as library_evaluate

        tags = (
            {"progrpo.algorithm": run.arm.algorithm.type} if run else inputs | _check_artifacts({"checkpoint": model})
        )
        with _tracker(tracking, "evaluate", output, arm_name, seed, tags, system_metrics=True) as tracker:
            manifest = library_evaluate(
                settings,
                dataset=dataset,
                checkpoint=model / "checkpoint" if run else model,
                output=output,
                arm=run.arm if run else None,
                seed=seed,
                training=model if run else None,
                progress=progress,
            )
            if tracker is not None:
                tracker.log_config("evaluation", settings.model_dump(mode="json"))
                if run is None:
                    tracker.log_dataset(dataset, contexts={"eval": "evaluation"})
                tracker.log_metrics(read_metrics(output))
                tracker.log_record("evaluation", output)
        return _with_run(manifest, tracker)


def compare(
    config: Mapping[str, Any],
    *,
    evaluations: Sequence[Path],
    trainings: Sequence[Path] = (),
    output: Path,
    names: Mapping[Path, str] | None = None,
    tracking: Tracking | None = None,
) -> Manifest:
    """Compare evaluations, and log the report into the MLflow run of the pipeline run, which ends with it.

    Args:
        config: a :class:`progrpo.config.CompareConfig`.
        evaluations: evaluation artifacts.
        trainings: the training runs behind them, for curves and wall times.
        output: directory of the comparison.
        names: of the arms of some evaluations and training runs, where their own will not do; given, if only as {},
            where they were made by other pipeline runs.
        tracking: the pipeline run it belongs to; None: nowhere.
    """
    with reported("compare", output=output) as progress:
        settings = parse(CompareConfig, config, source="comparison")
        _preload("progrpo.comparison.compare", "plotly.graph_objects", "matplotlib")
        from progrpo.comparison.compare import compare as library_compare

        with _tracker(tracking, "compare", output) as tracker:
            manifest = library_compare(
                settings, evaluations=evaluations, trainings=trainings, output=output, names=names, progress=progress
            )
            if tracker is not None and tracking is not None:
                if names is None:  # else they come from other pipeline runs, whose summary runs have all of it
                    tracker.log_summaries(summaries_of(tracking.locate("compare"), evaluations, trainings))
                tracker.log_config("comparison", settings.model_dump(mode="json"))
                from progrpo_components.promotion import read_gate

                tracker.log_metrics(read_comparison_metrics(output))
                if (gate := read_gate(output)) is not None:
                    tracker.set_tags({"progrpo.gate": gate.outcome, "progrpo.gate_reason": gate.reason[:5000]})
                tracker.log_artifacts(output)
        return _with_run(manifest, tracker)


def promote(*, comparison: Path, training_uri: str, output: Path, tracking: Tracking | None = None) -> Manifest:
    """Do what the gate of a comparison decided: register the candidate in MLflow, and fail where it is told to.

    Args:
        comparison: comparison artifact with a gate.
        training_uri: the candidate's training run: a path, or the URI of an object store; see :func:`find_candidate`.
        output: directory of promotion.json, written if the step does not fail.
        tracking: the pipeline run it belongs to; None: nothing is registered.

    Raises:
        ConfigError: the comparison has no gate, or the training run was not given to it.
        PromotionError: the outcome is one of the gate's ``fail_on``, or MLflow did not take the registration.
    """
    with reported("promote", output=output):
        from progrpo_components.promotion import finish, read_gate, register_candidate

        gate = read_gate(comparison)
        if gate is None:
            raise ConfigError(f"{comparison} was compared without a gate. Give comparison.gate, and compare again.")
        registration = None
        if tracking is not None and not is_off():
            _preload("mlflow:MlflowClient")
            summary = tracking.locate("promote", gate.candidate, gate.seed, own=True)
            registration = register_candidate(summary, gate, training_uri, {"progrpo.pipeline_run_id": tracking.run_id})
        return finish(comparison, gate, registration, output)


def find_candidate(comparison: Path, trainings: Mapping[str, Path]) -> str:
    """Return the URI of the training run of a gate's candidate; empty without a gate, or if it was not given.

    Args:
        comparison: comparison artifact.
        trainings: training runs by URI.
    """
    from progrpo_components.promotion import read_gate

    gate = read_gate(comparison)
    if gate is None:
        return ""
    runs = {uri: _run_of(path) for uri, path in trainings.items()}
    found = (uri for uri, run in runs.items() if run and (run.arm.name, run.seed) == (gate.candidate, gate.seed))
    return next(found, "")


def read_comparison_metrics(comparison: Path) -> dict[str, float]:
    """Read the headline of a comparison as numbers under names that MLflow and KFP take."""
    from progrpo.comparison.exports import flat_metrics
    from progrpo.comparison.result import read_comparison

    return flat_metrics(read_comparison(comparison))


def read_metrics(evaluation: Path) -> dict[str, float]:
    """Read the values of ``evaluation.json`` without their intervals, under names that MLflow and KFP take."""
    return read_evaluation(evaluation)


def headline(evaluation: Path) -> dict[str, float]:
    """Return the few numbers of an evaluation that Kubeflow's pages show, rounded, each with its arm and seed.

    *Compare runs* lays the metrics of all evaluations into one table, in which every column has the same name.
    """
    values = read_metrics(evaluation)
    name = summary_name(*identity_of(read_manifest(evaluation, "evaluation", verify=False)))
    ks = sorted(int(key.removeprefix("eval/pass_at_")) for key in values if key.startswith("eval/pass_at_"))
    keys = dict.fromkeys((*(f"eval/pass_at_{k}" for k in (ks[0], ks[-1])), "eval/entropy", "eval/distinct_correct"))
    return {f"{name}/{key.removeprefix('eval/')}": round(values[key], 4) for key in keys if key in values}


def describe(manifest: Manifest) -> dict[str, str | int | float]:
    """Return what a KFP artifact shows of a manifest: digests, and the metadata that is a text or a number."""
    scalars = {key: value for key, value in manifest.metadata.items() if isinstance(value, str | int | float)}
    inputs = {f"{name}_digest": digest for name, digest in manifest.inputs.items()}
    return {"digest": manifest.digest, "created_by": manifest.created_by, **inputs, **scalars}


def _with_run(manifest: Manifest, tracker: Tracker | None) -> Manifest:
    """Return what the KFP artifact shall show: the manifest, which stays as it was written, and the MLflow run."""
    if tracker is None or tracker.run_id is None:
        return manifest
    return manifest.model_copy(update={"metadata": {**manifest.metadata, "mlflow_run_id": tracker.run_id}})


def _run_of(model: Path) -> Run | None:
    """Return arm and seed of a training run; None for a checkpoint."""
    try:
        manifest = read_manifest(model, "training", verify=False)
    except ManifestError:
        read_manifest(model, "checkpoint", verify=False)  # its error names both what was given and what is needed
        return None
    values = {"arm": manifest.config.get("arm"), "seed": manifest.config.get("seed")}
    return parse(Run, values, source=str(model / MANIFEST_NAME))


def _check_artifacts(inputs: Mapping[Kind, Path]) -> dict[str, str]:
    """Refuse a wrong directory before the imports, which take seconds; the library checks the contents.

    Returns:
        The digests, as tags.
    """
    return {f"progrpo.{kind}_digest": read_manifest(path, kind, verify=False).digest for kind, path in inputs.items()}


def _preload(*names: str) -> None:
    """Import a step's heavy modules with the garbage collector out of the way, then and when the process ends.

    It would traverse a million objects again and again and free none: with TRL and mlflow that takes 1.1 s of 5.6 s
    of importing and 1.3 s of 1.5 s of exiting (two-core AMD EPYC), in every step.

    Args:
        names: ``module`` or ``module:attribute``; transformers imports an attribute's module on its first use.
    """
    gc.disable()
    try:
        for name in names:
            module, _, attribute = name.partition(":")
            loaded = import_module(module)
            if attribute:
                getattr(loaded, attribute)
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def _tracker(
    tracking: Tracking | None,
    task: str,
    output: Path,
    arm: str | None = None,
    seed: int | None = None,
    tags: Mapping[str, str] | None = None,
    *,
    system_metrics: bool = False,
) -> Iterator[Tracker | None]:
    if tracking is None:
        yield None
        return
    from progrpo_components.tracking import open_tracking

    place = tracking.locate(task, arm, seed, tags)
    with open_tracking(place, output, system_metrics=system_metrics) as tracker:
        yield tracker
