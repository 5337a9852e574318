"""The ``prepare-dataset`` component. Its source is copied into the pipeline: imports stay inside the function."""

from typing import Any

from kfp import dsl

from progrpo_components import images


@dsl.component(base_image=images.CPU, packages_to_install=[], install_kfp_package=False)  # type: ignore[untyped-decorator]  # kfp has no types
def prepare_dataset(
    config: dict[str, Any], identity: str, dataset: dsl.Output[dsl.Dataset], card: dsl.Output[dsl.Markdown]
) -> None:
    """Read or generate problems, check every row, split them, and report what was dropped.

    Args:
        config: progrpo.config.DatasetConfig.
        identity: of what lies at the URIs, so that the cache knows a changed file from the one before.
        dataset: the dataset artifact, a directory.
        card: counts, and what was dropped and why.
    """
    from pathlib import Path

    from progrpo_components import cards, steps

    manifest = steps.prepare_dataset(config, output=Path(dataset.path), identity=identity)
    dataset.metadata.update({**steps.describe(manifest), "identity": identity})
    Path(card.path).write_text(cards.dataset_card(Path(dataset.path), manifest), encoding="utf-8")
