"""The unbiased Pass@k estimator, and G-Pass@k, which asks for more than one correct completion."""

from __future__ import annotations

import math

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
    _refuse_impossible(correct_P, samples_P)
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


def g_pass_at_k(num_samples: int, num_correct: npt.ArrayLike, k: int, tau: float) -> npt.NDArray[np.float64]:
    """Estimate, for each problem, the probability that at least ``ceil(tau k)`` of ``k`` completions are correct.

    ``sum_{j >= ceil(tau k)} C(c, j) C(n - c, k - j) / C(n, k)`` (G-Pass@k_tau, Liu et al. 2024, arXiv:2412.13147):
    the fraction of the k-subsets with that many. tau near 0 is Pass@k, tau = 1 asks for all k.

    Args:
        num_samples: n, of every problem.
        num_correct: c, [P]; integers, ``0 <= c <= n``.
        k: completions drawn, ``1 <= k <= n``.
        tau: in (0, 1].

    Returns:
        [P], float64.

    Raises:
        ConfigError: k or tau out of range.
        DataError: counts that are not integers, negative, or with c > n.
    """
    if not 0 < tau <= 1:
        raise ConfigError(f"tau = {tau}, allowed is a number above 0, up to 1.")
    at_least = math.ceil(round(tau * k, 9))  # 0.1 * 30 is 3.0000000000000004
    return at_least_correct(num_samples, num_correct, k)[:, at_least]


def mg_pass_at_k(num_samples: int, num_correct: npt.ArrayLike, k: int) -> npt.NDArray[np.float64]:
    """Estimate mG-Pass@k, twice the area under G-Pass@k_tau over tau from 0.5 to 1, for each problem.

    ``2 / k * sum_{i = ceil(k / 2) + 1}^{k} G-Pass@k_{i / k}`` (arXiv:2412.13147, equation 6); at k = 1, where that
    sum is empty, the accuracy.

    Args:
        num_samples: n, of every problem.
        num_correct: c, [P]; integers, ``0 <= c <= n``.
        k: completions drawn, ``1 <= k <= n``.

    Returns:
        [P], float64.

    Raises:
        ConfigError: k out of range.
        DataError: counts that are not integers, negative, or with c > n.
    """
    at_least_PK = at_least_correct(num_samples, num_correct, k)
    if k == 1:
        return at_least_PK[:, 1]
    area_P: npt.NDArray[np.float64] = 2 / k * at_least_PK[:, math.ceil(k / 2) + 1 :].sum(1)
    return area_P


def at_least_correct(num_samples: int, num_correct: npt.ArrayLike, k: int) -> npt.NDArray[np.float64]:
    """Return the probabilities [P, k + 1] that at least 0, 1, ... k of a k-subset are correct (hypergeometric).

    Raises:
        ConfigError: k out of range.
        DataError: counts that are not integers, negative, or with c > n.
    """
    correct_P = _counts("num_correct", num_correct)
    _refuse_impossible(correct_P, np.full_like(correct_P, num_samples))
    if not 1 <= k <= num_samples:
        raise ConfigError(f"k = {k}, but G-Pass@k needs 1 <= k <= n = {num_samples} completions a problem.")

    log_factorial = np.array([math.lgamma(i + 1) for i in range(num_samples + 1)])

    def log_choose(n: npt.ArrayLike, j: npt.ArrayLike) -> npt.NDArray[np.float64]:
        n, j = np.asarray(n), np.asarray(j)
        impossible = (j < 0) | (j > n)
        n, j = np.where(impossible, 0, n), np.where(impossible, 0, j)
        chosen = log_factorial[n] - log_factorial[j] - log_factorial[n - j]
        return np.where(impossible, -np.inf, chosen)

    each, index_P = np.unique(correct_P, return_inverse=True)  # far fewer counts than problems
    j_K = np.arange(k + 1)
    log_CK = log_choose(each[:, None], j_K) + log_choose(num_samples - each[:, None], k - j_K)
    exactly_CK = np.exp(log_CK - log_choose(num_samples, k))
    at_least_CK = exactly_CK[:, ::-1].cumsum(1)[:, ::-1]
    result_PK: npt.NDArray[np.float64] = np.minimum(at_least_CK / at_least_CK[:, :1], 1.0)[index_P]
    return result_PK


def _refuse_impossible(correct_P: npt.NDArray[np.int64], samples_P: npt.NDArray[np.int64]) -> None:
    if (wrong := np.flatnonzero((correct_P < 0) | (correct_P > samples_P))).size:
        p = wrong[0]
        raise DataError(f"problem {p}: {correct_P[p]} correct of {samples_P[p]} completions; allowed is 0 to n.")


def _counts(name: str, values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise DataError(f"{name} must be integers, got {array.dtype}.")
    return array.astype(np.int64)
