"""The ``evaluate`` component. Its source is copied into the pipeline: imports stay inside the function.

Not named ``evaluate``: kfp's loader takes the component of a pipeline's name for the pipeline.
"""

from typing import Any

from kfp import dsl

from progrpo_components import images


@dsl.component(base_image=images.GPU, packages_to_install=[], install_kfp_package=False)  # type: ignore[untyped-decorator]  # kfp has no types
def evaluate_checkpoint(
    config: dict[str, Any],
    experiment: str,
    run_id: str,
    run_name: str,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    card: dsl.Output[dsl.Markdown],
) -> None:
    """Sample completions for every held-out problem and report Pass@k, entropy and distinct correct answers.

    Args:
        config: progrpo.config.EvaluateConfig.
        experiment: MLflow experiment.
        run_id: of the pipeline run, which its MLflow runs are tagged with.
        run_name: of the pipeline run, which its MLflow run is called by.
        dataset: problems; the held-out split is used.
        model: a checkpoint, or a training run, whose checkpoint is then measured.
        evaluation: samples.parquet and evaluation.json.
        metrics: a few of the values, named after arm and seed.
        card: the values with them.
    """
    from pathlib import Path

    from progrpo_components import cards, steps

    output = Path(evaluation.path)
    manifest = steps.evaluate(
        config,
        dataset=Path(dataset.path),
        model=Path(model.path),
        output=output,
        tracking=steps.Tracking.of_pipeline(experiment, run_id, run_name),
    )
    evaluation.metadata.update(steps.describe(manifest))
    for name, value in steps.headline(output).items():
        metrics.log_metric(name, value)
    Path(card.path).write_text(cards.evaluation_card(output, manifest), encoding="utf-8")
