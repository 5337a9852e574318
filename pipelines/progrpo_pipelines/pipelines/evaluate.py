"""The ``evaluate`` pipeline: measure any checkpoint."""

from collections.abc import Mapping
from typing import Any

from progrpo_pipelines.packaging.target import Target
from progrpo_pipelines.tasks import wiring


def build(preset: Mapping[str, Any], target: Target) -> Any:
    """Return the KFP pipeline; its defaults are set when it is compiled.

    Args:
        preset: settings that it brings along.
        target: what it is compiled for.
    """

    @wiring.pipeline(
        "evaluate",
        target,
        title="Evaluate a checkpoint",
        description="Measure Pass@k, entropy and diversity of a checkpoint on held-out problems.",
    )
    def evaluate(form: wiring.Form) -> None:
        """Measure a checkpoint on held-out problems."""
        with wiring.finished("evaluate", target, form["experiment"]):
            checked = wiring.validate("evaluate", preset, target, form)
            data, model = wiring.prepare(checked, target)
            wiring.measure(
                model.outputs["checkpoint"],
                name="Evaluate",
                dataset=data.outputs["dataset"],
                settings=checked.outputs,
                experiment=form["experiment"],
                target=target,
            )

    return evaluate
