"""Defaults of the pipelines' parameters, from the configuration's own models."""

from __future__ import annotations

from typing import Any

from progrpo.config import PIPELINES


def defaults_of(pipeline: str) -> dict[str, Any]:
    """Return every parameter's default as JSON values; what is absent by default is left out (KFP knows no null)."""
    return PIPELINES[pipeline]().model_dump(mode="json", exclude_none=True)
