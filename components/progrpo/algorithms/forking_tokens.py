"""Forking tokens: gradient where the policy hesitates; the engine masks the others."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from progrpo.algorithms.base import Algorithm


class ForkingTokens(Algorithm):
    """Gradient only through the tokens of highest entropy (80/20, arXiv:2506.01939)."""

    type: Literal["forking_tokens"] = "forking_tokens"
    top_entropy_frac: float = Field(0.2, gt=0, le=1, description="paper")

    def engine_settings(self) -> dict[str, Any]:
        """TRL's own mask."""
        return {"top_entropy_quantile": self.top_entropy_frac}
