"""The ``promote`` component. Its source is copied into the pipeline: imports stay inside the function."""

from kfp import dsl

from progrpo_components import images


@dsl.component(base_image=images.CPU, packages_to_install=[], install_kfp_package=False)  # type: ignore[untyped-decorator]  # kfp has no types
def promote(
    training_uri: str,
    experiment: str,
    run_id: str,
    run_name: str,
    comparison: dsl.Input[dsl.Artifact],
    promotion: dsl.Output[dsl.Artifact],
    card: dsl.Output[dsl.Markdown],
) -> None:
    """Register the candidate of the gate in MLflow as its outcome says, and fail where the gate says so.

    Without a gate nothing is done, and the card says so.

    Args:
        training_uri: the candidate's training run.
        experiment: MLflow experiment.
        run_id: of the pipeline run, which its MLflow runs are tagged with.
        run_name: of the pipeline run, which its MLflow run is called by.
        comparison: the comparison, with the gate's decision if it has a gate.
        promotion: promotion.json; nothing without a gate.
        card: the same, to look at.
    """
    from pathlib import Path

    from progrpo_components import cards, steps
    from progrpo_components.promotion import read_gate

    if read_gate(Path(comparison.path)) is None:
        Path(card.path).write_text(cards.NO_PROMOTION, encoding="utf-8")
        return
    manifest = steps.promote(
        comparison=Path(comparison.path),
        training_uri=training_uri,
        output=Path(promotion.path),
        tracking=steps.Tracking.of_pipeline(experiment, run_id, run_name),
    )
    promotion.metadata.update(steps.describe(manifest))
    Path(card.path).write_text(cards.promotion_card(Path(promotion.path)), encoding="utf-8")
