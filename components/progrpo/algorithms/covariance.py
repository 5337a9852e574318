"""Which tokens drive the entropy down, for Clip-Cov and KL-Cov (arXiv:2505.22617). Suffixes: B rows, T positions.

The change of the policy's entropy in a step is close to minus the covariance of log-probability and advantage; a few
tokens carry most of it. Clip-Cov takes their gradient away, KL-Cov holds them near the old policy. Selecting is all
that happens here, without gradient; the loss is the trainer's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from progrpo.algorithms.integers import floor_frac


@torch.no_grad()
def token_covariance(logprobs_BT: Tensor, advantages: Tensor, mask_BT: Tensor) -> Tensor:
    """Return each token's contribution to the covariance of log-probability and advantage.

    ``cov_t = (A_t - mean A) (log pi_t - mean log pi)``, means over all tokens of the mask, so that a long completion
    counts more often than a short one (arXiv:2505.22617; the authors' code).

    Args:
        logprobs_BT: [B, T] log-probabilities of the sampled tokens under the current policy.
        advantages: [B] or [B, T]. A row the verifier could not score has advantage 0 and counts as such unless
            ``mask_BT`` leaves it out.
        mask_BT: [B, T], non-zero on tokens of the loss.

    Returns:
        [B, T] float32; 0 outside the mask.
    """
    mask_BT = mask_BT.bool()
    advantages_BT = (advantages[:, None] if advantages.ndim == 1 else advantages).float().expand(mask_BT.shape)
    num_tokens = mask_BT.sum().clamp(min=1)

    def centred(values_BT: Tensor) -> Tensor:
        kept_BT = torch.where(mask_BT, values_BT, 0.0)
        return torch.where(mask_BT, kept_BT - kept_BT.sum() / num_tokens, 0.0)

    return centred(advantages_BT) * centred(logprobs_BT.float())


@torch.no_grad()
def clipped_tokens(log_ratio_BT: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """Mark the tokens whose gradient the policy loss's own clip has already stopped.

    Args:
        log_ratio_BT: [B, T] log-probabilities, current minus old.
        advantages: [B] or [B, T].
        clip_low: rho is clipped below ``1 - clip_low`` where A < 0.
        clip_high: rho is clipped above ``1 + clip_high`` where A > 0.

    Returns:
        [B, T] bool.
    """
    advantages_BT = advantages[:, None] if advantages.ndim == 1 else advantages
    ratio_BT = log_ratio_BT.float().exp()
    return ((ratio_BT > 1 + clip_high) & (advantages_BT > 0)) | ((ratio_BT < 1 - clip_low) & (advantages_BT < 0))


@torch.no_grad()
def clip_cov_mask(
    cov_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_frac: float,
    cov_low: float,
    cov_high: float,
    generator: torch.Generator,
    clipped_BT: Tensor | None = None,
) -> Tensor:
    """Draw the tokens that lose their gradient under Clip-Cov.

    A random ``floor(clip_frac n)``, at least 1, of the tokens with ``cov_low < cov < cov_high``, or all of those if
    they are fewer (arXiv:2505.22617). A drawn token gets no gradient, its place in the mean stays.

    Args:
        cov_BT: [B, T] from :func:`token_covariance`.
        mask_BT: [B, T], non-zero on the n tokens of the loss.
        clip_frac: of all n tokens, not of those that qualify.
        cov_low: exclusive bound.
        cov_high: exclusive bound.
        generator: of the draw, so that a run repeats; on any device, the same draw for the same state.
        clipped_BT: [B, T] bool, tokens that cannot be drawn as they have no gradient to lose, from
            :func:`clipped_tokens`; they still count in n. Absent: none, as with one update a batch of rollouts.

    Returns:
        [B, T] bool, True on the drawn tokens.
    """
    mask_BT = mask_BT.bool()
    qualifies_BT = mask_BT & (cov_BT > cov_low) & (cov_BT < cov_high)
    if clipped_BT is not None:
        qualifies_BT = qualifies_BT & ~clipped_BT
    candidates = qualifies_BT.flatten().nonzero().squeeze(1)
    order = torch.randperm(len(candidates), generator=generator, device=generator.device).to(candidates.device)
    drawn = candidates[order[: floor_frac(int(mask_BT.sum()), clip_frac)]]
    return torch.zeros_like(mask_BT).flatten().index_fill(0, drawn, True).view(mask_BT.shape)


@torch.no_grad()
def kl_cov_mask(cov_BT: Tensor, mask_BT: Tensor, kl_frac: float) -> Tensor:
    """Select the tokens that KL-Cov holds near the old policy: those of highest covariance.

    The ``floor(kl_frac n)``, at least 1, tokens of highest ``cov``, however low that is (arXiv:2505.22617). They get
    ``kl_coef abs(log pi - log pi_old)`` added to their loss.

    Args:
        cov_BT: [B, T] from :func:`token_covariance`.
        mask_BT: [B, T], non-zero on the n tokens of the loss.
        kl_frac: of all n tokens.

    Returns:
        [B, T] bool, True on the selected tokens; of equal ones the first. Nothing if there are no tokens.
    """
    mask_BT = mask_BT.bool()
    tokens = mask_BT.flatten().nonzero().squeeze(1)
    descending = cov_BT.flatten()[tokens].sort(descending=True, stable=True).indices
    highest = tokens[descending[: floor_frac(len(tokens), kl_frac)]]
    return torch.zeros_like(mask_BT).flatten().index_fill(0, highest, True).view(mask_BT.shape)
