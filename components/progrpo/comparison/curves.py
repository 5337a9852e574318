"""Training curves, thinned and smoothed for the eye."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from progrpo.comparison.sources import Floats, Training
from progrpo.metrics import TRAIN_METRICS

_MAX_POINTS = 600
_SMOOTHED_FRAC = 0.05


@dataclass(frozen=True)
class Curve:
    """One metric of one training run."""

    arm: str
    seed: int
    steps: Floats
    raw: Floats
    smoothed: Floats


def training_curves(trainings: Iterable[Training], metric: str) -> list[Curve]:
    """Return the curve of ``metric`` for every run that logged it."""
    curves = []
    for training in trainings:
        points = [
            (float(row["step"]), float(row[metric]))
            for row in training.rows
            if isinstance(row.get(metric), int | float) and np.isfinite(row[metric])
        ]
        if not points:
            continue
        steps, raw = np.array(points).T
        # Smooth before thinning, so that every step counts.
        smoothed = moving_average(raw, 2 * int(len(raw) * _SMOOTHED_FRAC / 2) + 1)
        keep = slice(None, None, -(-len(raw) // _MAX_POINTS))
        curves.append(Curve(training.arm, training.seed, steps[keep], raw[keep], smoothed[keep]))
    return curves


def moving_average(values: Floats, width: int) -> Floats:
    """Average over ``width`` neighbours (odd), over fewer at the ends, so that nothing is shifted or invented."""
    kernel = np.ones(width)
    summed: Floats = np.convolve(values, kernel, mode="full")
    counts = np.convolve(np.ones_like(values), kernel, mode="full")
    half = width // 2
    return (summed / counts)[half : half + len(values)]


def logged_metrics(trainings: Iterable[Training]) -> list[str]:
    """Return the training metrics that any run logged: :data:`TRAIN_METRICS` in their order, then those of plug-ins."""
    logged = {key for training in trainings for row in training.rows for key in row}
    others = sorted(key for key in logged if key.startswith("train/") and key not in TRAIN_METRICS)
    return [*(name for name in TRAIN_METRICS if name in logged), *others]
