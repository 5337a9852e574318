"""The ``compare`` component. Its source is copied into the pipeline: imports stay inside the function.

Not named ``compare``: kfp's loader takes the component of a pipeline's name for the pipeline.
"""

from typing import Any

from kfp import dsl

from progrpo_components import images


@dsl.component(base_image=images.CPU, packages_to_install=[], install_kfp_package=False)  # type: ignore[untyped-decorator]  # kfp has no types
def compare_arms(
    config: dict[str, Any],
    experiment: str,
    run_id: str,
    run_name: str,
    start: dsl.Input[dsl.Artifact],
    evaluations: dsl.Input[list[dsl.Artifact]],
    trainings: dsl.Input[list[dsl.Model]],
    comparison: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Compare arms with the baseline, paired by problem and over seeds, and write the report.

    Args:
        config: progrpo.config.CompareConfig.
        experiment: MLflow experiment.
        run_id: of the pipeline run, which its MLflow runs are tagged with.
        run_name: of the pipeline run, which its MLflow run is called by.
        start: evaluation of the checkpoint before training.
        evaluations: evaluations of the training runs.
        trainings: the training runs, for curves and wall times.
        comparison: comparison.json, gate.json, report.html, summary.md, tables and plots.
        report: report.html, as the Kubeflow UI shows it.
        summary: summary.md, likewise.
        metrics: the headline and its differences to the baseline, with their intervals.

    Returns:
        URI of the training run of the promotion gate's candidate; empty without a gate.
    """
    import shutil
    from pathlib import Path

    from progrpo_components import steps

    output = Path(comparison.path)
    manifest = steps.compare(
        config,
        evaluations=[Path(artifact.path) for artifact in [start, *evaluations]],
        trainings=[Path(artifact.path) for artifact in trainings],
        output=output,
        tracking=steps.Tracking.of_pipeline(experiment, run_id, run_name),
    )
    comparison.metadata.update(steps.describe(manifest))
    shutil.copyfile(output / "report.html", report.path)
    shutil.copyfile(output / "summary.md", summary.path)
    for name, value in steps.read_comparison_metrics(output).items():
        metrics.log_metric(name, value)
    return steps.find_candidate(output, {artifact.uri: Path(artifact.path) for artifact in trainings})
