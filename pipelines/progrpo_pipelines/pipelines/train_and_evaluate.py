"""The ``train-and-evaluate`` pipeline: one arm, one seed."""

from collections.abc import Mapping
from typing import Any

from kfp import dsl

from progrpo_pipelines.packaging.target import Target
from progrpo_pipelines.tasks import training, wiring


def build(preset: Mapping[str, Any], target: Target) -> Any:
    """Return the KFP pipeline; its defaults are set when it is compiled.

    Args:
        preset: settings that it brings along.
        target: what it is compiled for.
    """
    train_and_compare = training.build(
        target, by_trainjob="trainjob" in preset
    )  # first: kfp makes one pipeline at a time

    @dsl.pipeline(  # type: ignore[untyped-decorator]  # kfp has no types
        name="train-and-evaluate",
        display_name="Train and evaluate",
        description="Train one checkpoint by one algorithm and compare it with what it was before, on held-out "
        "problems.",
        pipeline_config=target.pipeline_config(),
    )
    def train_and_evaluate(
        algorithm: str,
        checkpoint_uri: str,
        dataset_eval_uri: str,
        dataset_task: str,
        dataset_train_uri: str,
        eval_num_samples: int,
        experiment: str,
        gpu_count: int,
        gpu_type: str,
        overrides: dict[str, Any],
        placement_node_selector: dict[str, Any],
        placement_tolerations: list[Any],
        seed: int,
        train_learning_rate: float,
        train_steps: int,
    ) -> None:
        """Train one arm with one seed and compare it with the checkpoint it started from.

        Args:
            algorithm: What it is trained by; its own settings go into overrides: {"arm": {"algorithm": {...}}}.
            checkpoint_uri: Where training starts: a Hugging Face directory, s3://... or embedded://countdown-sft.
            dataset_eval_uri: JSONL, parquet or CSV file with the held-out problems; empty: split off the training file.
            dataset_task: How an answer is verified; of the files above and below.
            dataset_train_uri: File with the training problems; empty: the preset's, which is the embedded task.
            eval_num_samples: Completions for each held-out problem: the n of Pass@k.
            experiment: MLflow experiment that the runs are logged into.
            gpu_count: GPUs of each training and evaluation pod; 0: none.
            gpu_type: Resource name of the GPU, such as nvidia.com/gpu, nvidia.com/mig-3g.40gb or amd.com/gpu.
            overrides: Every other setting, such as {"train": {"group_size": 8}}; checked by the first task.
            placement_node_selector: Labels of the GPU nodes, such as {"nvidia.com/gpu.product": "NVIDIA-L40S"}.
            placement_tolerations: Taints of the GPU nodes to tolerate: a list of {key, operator, value, effect}.
            seed: Training seed.
            train_learning_rate: Learning rate.
            train_steps: Optimizer steps.
        """
        with wiring.finished("train-and-evaluate", target, experiment):
            checked = wiring.validate(
                "train-and-evaluate",
                preset,
                target,
                algorithm=algorithm,
                checkpoint_uri=checkpoint_uri,
                dataset_eval_uri=dataset_eval_uri,
                dataset_task=dataset_task,
                dataset_train_uri=dataset_train_uri,
                eval_num_samples=eval_num_samples,
                experiment=experiment,
                gpu_count=gpu_count,
                gpu_type=gpu_type,
                overrides=overrides,
                placement_node_selector=placement_node_selector,
                placement_tolerations=placement_tolerations,
                seed=seed,
                train_learning_rate=train_learning_rate,
                train_steps=train_steps,
            )
            # A loop over the one run, so that both pipelines run the very same tasks.
            data, start = wiring.prepare(checked, target)
            inputs = training.inputs_of(checked, dataset=data, checkpoint=start, experiment=experiment)
            train_and_compare(**inputs).set_display_name("Train and compare").set_caching_options(False)

    return train_and_evaluate
