"""The base of all settings, and what they share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

ARM_NAME = r"^[a-z][a-z0-9_.-]{0,39}$"
START = "start"
"""Stands for the checkpoint before training where otherwise an arm is named."""
MIN_TEMPERATURE = 0.01  # below it, logits / temperature can overflow
MAX_SEED = 2**32 - 1  # of numpy; KFP, whose numbers are doubles, would round one above 2**53


class Config(BaseModel):
    """Base of all settings: unknown keys are refused, values cannot change after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)
