"""The unbiased Pass@k estimator."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from progrpo.errors import ConfigError, DataError


def pass_at_k(num_samples: int | npt.ArrayLike, num_correct: npt.ArrayLike, k: int) -> npt.NDArray[np.float64]:
    """Estimate, for each problem, the probability that at least one of ``k`` completions is correct.

    ``1 - C(n - c, k) / C(n, k)`` for ``c`` correct of ``n`` completions: the fraction of the k-subsets of the
    completions that hold a correct one, hence unbiased for every ``k <= n`` (Chen et al. 2021, arXiv:2107.03374,
    equation 1). With ``C(n - c, k) / C(n, k) = prod_{i = n - c + 1}^{n} (1 - k / i)`` no binomial is ever formed:
    the logarithm of that product is one cumulative sum for all ``c`` of an ``n``, so the cost is O(n + P).

    Args:
        num_samples: n, one for all problems or [P]; integers >= 1.
        num_correct: c, [P]; integers, ``0 <= c <= n``.
        k: completions drawn, ``1 <= k <= n``.

    Returns:
        [P], float64; exactly 0 where c = 0, exactly 1 where n - c < k. Their mean is Pass@k.

    Raises:
        ConfigError: k below 1 or above a problem's n.
        DataError: counts that are not integers, negative, or with c > n; shapes that do not fit.
    """
    correct_P, samples_P = _counts("num_correct", num_correct), _counts("num_samples", num_samples)
    if correct_P.ndim != 1 or samples_P.ndim > 1 or (samples_P.ndim == 1 and samples_P.shape != correct_P.shape):
        raise DataError(
            f"num_correct must be one count a problem [P] and num_samples a number or [P], "
            f"got shapes {correct_P.shape} and {samples_P.shape}."
        )
    samples_P = np.broadcast_to(samples_P, correct_P.shape)
    if (wrong := np.flatnonzero((correct_P < 0) | (correct_P > samples_P))).size:
        p = wrong[0]
        raise DataError(f"problem {p}: {correct_P[p]} correct of {samples_P[p]} completions; allowed is 0 to n.")
    if k < 1 or (samples_P.size and k > samples_P.min()):
        least = samples_P.min() if samples_P.size else "n"
        raise ConfigError(
            f"k = {k}, but Pass@k needs 1 <= k <= n = {least} completions a problem. Sample more or lower k."
        )
    result_P = np.empty(correct_P.shape, np.float64)
    for n in np.unique(samples_P):
        log_factors = np.log1p(-k / np.arange(n, k, -1, dtype=np.float64))
        log_all_wrong = np.concatenate([[0.0], np.cumsum(log_factors), np.full(k, -np.inf)])  # index: c = 0 ... n
        of_n = samples_P == n
        result_P[of_n] = -np.expm1(log_all_wrong[correct_P[of_n]])
    return np.abs(result_P)  # -expm1(0) is -0.0


def _counts(name: str, values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise DataError(f"{name} must be integers, got {array.dtype}.")
    return array.astype(np.int64)
