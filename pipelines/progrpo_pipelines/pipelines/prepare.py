"""The ``prepare`` pipeline: check dataset and checkpoint and put them into the cache, before a GPU is asked for."""

from collections.abc import Mapping
from typing import Any

from kfp import dsl

from progrpo_pipelines.packaging.target import Target
from progrpo_pipelines.tasks import wiring


def build(preset: Mapping[str, Any], target: Target) -> Any:
    """Return the KFP pipeline; its defaults are set when it is compiled.

    Args:
        preset: settings that it brings along.
        target: what it is compiled for.
    """

    @dsl.pipeline(  # type: ignore[untyped-decorator]  # kfp has no types
        name="prepare",
        display_name="Prepare dataset and checkpoint",
        description="Check and import a dataset and a checkpoint; the other pipelines then find them in the cache.",
        pipeline_config=target.pipeline_config(),
    )
    def prepare(
        checkpoint_uri: str,
        dataset_eval_uri: str,
        dataset_task: str,
        dataset_train_uri: str,
        overrides: dict[str, Any],
    ) -> None:
        """Make the dataset and the checkpoint artifact.

        Args:
            checkpoint_uri: What is imported: a Hugging Face directory, s3://... or embedded://countdown-sft.
            dataset_eval_uri: JSONL, parquet or CSV file with the held-out problems; empty: split off the training file.
            dataset_task: How an answer is verified; of the files above and below.
            dataset_train_uri: File with the training problems; empty: the preset's, which is the embedded task.
            overrides: Every other setting, such as {"dataset": {"max_dropped_frac": 0.1}}; checked by the first task.
        """
        checked = wiring.validate(
            "prepare",
            preset,
            target,
            checkpoint_uri=checkpoint_uri,
            dataset_eval_uri=dataset_eval_uri,
            dataset_task=dataset_task,
            dataset_train_uri=dataset_train_uri,
            overrides=overrides,
        )
        wiring.prepare(checked, target)

    return prepare
