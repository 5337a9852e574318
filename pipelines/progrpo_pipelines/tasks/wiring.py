"""What the pipelines share: their tasks, in order, where they run, and which may be cached or tried again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kfp import dsl

from progrpo_components.evaluate.component import evaluate_checkpoint
from progrpo_components.finish.component import finish
from progrpo_components.form import docstring_of, signature_of
from progrpo_components.import_checkpoint.component import import_checkpoint
from progrpo_components.prepare_dataset.component import prepare_dataset
from progrpo_components.validate_inputs.component import validate_inputs
from progrpo_pipelines.packaging.placement import place_on_cpu, place_on_gpu
from progrpo_pipelines.packaging.target import Target

Task = Any  # kfp.dsl.PipelineTask; a pipeline parameter is a channel while a pipeline is traced
Form = dict[str, Any]  # parameters of a pipeline, by name

MINUTE, HOUR = 60, 3600

THIS_RUN = {"run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER, "run_name": dsl.PIPELINE_JOB_NAME_PLACEHOLDER}
"""Arguments that Kubeflow fills in."""


def pipeline(name: str, target: Target, *, title: str, description: str) -> Callable[[Callable[[Form], None]], Any]:
    """Make a KFP pipeline, whose parameters are its form, of a function that takes the form.

    Args:
        name: of the pipeline.
        target: what it is compiled for.
        title: that Kubeflow shows.
        description: likewise.
    """

    def decorate(body: Callable[[Form], None]) -> Any:
        signature = signature_of(name)

        def definition(*channels: Any) -> None:
            body(dict(zip(signature.parameters, channels, strict=True)))

        definition.__signature__ = signature  # type: ignore[attr-defined]  # what inspect.signature answers
        definition.__name__, definition.__doc__ = body.__name__, docstring_of(name, body.__doc__ or "")
        return dsl.pipeline(
            name=name, display_name=title, description=description, pipeline_config=target.pipeline_config()
        )(definition)

    return decorate


@contextmanager
def finished(pipeline: str, target: Target, experiment: Any) -> Iterator[None]:
    """Run ``finish`` after the tasks of the block, however they end."""
    task = finish(pipeline=pipeline, experiment=experiment, **THIS_RUN)
    task.set_display_name("Finish").set_caching_options(False)
    place_on_cpu(task, "finish", target, timeout_s=15 * MINUTE, memory="2Gi")
    with dsl.ExitHandler(task, name="Run"):
        yield


def validate(pipeline: str, preset: Mapping[str, Any], target: Target, form: Form) -> Task:
    """Resolve and check the form first; every other task gets its settings from here, and none starts before."""
    task = validate_inputs(pipeline=pipeline, preset=dict(preset), train_retries=target.train_retries, **form)
    task.set_display_name("Validate inputs").set_caching_options(False)
    return place_on_cpu(task, "validate-inputs", target, timeout_s=30 * MINUTE)


def prepare(checked: Task, target: Target) -> tuple[Task, Task]:
    """Make the dataset and the checkpoint artifact.

    The only tasks whose results may come from the cache, whose key holds the identity of what lies at the URIs, and
    that are always tried again: they only read, and write a directory that appears whole or not at all.
    """
    data = prepare_dataset(config=checked.outputs["dataset"], identity=checked.outputs["dataset_identity"])
    data.set_display_name("Prepare dataset")
    model = import_checkpoint(config=checked.outputs["checkpoint"], identity=checked.outputs["checkpoint_identity"])
    model.set_display_name("Import checkpoint")
    for task, step, memory in ((data, "prepare-dataset", "8Gi"), (model, "import-checkpoint", "16Gi")):
        task.set_caching_options(True)
        task.set_retry(2, backoff_duration="30s", backoff_factor=2, backoff_max_duration="300s")
        place_on_cpu(task, step, target, timeout_s=6 * HOUR, memory=memory)
    return data, model


def measure(
    model: Any, *, name: str, dataset: Any, settings: Mapping[str, Any], experiment: Any, target: Target
) -> Task:
    """Evaluate a checkpoint or a training run; ``settings`` holds ``evaluation`` and the placement."""
    task = evaluate_checkpoint(
        config=settings["evaluation"],
        experiment=experiment,
        **THIS_RUN,
        dataset=dataset,
        model=model,
    )
    task.set_display_name(name).set_caching_options(False)
    return place_on_gpu(task, "evaluate", target, settings)
