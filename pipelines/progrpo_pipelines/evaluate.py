"""The ``evaluate`` pipeline: measure any checkpoint."""

from typing import Any

from kfp import dsl

from progrpo_pipelines import wiring
from progrpo_pipelines.presets import defaults_of

_D = defaults_of("evaluate")


@dsl.pipeline(  # type: ignore[untyped-decorator]  # kfp has no types
    name="evaluate",
    display_name="Evaluate a checkpoint",
    description="Measure Pass@k, entropy and diversity of a checkpoint on held-out problems.",
)
def evaluate(
    checkpoint: dict[str, Any] = _D["checkpoint"],
    dataset: dict[str, Any] = _D["dataset"],
    evaluation: dict[str, Any] = _D["evaluation"],
    experiment: str = _D["experiment"],
) -> None:
    """Measure a checkpoint on held-out problems.

    Args:
        checkpoint: What is measured: {uri, dtype, ...}; uri is a directory, s3:// or embedded://NAME.
        dataset: The problems: {source: {type: countdown|file, ...}, system_prompt, max_dropped_frac}.
        evaluation: How it is measured: {num_samples, ks, temperature, top_p, max_completion_tokens, ...}.
        experiment: MLflow experiment that the run is logged into.
    """
    checked = wiring.validate(
        "evaluate", checkpoint=checkpoint, dataset=dataset, evaluation=evaluation, experiment=experiment
    )
    data, model = wiring.prepare(dataset, checkpoint, after=checked)
    wiring.measure(
        model.outputs["checkpoint"], name="Evaluate", dataset=data, evaluation=evaluation, experiment=experiment
    )
