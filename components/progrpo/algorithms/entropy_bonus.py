"""The entropy bonus, its coefficient fixed or steered; the engine computes it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from progrpo.algorithms.base import Algorithm
from progrpo.settings import Config


class AdaptiveEntropy(Config):
    """Move the coefficient by ``delta`` a step, up while the entropy is below ``target`` (arXiv:2505.22312)."""

    target: float = Field(gt=0, description="entropy to keep, nats a token")
    delta: float = Field(0.005, gt=0, description="change of the coefficient a step; TRL")
    min_coef: float = Field(0.0, ge=0)
    max_coef: float = Field(1.0, gt=0)


class EntropyBonus(Algorithm):
    """``L = L_policy - coef H(pi)``, the coefficient fixed or steered."""

    type: Literal["entropy_bonus"] = "entropy_bonus"
    coef: float = Field(0.01, ge=0, le=10, description="nats to loss; the first value if adaptive; ours")
    adaptive: AdaptiveEntropy | None = Field(None, description="absent: the coefficient is fixed")

    def engine_settings(self) -> dict[str, Any]:
        """TRL's own bonus."""
        settings: dict[str, Any] = {"entropy_coef": self.coef}
        if self.adaptive is not None:
            settings |= {
                "use_adaptive_entropy": True,
                "entropy_target": self.adaptive.target,
                "entropy_coef_delta": self.adaptive.delta,
                "entropy_coef_min": self.adaptive.min_coef,
                "entropy_coef_max": self.adaptive.max_coef,
            }
        return settings
