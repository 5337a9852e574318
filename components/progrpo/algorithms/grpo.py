"""GRPO: the group-relative advantage."""

from __future__ import annotations

from typing import Literal

from progrpo.algorithms.base import Algorithm


class GRPO(Algorithm):
    """The group-relative advantage alone (DeepSeekMath, arXiv:2402.03300)."""

    type: Literal["grpo"] = "grpo"
