"""The algorithms as pure functions on tensors: torch only, no engine.

Read in this order: :mod:`~progrpo.algorithms.advantage` (GRPO), :mod:`~progrpo.algorithms.confidence` (what ProGRPO
measures), :mod:`~progrpo.algorithms.arm` (what it does with it). docs/paper.md says what is the paper's, what is
inferred and what is ours.
"""

from progrpo.algorithms.advantage import group_relative_advantage
from progrpo.algorithms.arm import arm_gate, reweight_advantages
from progrpo.algorithms.confidence import (
    answer_confidence,
    group_mean_confidence,
    predicted_tokens,
    prompt_confidence,
    tail_size,
)

__all__ = [
    "answer_confidence",
    "arm_gate",
    "group_mean_confidence",
    "group_relative_advantage",
    "predicted_tokens",
    "prompt_confidence",
    "reweight_advantages",
    "tail_size",
]
