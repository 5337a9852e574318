"""The algorithms as pure functions on tensors: torch only, no engine.

Read in this order: :mod:`~progrpo.algorithms.advantage` (GRPO), :mod:`~progrpo.algorithms.confidence` (what ProGRPO
measures), :mod:`~progrpo.algorithms.arm` (what it does with it); then what others change: the reward
(:mod:`~progrpo.algorithms.shaping`), the advantage (:mod:`~progrpo.algorithms.pass_at_k`) or the tokens
(:mod:`~progrpo.algorithms.covariance`). docs/algorithms.md has every equation and its source, docs/paper.md says what
of ProGRPO is the paper's, what is inferred and what is ours.
"""

from progrpo.algorithms.advantage import group_relative_advantage, has_signal
from progrpo.algorithms.arm import arm_gate, reweight_advantages
from progrpo.algorithms.confidence import (
    answer_confidence,
    group_mean_confidence,
    predicted_tokens,
    prompt_confidence,
    tail_size,
)
from progrpo.algorithms.covariance import clip_cov_mask, clipped_tokens, kl_cov_mask, token_covariance
from progrpo.algorithms.pass_at_k import pass_at_k_advantage
from progrpo.algorithms.shaping import overlong_penalty, unlikeliness_rewards

__all__ = [
    "answer_confidence",
    "arm_gate",
    "clip_cov_mask",
    "clipped_tokens",
    "group_mean_confidence",
    "group_relative_advantage",
    "has_signal",
    "kl_cov_mask",
    "overlong_penalty",
    "pass_at_k_advantage",
    "predicted_tokens",
    "prompt_confidence",
    "reweight_advantages",
    "tail_size",
    "token_covariance",
    "unlikeliness_rewards",
]
