"""From tables of completions to estimates: per arm, per seed, and of every arm against the baseline.

Every metric is a sum over problems divided by another one (:mod:`progrpo.evaluation.table`), pooled over seeds.
Intervals come from :mod:`progrpo.evaluation.bootstrap`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from progrpo.comparison.result import (
    ArmDifference,
    ArmResult,
    CurvePoint,
    Difference,
    SeedResult,
    WallTime,
)
from progrpo.comparison.sources import Evaluation, Floats, Training
from progrpo.config import CompareConfig
from progrpo.evaluation.bootstrap import (
    Runs,
    bootstrap_curve,
    bootstrap_curve_difference,
    bootstrap_difference,
    probability_of_superiority,
    spread,
)
from progrpo.evaluation.power import PowerNote, power_note
from progrpo.evaluation.resampling import Bootstrap, Bounds, Curve, Interval, Term, bootstrap_terms
from progrpo.evaluation.table import curve_ks, term
from progrpo.metrics import pass_at


def estimate_arm(
    evaluations: Sequence[Evaluation],
    trainings: Mapping[tuple[str, int], Training],
    ks: Sequence[int],
    names: Sequence[str],
    config: CompareConfig,
) -> ArmResult:
    """Estimate every metric of one arm, with intervals over seeds and problems.

    Args:
        evaluations: of this arm, one a seed.
        trainings: runs by arm and seed, those that were given.
        ks: the k of Pass@k that are reported as metrics.
        names: every metric that is reported, Pass@k first.
        config: level, resamples and seed of the bootstrap.
    """
    first = evaluations[0].summary
    at = _curve_ks(evaluations, ks)
    curve = bootstrap_curve(
        [_pass_at_ks(evaluation, at) for evaluation in evaluations], bounds=(0.0, 1.0), **bootstrap_of(config)
    )
    points = {point.k: point for point in _points(at, curve)}
    metrics = {pass_at(k): Interval(points[k].value, points[k].low, points[k].high) for k in ks}
    others = [name for name in names if name not in metrics]
    metrics |= _estimates([_term(1.0, evaluations, others)], others, _bounds(evaluations, others), config)
    runs = [trainings.get((e.arm, e.seed)) if e.seed is not None else None for e in evaluations]
    per_seed = tuple(_seed_result(e, run, tuple(metrics)) for e, run in zip(evaluations, runs, strict=True))
    return ArmResult(
        name=first.arm,
        algorithm=first.algorithm,
        metrics=metrics,
        curve=tuple(points.values()),
        per_seed=per_seed,
        wall_time=_wall_time(per_seed),
        train=next((run.config for run in runs if run is not None), None),
    )


def subtract(
    arm: Sequence[Evaluation],
    baseline: Sequence[Evaluation],
    ks: Sequence[int],
    names: Sequence[str],
    config: CompareConfig,
) -> ArmDifference:
    """Estimate ``arm - baseline`` for every metric, paired by problem; resolved where the interval excludes 0."""
    at = _curve_ks(arm, ks)
    curve = bootstrap_curve_difference(
        [(_pass_at_ks(evaluation, at), None) for evaluation in arm],
        [(_pass_at_ks(evaluation, at), None) for evaluation in baseline],
        bounds=(0.0, 1.0),
        **bootstrap_of(config),
    )
    points = {point.k: point for point in _points(at, curve)}
    metrics = {pass_at(k): difference_of(points[k]) for k in ks}
    others = [name for name in names if name not in metrics]
    spreads = [spread(each) for each in _bounds(arm, others)]
    terms = [_term(1.0, arm, others), _term(-1.0, baseline, others)]
    metrics |= {name: difference_of(each) for name, each in _estimates(terms, others, spreads, config).items()}
    superiority = probability_of_superiority(
        [evaluation.table.values(pass_at(1)).numerators for evaluation in arm],
        [evaluation.table.values(pass_at(1)).numerators for evaluation in baseline],
        **bootstrap_of(config),
    )
    return ArmDifference(
        arm=arm[0].arm,
        metrics=metrics,
        curve=tuple(points.values()),
        power={
            name: _power(arm, baseline, name, config)
            for name in (*dict.fromkeys(map(pass_at, (ks[0], ks[-1]))), "eval/entropy")
        },
        superiority=superiority,
    )


def _curve_ks(evaluations: Sequence[Evaluation], ks: Sequence[int]) -> list[int]:
    return sorted({*curve_ks(evaluations[0].table.num_samples), *ks})


def _pass_at_ks(evaluation: Evaluation, ks: Sequence[int]) -> Floats:
    """Return Pass@k of each problem at each k, [P, K]."""
    return evaluation.table.curve("pass_at_k", ks).numerators


def _points(ks: Sequence[int], curve: Curve) -> Iterator[CurvePoint]:
    names = ("value", "low", "high", "band_low", "band_high")
    for i, k in enumerate(ks):
        yield CurvePoint(k=k, **{name: float(getattr(curve, name)[i]) for name in names})


def _power(arm: Sequence[Evaluation], baseline: Sequence[Evaluation], name: str, config: CompareConfig) -> PowerNote:
    (bounds,) = _bounds(arm, [name])
    return power_note(_runs(arm, name), _runs(baseline, name), bounds=bounds, **bootstrap_of(config))


def _runs(evaluations: Sequence[Evaluation], name: str) -> Runs:
    values = [evaluation.table.values(name) for evaluation in evaluations]
    return [(each.numerators, each.denominators) for each in values]


def bootstrap_of(config: CompareConfig) -> Bootstrap:
    """Return how the intervals of a comparison are made."""
    return Bootstrap(num_resamples=config.num_resamples, level=config.level, seed=config.seed)


def _estimates(
    terms: Sequence[Term], names: Sequence[str], bounds: Sequence[Bounds | None], config: CompareConfig
) -> dict[str, Interval]:
    """Estimate many metrics from one resampling."""
    curve = bootstrap_terms(terms, bounds, **bootstrap_of(config))
    return {name: curve.interval(i) for i, name in enumerate(names)}


def _term(sign: float, evaluations: Sequence[Evaluation], names: Sequence[str]) -> Term:
    return term([evaluation.table for evaluation in evaluations], names, sign)


def _bounds(evaluations: Sequence[Evaluation], names: Sequence[str]) -> list[Bounds | None]:
    return [evaluations[0].table.values(name).bounds for name in names]


def contrast(
    arm: Sequence[Evaluation], other: Sequence[Evaluation], name: str, config: CompareConfig, *, fraction: float = 1.0
) -> Interval:
    """Estimate ``arm - fraction x other`` of one metric, paired by problem.

    With a fraction below 1 this asks how much of the other's value the arm keeps, without dividing by an estimate that
    may be near 0.
    """
    (bounds,) = _bounds(arm, [name])
    if bounds is not None:
        bounds = (min(bounds[0], fraction * bounds[0]), max(bounds[1], fraction * bounds[1]))
    scaled = [(fraction * np.asarray(numerators), denominators) for numerators, denominators in _runs(other, name)]
    return bootstrap_difference(_runs(arm, name), scaled, bounds=bounds, **bootstrap_of(config))


def difference_of(interval: Interval) -> Difference:
    """Return the interval of a difference with what it says: resolved where it excludes 0."""
    return Difference(interval.value, interval.low, interval.high, resolved=interval.excludes(0))


def point_estimate(evaluations: Sequence[Evaluation], name: str) -> float:
    """Return the value of a metric, pooled over the seeds of an arm."""
    parts = [evaluation.table.values(name) for evaluation in evaluations]
    total = sum(values.all_denominators.sum() for values in parts)
    return float(sum(values.numerators.sum() for values in parts) / total)


def _seed_result(evaluation: Evaluation, training: Training | None, metrics: Sequence[str]) -> SeedResult:
    values = {name: point_estimate([evaluation], name) for name in metrics}
    summary = evaluation.summary
    metadata = training.metadata if training is not None else {}
    train_wall_time_s = summary.train_wall_time_s
    if train_wall_time_s is None:
        train_wall_time_s = metadata.get("train_wall_time_s")
    return SeedResult(
        seed=evaluation.seed,
        metrics=values,
        train_wall_time_s=train_wall_time_s,
        train_gpu_hours=_gpu_hours(train_wall_time_s, metadata),
        eval_wall_time_s=summary.eval_wall_time_s,
        train_hardware=metadata.get("hardware"),
        eval_hardware=summary.hardware,
        versions={**metadata.get("versions", {}), **summary.versions},
        evaluation_digest=evaluation.digest,
        checkpoint_digest=summary.checkpoint_digest,
        training_digest=training.digest if training is not None else None,
    )


def _gpu_hours(wall_time_s: float | None, metadata: Mapping[str, Any]) -> float | None:
    """Multiply the wall time with the GPUs that the hardware's description counts: "8 x NVIDIA H100"."""
    gpus = re.match(r"(\d+) x ", str(metadata.get("hardware", "")))
    return None if gpus is None or wall_time_s is None else int(gpus[1]) * wall_time_s / 3600


def _wall_time(per_seed: Sequence[SeedResult]) -> WallTime:
    eval_s = [result.eval_wall_time_s for result in per_seed]
    train_s = [result.train_wall_time_s for result in per_seed if result.train_wall_time_s is not None]
    return WallTime(
        train_s=float(np.mean(train_s)) if len(train_s) == len(per_seed) else None,
        eval_s=float(np.mean(eval_s)),
        total_s=sum(train_s) + sum(eval_s),
    )
