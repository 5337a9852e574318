"""Pass@k training: the advantage of the best of k."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from progrpo.algorithms.base import Algorithm, LossConfig, Method

if TYPE_CHECKING:
    from torch import Tensor


class PassK(Algorithm):
    """The advantage of Pass@k training, in closed form (arXiv:2508.10751)."""

    type: Literal["passk"] = "passk"
    k: int = Field(4, ge=1, description="k of Pass@k, at most group_size; ours")

    def errors(self, method: Method, *, group_size: int, micro_batch_size: int | None) -> Iterator[str]:
        """It needs k completions, and verdicts."""
        if self.k > group_size:
            yield (
                f"k = {self.k} of Pass@k training is above train.group_size {group_size}: no group has k completions. "
                f"Lower k or raise group_size."
            )
        if method.overlong_penalty is not None:
            yield (
                "Pass@k training is defined on right and wrong, but overlong_penalty lowers rewards. Leave the penalty "
                "out, of train or of the arm, or use another algorithm."
            )

    def advantages(self, rewards_PG: Tensor, loss: LossConfig) -> Tensor:
        """Compare the subsets of k completions instead of the completions."""
        from progrpo.algorithms.pass_at_k import pass_at_k_advantage

        return pass_at_k_advantage(rewards_PG, self.k)
