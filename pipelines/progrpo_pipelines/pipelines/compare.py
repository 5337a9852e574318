"""The ``compare`` pipeline: arms x seeds, the main job."""

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
        "compare",
        target,
        title="Compare training algorithms",
        description="Train every arm with every seed, measure Pass@k, entropy and diversity on held-out problems, "
        "compare.",
    )
    def compare(form: wiring.Form) -> None:
        """Train every arm with every seed from one checkpoint and compare them on held-out problems."""
        with wiring.finished("compare", target, form["experiment"]):
            checked = wiring.validate("compare", preset, target, form)
            data, start = wiring.prepare(checked, target)
            inputs = training.inputs_of(checked, dataset=data, checkpoint=start, experiment=form["experiment"])
            train_and_compare(**inputs).set_display_name("Train and compare").set_caching_options(False)

    return compare
