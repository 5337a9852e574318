"""The ``launch-train`` component. Its source is copied into the pipeline: imports stay inside the function."""

from typing import Any

from kfp import dsl

from progrpo_components import images


@dsl.component(  # type: ignore[untyped-decorator]  # kfp has no types
    base_image=images.CPU,
    packages_to_install=[],
    install_kfp_package=False,
    # Resources and placement are for the nodes and leave the launcher's own pod alone; it needs the environment, too.
    task_config_passthroughs=[
        dsl.TaskConfigField.RESOURCES,
        dsl.TaskConfigField.KUBERNETES_NODE_SELECTOR,
        dsl.TaskConfigField.KUBERNETES_TOLERATIONS,
        dsl.TaskConfigField.KUBERNETES_AFFINITY,
        dsl.TaskConfigPassthrough(field=dsl.TaskConfigField.ENV, apply_to_task=True),
        dsl.TaskConfigPassthrough(field=dsl.TaskConfigField.KUBERNETES_VOLUMES, apply_to_task=True),
    ],
)
def launch_train(
    run: dict[str, Any],
    config: dict[str, Any],
    trainjob: dict[str, Any],
    experiment: str,
    run_id: str,
    run_name: str,
    dataset: dsl.Input[dsl.Dataset],
    checkpoint: dsl.Input[dsl.Model],
    training: dsl.Output[dsl.Model],
    tc: dsl.TaskConfig = None,
) -> None:
    """Train one arm with one seed by GRPO or ProGRPO on several nodes, by a TrainJob of Kubeflow Trainer.

    Args:
        run: what is trained, {arm, seed}; an item of validate-inputs' list.
        config: progrpo.config.TrainConfig, the same for every arm; its ranks are those of all nodes.
        trainjob: progrpo_components.settings.TrainJobConfig, {num_nodes, queue, ...}.
        experiment: MLflow experiment.
        run_id: of the pipeline run, which its MLflow runs are tagged with.
        run_name: of the pipeline run, which its MLflow run is called by.
        dataset: problems; the training split is used.
        checkpoint: the checkpoint to start from.
        training: the training run: checkpoint/, metrics.jsonl, rollouts/; the first node writes it.
        tc: resources, placement and environment of this task, which Kubeflow fills in.
    """
    from pathlib import Path

    from progrpo_components import steps

    manifest, training.uri = steps.launch_train(
        run,
        config,
        trainjob,
        dataset=Path(dataset.path),
        checkpoint=Path(checkpoint.path),
        uris={"dataset": dataset.uri, "checkpoint": checkpoint.uri, "training": training.uri},
        task=tc,
        tracking=steps.Tracking.of_pipeline(experiment, run_id, run_name),
    )
    training.metadata.update(steps.describe(manifest))
