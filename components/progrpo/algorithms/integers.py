"""Counts of tokens as fractions of a whole, without float rounding."""

from __future__ import annotations

from fractions import Fraction


def floor_frac(num_tokens: int, frac: float) -> int:
    """Return ``floor(frac * n)``, at least 1.

    In float64 the product can fall below an integer: ``int(0.29 * 100)`` is 28.

    Args:
        num_tokens: n, >= 0.
        frac: in (0, 1]; taken as the decimal it is written as.
    """
    return max(int(num_tokens * Fraction(str(frac))), 1)
