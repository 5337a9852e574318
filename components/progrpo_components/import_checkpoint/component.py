"""The ``import-checkpoint`` component. Its source is copied into the pipeline: imports stay inside the function."""

from typing import Any

from kfp import dsl

from progrpo_components import images


@dsl.component(base_image=images.CPU, packages_to_install=[], install_kfp_package=False)  # type: ignore[untyped-decorator]  # kfp has no types
def import_checkpoint(config: dict[str, Any], checkpoint: dsl.Output[dsl.Model]) -> None:
    """Bring in a Hugging Face checkpoint and check architecture, tokenizer and chat template before any GPU is held.

    Args:
        config: progrpo.config.CheckpointConfig.
        checkpoint: the checkpoint artifact, a directory of safetensors and tokenizer files.
    """
    from pathlib import Path

    from progrpo_components import steps

    manifest = steps.import_checkpoint(config, output=Path(checkpoint.path))
    checkpoint.metadata.update(steps.describe(manifest))
