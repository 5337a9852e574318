"""Train, evaluate and compare: the part that ``compare`` and ``train-and-evaluate`` share, as a pipeline in theirs.

kfp.local 2.17.0 puts the item of a loop in the place of every output that the loop takes from a task beside it; here
the loop takes them from the inputs of its pipeline.
"""

from typing import Any

from kfp import dsl

from progrpo_components.compare.component import compare_arms
from progrpo_components.launch_train.component import launch_train
from progrpo_components.promote.component import promote
from progrpo_components.train.component import train
from progrpo_pipelines.packaging.placement import PLACEMENT, place_on_cpu, place_on_gpu
from progrpo_pipelines.packaging.target import Target
from progrpo_pipelines.tasks.wiring import HOUR, THIS_RUN, Task, measure

# Two at a time: what kfp.local allows at most, and two one-thread workers beat one with two.
PARALLELISM = 2


def build(target: Target, *, by_trainjob: bool) -> Any:
    """Return the pipeline; its inputs are what :func:`inputs_of` gives.

    Args:
        target: what it is compiled for.
        by_trainjob: whether training runs by a TrainJob on several nodes, or in the pod of its step.
    """

    @dsl.pipeline(name="train-and-compare")  # type: ignore[untyped-decorator]  # kfp has no types
    def train_and_compare(
        runs: list[dict[str, Any]],
        train_config: dict[str, Any],
        evaluation: dict[str, Any],
        comparison: dict[str, Any],
        trainjob: dict[str, Any],
        experiment: str,
        gpu_type: str,
        gpu_count: str,
        cpu: str,
        memory: str,
        node_selector: dict[str, Any],
        tolerations: list[Any],
        node_affinity: dict[str, Any],
        dataset: dsl.Input[dsl.Dataset],
        checkpoint: dsl.Input[dsl.Model],
    ) -> None:
        """Train and evaluate every run, and compare them."""
        settings = {
            "evaluation": evaluation,
            "gpu_type": gpu_type,
            "gpu_count": gpu_count,
            "cpu": cpu,
            "memory": memory,
            "node_selector": node_selector,
            "tolerations": tolerations,
            "node_affinity": node_affinity,
        }
        measured = {"dataset": dataset, "settings": settings, "experiment": experiment, "target": target}
        start = measure(checkpoint, name="Evaluate start checkpoint", **measured)
        with dsl.ParallelFor(runs, name="Training runs", parallelism=PARALLELISM) as run:
            train_one, of_nodes = (launch_train, {"trainjob": trainjob}) if by_trainjob else (train, {})
            trained = train_one(
                run=run,
                config=train_config,
                experiment=experiment,
                **THIS_RUN,
                dataset=dataset,
                checkpoint=checkpoint,
                **of_nodes,
            )
            trained.set_display_name("Train").set_caching_options(False)
            place_on_gpu(trained, "launch-train" if by_trainjob else "train", target, settings)
            if target.train_retries:
                trained.set_retry(target.train_retries, "60s", 2, "600s")
            evaluated = measure(trained.outputs["training"], name="Evaluate", **measured)
        compared = compare_arms(
            config=comparison,
            experiment=experiment,
            **THIS_RUN,
            start=start.outputs["evaluation"],
            evaluations=dsl.Collected(evaluated.outputs["evaluation"]),
            trainings=dsl.Collected(trained.outputs["training"]),
        )
        compared.set_display_name("Compare").set_caching_options(False)
        place_on_cpu(compared, "compare", target, timeout_s=6 * HOUR, memory="16Gi")
        # Without a gate, too: Kubeflow counts a block as complete only when a container ends in it, so that one whose
        # last task is a condition that is not met is shown as running for ever, and so is all around it.
        promoted = promote(
            training_uri=compared.outputs["Output"],
            experiment=experiment,
            **THIS_RUN,
            comparison=compared.outputs["comparison"],
        )
        promoted.set_display_name("Promote").set_caching_options(False)
        place_on_cpu(promoted, "promote", target, timeout_s=HOUR)

    return train_and_compare


def inputs_of(checked: Task, *, dataset: Task, checkpoint: Task, experiment: Any) -> dict[str, Any]:
    """Return the inputs of the pipeline that train, evaluate and compare are.

    Args:
        checked: the validate-inputs task.
        dataset: the prepare-dataset task.
        checkpoint: the import-checkpoint task.
        experiment: parameter with the MLflow experiment.
    """
    return {
        "runs": checked.outputs["Output"],
        "experiment": experiment,
        "dataset": dataset.outputs["dataset"],
        "checkpoint": checkpoint.outputs["checkpoint"],
        "train_config": checked.outputs["train"],
        **{name: checked.outputs[name] for name in ("evaluation", "comparison", "trainjob", *PLACEMENT)},
    }
