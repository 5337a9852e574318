"""The ``validate-inputs`` component. Its source is copied into the pipeline: imports stay inside the function.

kfp reads ``Optional[X]``, not ``X | None``.
"""

from typing import Any, Optional

from kfp import dsl

from progrpo_components import images


@dsl.component(base_image=images.CPU, packages_to_install=[], install_kfp_package=False)  # type: ignore[untyped-decorator]  # kfp has no types
def validate_inputs(
    pipeline: str,
    checkpoint: dict[str, Any],
    dataset: dict[str, Any],
    evaluation: dict[str, Any],
    experiment: str,
    comparison: Optional[dict[str, Any]] = None,  # noqa: UP045
    train: Optional[dict[str, Any]] = None,  # noqa: UP045
    arms: Optional[list[Any]] = None,  # noqa: UP045
    seeds: Optional[list[Any]] = None,  # noqa: UP045
    arm: Optional[dict[str, Any]] = None,  # noqa: UP045
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Check the parameters of a pipeline run, all at once, in a minute instead of after hours.

    Args:
        pipeline: name of the pipeline that the parameters are for.
        checkpoint: progrpo.config.CheckpointConfig.
        dataset: progrpo.config.DatasetConfig.
        evaluation: progrpo.config.EvaluateConfig.
        experiment: MLflow experiment.
        comparison: progrpo.config.CompareConfig.
        train: progrpo.config.TrainConfig.
        arms: list of progrpo.config.Arm, of compare.
        seeds: training seeds, of compare.
        arm: progrpo.config.Arm, of train-and-evaluate.
        seed: training seed, of train-and-evaluate.

    Returns:
        The training runs to make: a list of {arm, seed}.
    """
    given = {name: value for name, value in locals().items() if name != "pipeline" and value is not None}
    if arm is None:
        del given["seed"]  # kfp.local 2.17 cannot leave an integer out

    from progrpo_components import steps

    return steps.validate_inputs(pipeline, given)
