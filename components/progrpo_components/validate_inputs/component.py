"""The ``validate-inputs`` component. Its source is copied into the pipeline: imports stay inside the function.

Its inputs are the fields of every form, so its source is written from their table when it is imported
(:data:`progrpo_components.form.FIELDS`). kfp reads ``Optional[X]``, not ``X | None``; kfp.local 2.17.0 cannot leave an
integer out, and loops over no output but one named Output.
"""

import linecache
from typing import Any, NamedTuple, Optional

from kfp import dsl

from progrpo_components import images
from progrpo_components.form import FIELDS

_SOURCE = """def validate_inputs(
    pipeline: str,
    preset: dict,
    train_retries: int,
    card: dsl.Output[dsl.Markdown],
    {inputs},
) -> NamedTuple(
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
    \"\"\"Resolve the form to settings, and find in a minute what would fail after hours.

    Args:
        pipeline: name of the pipeline whose form it is.
        preset: settings that the compiled package brings along.
        train_retries: how often the compiled package has a failed training tried again.
        card: the settings of the run and what was found.
        {described}

    Returns:
        The training runs to make, a list of {{arm, seed}}; each step's checked settings; identities of what lies at the
        URIs; placement of the GPU tasks.
    \"\"\"
    given = dict(locals())

    from pathlib import Path

    from progrpo_components import steps
    from progrpo_components.form import fields_of

    form = {{field.name: given[field.name] for field in fields_of(pipeline)}}
    checked = steps.validate_inputs(
        pipeline, form, preset=preset, train_retries=train_retries, card=Path(card.path), output_uri=card.uri
    )
    return tuple(checked)
"""


def _written() -> str:
    inputs = (
        f"{field.name}: int = 0" if field.type is int else f"{field.name}: Optional[{field.type.__name__}] = None"
        for field in FIELDS
    )
    described = (f"{field.name}: {field.what}" for field in FIELDS)
    return _SOURCE.format(inputs=",\n    ".join(inputs), described="\n        ".join(described))


def _component() -> Any:
    source, name = _written(), "<validate-inputs>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)  # where inspect looks for it
    namespace: dict[str, Any] = {"NamedTuple": NamedTuple, "Optional": Optional, "dsl": dsl, "__name__": __name__}
    exec(compile(source, name, "exec"), namespace)  # noqa: S102 - our own text, above
    return dsl.component(base_image=images.CPU, packages_to_install=[], install_kfp_package=False)(
        namespace["validate_inputs"]
    )


validate_inputs = _component()
