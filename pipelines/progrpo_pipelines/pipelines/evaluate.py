"""The ``evaluate`` pipeline: measure any checkpoint."""

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
        name="evaluate",
        display_name="Evaluate a checkpoint",
        description="Measure Pass@k, entropy and diversity of a checkpoint on held-out problems.",
        pipeline_config=target.pipeline_config(),
    )
    def evaluate(
        checkpoint_uri: str,
        dataset_eval_uri: str,
        dataset_task: str,
        dataset_train_uri: str,
        eval_max_completion_tokens: int,
        eval_num_samples: int,
        eval_temperature: float,
        experiment: str,
        gpu_count: int,
        gpu_type: str,
        overrides: dict[str, Any],
        placement_node_selector: dict[str, Any],
        placement_tolerations: list[Any],
    ) -> None:
        """Measure a checkpoint on held-out problems.

        Args:
            checkpoint_uri: What is measured: a Hugging Face directory, s3://... or embedded://countdown-sft.
            dataset_eval_uri: JSONL, parquet or CSV file with the held-out problems; empty: split off the training file.
            dataset_task: How an answer is verified; of the files above and below.
            dataset_train_uri: File with training problems, which held-out ones may not repeat; empty: there are none.
            eval_max_completion_tokens: Longest completion in tokens.
            eval_num_samples: Completions for each held-out problem: the n of Pass@k.
            eval_temperature: Sampling temperature.
            experiment: MLflow experiment that the run is logged into.
            gpu_count: GPUs of the evaluation pod; 0: none.
            gpu_type: Resource name of the GPU, such as nvidia.com/gpu, nvidia.com/mig-3g.40gb or amd.com/gpu.
            overrides: Every other setting, such as {"evaluation": {"top_p": 0.9}}; checked by the first task.
            placement_node_selector: Labels of the GPU nodes, such as {"nvidia.com/gpu.product": "NVIDIA-L40S"}.
            placement_tolerations: Taints of the GPU nodes to tolerate: a list of {key, operator, value, effect}.
        """
        with wiring.finished("evaluate", target, experiment):
            checked = wiring.validate(
                "evaluate",
                preset,
                target,
                checkpoint_uri=checkpoint_uri,
                dataset_eval_uri=dataset_eval_uri,
                dataset_task=dataset_task,
                dataset_train_uri=dataset_train_uri,
                eval_max_completion_tokens=eval_max_completion_tokens,
                eval_num_samples=eval_num_samples,
                eval_temperature=eval_temperature,
                experiment=experiment,
                gpu_count=gpu_count,
                gpu_type=gpu_type,
                overrides=overrides,
                placement_node_selector=placement_node_selector,
                placement_tolerations=placement_tolerations,
            )
            data, model = wiring.prepare(checked, target)
            wiring.measure(
                model.outputs["checkpoint"],
                name="Evaluate",
                dataset=data.outputs["dataset"],
                settings=checked.outputs,
                experiment=experiment,
                target=target,
            )

    return evaluate
