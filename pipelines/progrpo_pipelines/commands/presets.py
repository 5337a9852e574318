"""``progrpo presets``: defaults for a purpose."""

from __future__ import annotations

import typer


def presets() -> None:
    """List the presets."""
    from progrpo_pipelines.packaging.presets import describe_preset, preset_names

    for name in preset_names():
        typer.echo(f"{name:<16} {describe_preset(name)}")
