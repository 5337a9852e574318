"""The ``validate-inputs`` component. Its source is copied into the pipeline: imports stay inside the function.

kfp reads ``Optional[X]``, not ``X | None``; kfp.local 2.17.0 cannot leave an integer out, and loops over no output but
one named Output.
"""

from typing import Any, NamedTuple, Optional

from kfp import dsl

from progrpo_components import images


@dsl.component(base_image=images.CPU, packages_to_install=[], install_kfp_package=False)  # type: ignore[untyped-decorator]  # kfp has no types
def validate_inputs(
    pipeline: str,
    preset: dict[str, Any],
    train_retries: int,
    overrides: dict[str, Any],
    checkpoint_uri: str,
    dataset_eval_uri: str,
    dataset_task: str,
    dataset_train_uri: str,
    card: dsl.Output[dsl.Markdown],
    algorithm: Optional[str] = None,  # noqa: UP045
    arms: Optional[list[Any]] = None,  # noqa: UP045
    eval_max_completion_tokens: int = 0,
    eval_num_samples: int = 0,
    eval_temperature: Optional[float] = None,  # noqa: UP045
    experiment: Optional[str] = None,  # noqa: UP045
    gpu_count: int = 0,
    gpu_type: Optional[str] = None,  # noqa: UP045
    placement_node_selector: Optional[dict[str, Any]] = None,  # noqa: UP045
    placement_tolerations: Optional[list[Any]] = None,  # noqa: UP045
    seed: int = 0,
    seeds: Optional[list[Any]] = None,  # noqa: UP045
    train_learning_rate: Optional[float] = None,  # noqa: UP045
    train_steps: int = 0,
) -> NamedTuple(  # type: ignore[valid-type]  # kfp reads the names and types from here
    "Resolved",
    [
        ("Output", list),
        ("checkpoint", dict),
        ("checkpoint_identity", str),
        ("dataset", dict),
        ("dataset_identity", str),
        ("train", dict),
        ("evaluation", dict),
        ("comparison", dict),
        ("trainjob", dict),
        ("gpu_type", str),
        ("gpu_count", str),
        ("cpu", str),
        ("memory", str),
        ("node_selector", dict),
        ("tolerations", list),
        ("node_affinity", dict),
    ],
):
    """Resolve the form to settings, and find in a minute what would fail after hours.

    Args:
        pipeline: name of the pipeline whose form it is.
        preset: settings that the compiled package brings along.
        train_retries: how often the compiled package has a failed training tried again.
        overrides: settings that the form has no field for.
        checkpoint_uri: field of the form, as are all that follow; docs/pipelines.md describes them.
        dataset_eval_uri: see there.
        dataset_task: see there.
        dataset_train_uri: see there.
        card: the settings of the run and what was found.
        algorithm: see there.
        arms: see there.
        eval_max_completion_tokens: see there.
        eval_num_samples: see there.
        eval_temperature: see there.
        experiment: see there.
        gpu_count: see there.
        gpu_type: see there.
        placement_node_selector: see there.
        placement_tolerations: see there.
        seed: see there.
        seeds: see there.
        train_learning_rate: see there.
        train_steps: see there.

    Returns:
        The training runs to make, a list of {arm, seed}; each step's checked settings; identities of what lies at the
        URIs; placement of the GPU tasks.
    """
    given = dict(locals())

    from pathlib import Path

    from progrpo_components import steps
    from progrpo_components.form import FIELDS

    form = {name: given[name] for name in ("overrides", *FIELDS.get(pipeline, ()))}
    checked = steps.validate_inputs(
        pipeline, form, preset=preset, train_retries=train_retries, card=Path(card.path), output_uri=card.uri
    )
    return tuple(checked)
