"""Every algorithm by name: those built in, and those that installed packages offer as ``progrpo.algorithms``."""

from __future__ import annotations

from typing import Any

from progrpo import plugins
from progrpo.algorithms.base import Algorithm
from progrpo.algorithms.clip_cov import ClipCov
from progrpo.algorithms.dapo import DAPO
from progrpo.algorithms.dr_grpo import DrGRPO
from progrpo.algorithms.entropy_bonus import EntropyBonus
from progrpo.algorithms.forking_tokens import ForkingTokens
from progrpo.algorithms.grpo import GRPO
from progrpo.algorithms.gspo import GSPO
from progrpo.algorithms.kl_cov import KLCov
from progrpo.algorithms.passk import PassK
from progrpo.algorithms.progrpo import ProGRPO
from progrpo.algorithms.unlikeliness import Unlikeliness

GROUP = "progrpo.algorithms"
BUILT_IN: dict[str, type[Algorithm]] = {
    algorithm.model_fields["type"].default: algorithm
    for algorithm in (
        GRPO, ProGRPO, DrGRPO, DAPO, GSPO, EntropyBonus, ClipCov, KLCov, Unlikeliness, PassK, ForkingTokens,
    )
}  # fmt: skip


def plugin_algorithm(name: str) -> type[Algorithm] | None:
    """Return the algorithm that an installed package offers under ``name``; None if there is none.

    Raises:
        ConfigError: see :func:`progrpo.plugins.find`.
    """
    return plugins.find(GROUP, name, BUILT_IN, _checked)


def all_algorithms() -> dict[str, type[Algorithm]]:
    """Return every algorithm by name, loading those of other packages."""
    names = dict.fromkeys(point.name for point in plugins.offered(GROUP))
    return {**BUILT_IN, **{name: found for name in names if (found := plugin_algorithm(name)) is not None}}


def _checked(found: Any, name: str) -> type[Algorithm]:
    return plugins.closed_model(found, name, Algorithm)
