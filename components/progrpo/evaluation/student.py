"""Student's t quantile in numpy: intervals are made in the light image too, where scipy's 113 MB do not fit."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
_MANY_DF = 500.0
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


def student_t_quantile(probability: float, df: npt.ArrayLike) -> Array:
    """Return the quantile of Student's t distribution for any ``df`` >= 1.

    Against scipy: 11 digits where a tail holds 0.5 % or more, 6 digits at 0.05 %.

    Args:
        probability: in (0, 1).
        df: degrees of freedom, [K] or one number.
    """
    df_K = np.asarray(df, np.float64)
    z = abs(NormalDist().inv_cdf(probability))
    few = _integrated(max(probability, 1 - probability), z, np.minimum(df_K, _MANY_DF))
    return np.copysign(np.where(df_K < _MANY_DF, few, _expanded(z, df_K)), probability - 0.5)


def _integrated(probability: float, z: float, df_K: Array) -> Array:
    """Solve for the angle of ``t = sqrt(df) tan(angle)``, up to which the integral of cos^(df - 1) is known.

    The integral is concave and the normal quantile is too small, so Newton's steps climb to the solution.
    """
    log_scale_K = np.vectorize(lambda v: math.lgamma((v + 1) / 2) - math.lgamma(v / 2), otypes=[np.float64])(df_K)
    scale_K = np.exp(log_scale_K) / math.sqrt(math.pi)
    angle_K = np.arctan(z / np.sqrt(df_K))
    for _ in range(100):
        inner = angle_K[..., None] / 2 * (_NODES + 1)
        area_K = scale_K * angle_K / 2 * (np.cos(inner) ** (df_K[..., None] - 1) @ _WEIGHTS)
        step_K = (probability - 0.5 - area_K) / (scale_K * np.cos(angle_K) ** (df_K - 1))
        angle_K = angle_K + step_K
        if np.all(np.abs(step_K) <= 1e-15 * angle_K):
            break
    return np.sqrt(df_K) * np.tan(angle_K)


def _expanded(z: float, df_K: Array) -> Array:
    """Expand in 1 / df about the normal quantile (Abramowitz and Stegun 26.7.5)."""
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum((term / df_K ** (i + 1) for i, term in enumerate(terms)), np.zeros_like(df_K))
