"""The ``compare`` pipeline: arms x seeds, the main job."""

from typing import Any

from kfp import dsl

from progrpo_pipelines import wiring
from progrpo_pipelines.presets import defaults_of

_D = defaults_of("compare")


@dsl.pipeline(  # type: ignore[untyped-decorator]  # kfp has no types
    name="compare",
    display_name="Compare training algorithms",
    description="Train every arm with every seed, measure Pass@k, entropy and diversity on held-out problems, compare.",
)
def compare(
    arms: list[Any] = _D["arms"],
    checkpoint: dict[str, Any] = _D["checkpoint"],
    comparison: dict[str, Any] = _D["comparison"],
    dataset: dict[str, Any] = _D["dataset"],
    evaluation: dict[str, Any] = _D["evaluation"],
    experiment: str = _D["experiment"],
    seeds: list[Any] = _D["seeds"],
    train: dict[str, Any] = _D["train"],
) -> None:
    """Train every arm with every seed from one checkpoint and compare them on held-out problems.

    Args:
        arms: What is compared: a list of {name, algorithm: {type: grpo|progrpo, ...}}.
        checkpoint: Where training starts: {uri, dtype, ...}; uri is a directory, s3:// or embedded://NAME.
        comparison: How arms are compared: {baseline, num_resamples, level, seed}; baseline is an arm's name, or start.
        dataset: The problems: {source: {type: countdown|file, ...}, system_prompt, max_dropped_frac}.
        evaluation: How a checkpoint is measured: {num_samples, ks, temperature, top_p, max_completion_tokens, ...}.
        experiment: MLflow experiment that the runs are logged into.
        seeds: Training seeds, one training run for each arm and seed.
        train: How every arm is trained: {steps, prompts_per_step, group_size, learning_rate, loss: {...}, ...}.
    """
    runs = wiring.validate(
        "compare",
        arms=arms,
        checkpoint=checkpoint,
        comparison=comparison,
        dataset=dataset,
        evaluation=evaluation,
        experiment=experiment,
        seeds=seeds,
        train=train,
    )
    data, start = wiring.prepare(dataset, checkpoint, after=runs)
    wiring.train_and_compare(
        runs.output,
        dataset=data,
        checkpoint=start,
        train_config=train,
        evaluation=evaluation,
        comparison=comparison,
        experiment=experiment,
    )
