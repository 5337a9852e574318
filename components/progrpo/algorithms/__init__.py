"""The algorithms: a module each, whose class holds the settings and the hooks of one algorithm.

Read in this order: :mod:`~progrpo.algorithms.base` (the hooks, and GRPO), :mod:`~progrpo.algorithms.progrpo` (the
paper). What they compute are pure functions on tensors (:mod:`~progrpo.algorithms.advantage`,
:mod:`~progrpo.algorithms.confidence`, :mod:`~progrpo.algorithms.shaping`, :mod:`~progrpo.algorithms.pass_at_k`,
:mod:`~progrpo.algorithms.covariance`), imported with torch by the hooks that need them: reading settings does not.
docs/algorithms.md has every equation and its source, docs/paper.md says what of ProGRPO is the paper's, what is
inferred and what is ours.
"""

from progrpo.algorithms.base import Algorithm, LossConfig, Method, Sampled, Update

__all__ = ["Algorithm", "LossConfig", "Method", "Sampled", "Update"]
