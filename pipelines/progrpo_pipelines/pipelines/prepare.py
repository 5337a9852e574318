"""The ``prepare`` pipeline: check dataset and checkpoint and put them into the cache, before a GPU is asked for."""

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
        "prepare",
        target,
        title="Prepare dataset and checkpoint",
        description="Check and import a dataset and a checkpoint; the other pipelines then find them in the cache.",
    )
    def prepare(form: wiring.Form) -> None:
        """Make the dataset and the checkpoint artifact."""
        wiring.prepare(wiring.validate("prepare", preset, target, form), target)

    return prepare
