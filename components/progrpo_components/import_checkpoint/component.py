"""The ``import-checkpoint`` component. Its source is copied into the pipeline: imports stay inside the function."""

from typing import Any

from kfp import dsl

from progrpo_components import images


@dsl.component(base_image=images.CPU, packages_to_install=[], install_kfp_package=False)  # type: ignore[untyped-decorator]  # kfp has no types
def import_checkpoint(
    config: dict[str, Any], identity: str, checkpoint: dsl.Output[dsl.Model], card: dsl.Output[dsl.Markdown]
) -> None:
    """Bring in a Hugging Face checkpoint and check architecture, tokenizer and chat template before any GPU is held.

    Args:
        config: progrpo.config.CheckpointConfig.
        identity: of what lies at the URI, so that the cache knows a changed checkpoint from the one before.
        checkpoint: the checkpoint artifact, a directory of safetensors and tokenizer files.
        card: what is known of it.
    """
    from pathlib import Path

    from progrpo_components import cards, steps

    manifest = steps.import_checkpoint(config, output=Path(checkpoint.path), identity=identity)
    checkpoint.metadata.update({**steps.describe(manifest), "identity": identity})
    Path(card.path).write_text(cards.checkpoint_card(manifest), encoding="utf-8")
