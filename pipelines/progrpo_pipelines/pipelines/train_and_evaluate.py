"""The ``train-and-evaluate`` pipeline: one arm, one seed, against the checkpoint it started from."""

from collections.abc import Mapping
from typing import Any

from progrpo_pipelines.packaging.target import Target
from progrpo_pipelines.tasks import training, wiring


def build(preset: Mapping[str, Any], target: Target) -> Any:
    """Return the KFP pipeline; its defaults are set when it is compiled.

    Args:
        preset: settings that it brings along.
        target: what it is compiled for.
    """
    # First: kfp makes one pipeline at a time.
    train_and_compare = training.build(target, by_trainjob="trainjob" in preset)

    @wiring.pipeline(
        "train-and-evaluate",
        target,
        title="Train and evaluate",
        description="Train one checkpoint by one algorithm and compare it with what it was before, on held-out "
        "problems.",
    )
    def train_and_evaluate(form: wiring.Form) -> None:
        """Train one arm with one seed and compare it with the checkpoint it started from."""
        with wiring.finished("train-and-evaluate", target, form["experiment"]):
            checked = wiring.validate("train-and-evaluate", preset, target, form)
            # A loop over the one run, so that both pipelines run the very same tasks.
            data, start = wiring.prepare(checked, target)
            inputs = training.inputs_of(checked, dataset=data, checkpoint=start, experiment=form["experiment"])
            train_and_compare(**inputs).set_display_name("Train and compare").set_caching_options(False)

    return train_and_evaluate
