"""The ``finish`` component. Its source is copied into the pipeline: imports stay inside the function."""

from kfp import dsl

from progrpo_components import images


@dsl.component(base_image=images.CPU, packages_to_install=[], install_kfp_package=False)  # type: ignore[untyped-decorator]  # kfp has no types
def finish(
    pipeline: str,
    experiment: str,
    run_id: str,
    run_name: str,
    status: dsl.PipelineTaskFinalStatus,
    summary: dsl.Output[dsl.Markdown],
) -> None:
    """Close the MLflow runs that a failed or killed task left open, and say how the pipeline run ended.

    Args:
        pipeline: name of the pipeline.
        experiment: MLflow experiment.
        run_id: of the pipeline run, which its MLflow runs are tagged with.
        run_name: of the pipeline run, which its MLflow run is called by.
        status: how everything before ended.
        summary: how it ended, what failed and what was closed.
    """
    from pathlib import Path

    from progrpo_components import steps

    text = steps.finish(
        pipeline,
        experiment=experiment,
        run_id=run_id,
        run_name=run_name,
        state=status.state,
        error=status.error_message,
        workflow=status.pipeline_job_resource_name,
    )
    Path(summary.path).write_text(text, encoding="utf-8")
