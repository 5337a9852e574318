"""The ``train-and-evaluate`` pipeline: one arm, one seed."""

from typing import Any

from kfp import dsl

from progrpo_pipelines import wiring
from progrpo_pipelines.presets import defaults_of

_D = defaults_of("train-and-evaluate")


@dsl.pipeline(  # type: ignore[untyped-decorator]  # kfp has no types
    name="train-and-evaluate",
    display_name="Train and evaluate",
    description="Train one checkpoint by one algorithm and compare it with what it was before, on held-out problems.",
)
def train_and_evaluate(
    arm: dict[str, Any] = _D["arm"],
    checkpoint: dict[str, Any] = _D["checkpoint"],
    comparison: dict[str, Any] = _D["comparison"],
    dataset: dict[str, Any] = _D["dataset"],
    evaluation: dict[str, Any] = _D["evaluation"],
    experiment: str = _D["experiment"],
    seed: int = _D["seed"],
    train: dict[str, Any] = _D["train"],
) -> None:
    """Train one arm with one seed and compare it with the checkpoint it started from.

    Args:
        arm: What is trained: {name, algorithm: {type: grpo|progrpo, ...}}.
        checkpoint: Where training starts: {uri, dtype, ...}; uri is a directory, s3:// or embedded://NAME.
        comparison: How it is compared: {baseline, num_resamples, level, seed}; baseline start is the checkpoint before.
        dataset: The problems: {source: {type: countdown|file, ...}, system_prompt, max_dropped_frac}.
        evaluation: How a checkpoint is measured: {num_samples, ks, temperature, top_p, max_completion_tokens, ...}.
        experiment: MLflow experiment that the runs are logged into.
        seed: Training seed.
        train: How it is trained: {steps, prompts_per_step, group_size, learning_rate, loss: {...}, ...}.
    """
    # A loop over the one run, so that compare gets lists here too and both pipelines run the very same tasks.
    runs = wiring.validate(
        "train-and-evaluate",
        arm=arm,
        checkpoint=checkpoint,
        comparison=comparison,
        dataset=dataset,
        evaluation=evaluation,
        experiment=experiment,
        seed=seed,
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
