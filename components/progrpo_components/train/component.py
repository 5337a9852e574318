"""The ``train`` component. Its source is copied into the pipeline: imports stay inside the function."""

from typing import Any

from kfp import dsl

from progrpo_components import images


@dsl.component(base_image=images.GPU, packages_to_install=[], install_kfp_package=False)  # type: ignore[untyped-decorator]  # kfp has no types
def train(
    run: dict[str, Any],
    config: dict[str, Any],
    experiment: str,
    run_id: str,
    run_name: str,
    dataset: dsl.Input[dsl.Dataset],
    checkpoint: dsl.Input[dsl.Model],
    training: dsl.Output[dsl.Model],
) -> None:
    """Train one arm with one seed by GRPO or ProGRPO.

    Args:
        run: what is trained, {arm, seed}; an item of validate-inputs' list.
        config: progrpo.config.TrainConfig, the same for every arm.
        experiment: MLflow experiment.
        run_id: of the pipeline run, which its MLflow runs are tagged with.
        run_name: of the pipeline run, which its MLflow run is called by.
        dataset: problems; the training split is used.
        checkpoint: the checkpoint to start from.
        training: the training run: checkpoint/, metrics.jsonl, rollouts/.
    """
    from pathlib import Path

    from progrpo_components import steps

    manifest = steps.train(
        run,
        config,
        dataset=Path(dataset.path),
        checkpoint=Path(checkpoint.path),
        output=Path(training.path),
        tracking=steps.Tracking.of_pipeline(experiment, run_id, run_name),
    )
    training.metadata.update(steps.describe(manifest))
