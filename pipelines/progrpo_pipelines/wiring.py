"""What the pipelines share: their tasks, in order, and which of them may be cached."""

from __future__ import annotations

from typing import Any

from kfp import dsl

from progrpo_components.compare.component import compare
from progrpo_components.evaluate.component import evaluate
from progrpo_components.import_checkpoint.component import import_checkpoint
from progrpo_components.prepare_dataset.component import prepare_dataset
from progrpo_components.promote.component import promote
from progrpo_components.train.component import train
from progrpo_components.validate_inputs.component import validate_inputs

# Two at a time: what kfp.local allows at most, and two one-thread workers beat one with two threads.
PARALLELISM = 2

Task = Any  # kfp.dsl.PipelineTask; a pipeline parameter is a channel while a pipeline is traced


def validate(pipeline: str, **parameters: Any) -> Task:
    """Check the parameters first; nothing else starts before."""
    task = validate_inputs(pipeline=pipeline, **parameters)
    return task.set_display_name("Validate inputs").set_caching_options(False)


def prepare(dataset: Any, checkpoint: Any, *, after: Task) -> tuple[Task, Task]:
    """Make the dataset and the checkpoint artifact; the only tasks whose results may come from the cache."""
    data = prepare_dataset(config=dataset).set_display_name("Prepare dataset").after(after)
    model = import_checkpoint(config=checkpoint).set_display_name("Import checkpoint").after(after)
    return data.set_caching_options(True), model.set_caching_options(True)


def measure(model: Any, *, name: str, dataset: Task, evaluation: Any, experiment: Any) -> Task:
    """Evaluate a checkpoint or a training run."""
    task = evaluate(
        config=evaluation,
        experiment=experiment,
        run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
        dataset=dataset.outputs["dataset"],
        model=model,
    )
    return task.set_display_name(name).set_caching_options(False)


def train_and_compare(
    runs: Any,
    *,
    dataset: Task,
    checkpoint: Task,
    train_config: Any,
    evaluation: Any,
    comparison: Any,
    experiment: Any,
) -> Task:
    """Train and evaluate every run, evaluate the checkpoint they start from, compare, and promote if there is a gate.

    Args:
        runs: channel of validate-inputs' list of ``{arm, seed}``.
        dataset: the prepare-dataset task.
        checkpoint: the import-checkpoint task.
        train_config: parameter with the training configuration.
        evaluation: parameter with the evaluation configuration.
        comparison: parameter with the comparison configuration.
        experiment: parameter with the MLflow experiment.
    """
    measured = {"dataset": dataset, "evaluation": evaluation, "experiment": experiment}
    start = measure(checkpoint.outputs["checkpoint"], name="Evaluate start checkpoint", **measured)
    with dsl.ParallelFor(runs, name="Training runs", parallelism=PARALLELISM) as run:
        trained = train(
            run=run,
            config=train_config,
            experiment=experiment,
            run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            dataset=dataset.outputs["dataset"],
            checkpoint=checkpoint.outputs["checkpoint"],
        )
        trained.set_display_name("Train").set_caching_options(False)
        evaluated = measure(trained.outputs["training"], name="Evaluate", **measured)
    task = compare(
        config=comparison,
        experiment=experiment,
        run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
        start=start.outputs["evaluation"],
        evaluations=dsl.Collected(evaluated.outputs["evaluation"]),
        trainings=dsl.Collected(trained.outputs["training"]),
    )
    task.set_display_name("Compare").set_caching_options(False)
    # kfp.local resolves a condition on an output only where that is a return value.
    with dsl.If(task.outputs["Output"] != "none", name="There is a gate"):
        promoted = promote(
            training_uri=task.outputs["candidate_uri"],
            experiment=experiment,
            run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            comparison=task.outputs["comparison"],
        )
        promoted.set_display_name("Promote").set_caching_options(False)
    return task
