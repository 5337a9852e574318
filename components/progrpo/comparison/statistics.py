"""From counted completions to estimates: per arm, per seed, and of every arm against the baseline.

Every metric is a sum over problems divided by another one, pooled over seeds: a mean over problems for Pass@k and
distinct correct answers, a mean over tokens for entropy and negative log-likelihood, a mean over completions for
length and truncation. Intervals come from :mod:`progrpo.evaluation.bootstrap`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np

from progrpo.comparison.result import (
    OTHER_METRICS,
    ArmDifference,
    ArmResult,
    CurvePoint,
    Difference,
    Estimate,
    SeedResult,
    WallTime,
)
from progrpo.comparison.sources import Evaluation, Floats, Training
from progrpo.config import CompareConfig
from progrpo.errors import ComparisonError
from progrpo.evaluation.bootstrap import (
    Curve,
    bootstrap_curve,
    bootstrap_curve_difference,
    bootstrap_difference,
    bootstrap_hierarchical,
    probability_of_superiority,
)
from progrpo.evaluation.pass_at_k import pass_at_k
from progrpo.metrics import pass_at

_ALL_K_UP_TO = 64
_STEPS_BEYOND = 32


def estimate_arm(
    evaluations: Sequence[Evaluation],
    trainings: Mapping[tuple[str, int], Training],
    ks: Sequence[int],
    config: CompareConfig,
) -> ArmResult:
    """Estimate every metric of one arm, with intervals over seeds and problems.

    Args:
        evaluations: of this arm, one a seed.
        trainings: runs by arm and seed, those that were given.
        ks: the k that are reported as metrics.
        config: level, resamples and seed of the bootstrap.
    """
    first = evaluations[0].summary
    at = _curve_ks(evaluations, ks)
    curve = bootstrap_curve(
        [_pass_at_ks(evaluation, at) for evaluation in evaluations], bounds=(0.0, 1.0), **_bootstrap(config)
    )
    points = {point.k: point for point in _points(at, curve)}
    metrics = {pass_at(k): Estimate(value=points[k].value, low=points[k].low, high=points[k].high) for k in ks}
    metrics.update({name: _estimate(evaluations, name, config) for name in OTHER_METRICS})
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
    arm: Sequence[Evaluation], baseline: Sequence[Evaluation], ks: Sequence[int], config: CompareConfig
) -> ArmDifference:
    """Estimate ``arm - baseline`` for every metric, paired by problem; resolved where the interval excludes 0."""
    at = _curve_ks(arm, ks)
    curve = bootstrap_curve_difference(
        [(_pass_at_ks(evaluation, at), None) for evaluation in arm],
        [(_pass_at_ks(evaluation, at), None) for evaluation in baseline],
        bounds=(0.0, 1.0),
        **_bootstrap(config),
    )
    points = {point.k: point for point in _points(at, curve)}
    metrics = {pass_at(k): _difference(points[k]) for k in ks}
    metrics.update({name: _difference(contrast(arm, baseline, name, config)) for name in OTHER_METRICS})
    superiority = probability_of_superiority(
        [metric_values(evaluation, pass_at(1)).numerators_P for evaluation in arm],
        [metric_values(evaluation, pass_at(1)).numerators_P for evaluation in baseline],
        **_bootstrap(config),
    )
    return ArmDifference(
        arm=arm[0].arm,
        metrics=metrics,
        curve=tuple(points.values()),
        superiority=Estimate(value=superiority.value, low=superiority.low, high=superiority.high),
    )


class MetricValues(NamedTuple):
    """Numerators and denominators (None: all 1) of each problem, [P], and the least and greatest ratio there can be."""

    numerators_P: Floats
    denominators_P: Floats | None
    bounds: tuple[float, float] | None


def metric_values(evaluation: Evaluation, name: str) -> MetricValues:
    """Return what a metric is made of.

    Args:
        evaluation: one evaluation.
        name: a key of :data:`progrpo.metrics.EVAL_METRICS`, with k filled in.

    Raises:
        ComparisonError: a metric that is not one of those compared.
    """
    num_samples = evaluation.summary.num_samples
    if name.startswith(pass_prefix := "eval/pass_at_"):
        k = int(name.removeprefix(pass_prefix))
        return MetricValues(pass_at_k(num_samples, evaluation.num_correct_P, k), None, (0.0, 1.0))
    samples_P = np.full(len(evaluation.problem_ids), num_samples, dtype=np.float64)
    tokens_P = evaluation.num_tokens_P.astype(np.float64)
    values = {
        "eval/entropy": MetricValues(evaluation.entropy_sum_P, tokens_P, None),
        "eval/sampled_nll": MetricValues(evaluation.nll_sum_P, tokens_P, None),
        "eval/distinct_correct": MetricValues(
            evaluation.distinct_correct_P.astype(np.float64), None, (0.0, float(num_samples))
        ),
        "eval/completion_tokens": MetricValues(tokens_P, samples_P, None),
        "eval/truncated_frac": MetricValues(evaluation.num_truncated_P.astype(np.float64), samples_P, (0.0, 1.0)),
    }
    if name not in values:
        raise ComparisonError(
            f"{name} is not compared between arms; allowed are eval/pass_at_{{k}}, {', '.join(values)}. It is in the "
            f"report as each evaluation measured it."
        )
    return values[name]


def curve_ks(num_samples: int) -> list[int]:
    """The k of the plotted curve: each up to 64, beyond that enough for a smooth line, and n itself."""
    dense = range(1, min(num_samples, _ALL_K_UP_TO) + 1)
    sparse = np.geomspace(_ALL_K_UP_TO, num_samples, _STEPS_BEYOND) if num_samples > _ALL_K_UP_TO else ()
    return sorted({*dense, *(round(k) for k in sparse)})


def _curve_ks(evaluations: Sequence[Evaluation], ks: Sequence[int]) -> list[int]:
    return sorted({*curve_ks(evaluations[0].summary.num_samples), *ks})


def _pass_at_ks(evaluation: Evaluation, ks: Sequence[int]) -> Floats:
    """Return Pass@k of each problem at each k, [P, K]."""
    return np.stack([metric_values(evaluation, pass_at(k)).numerators_P for k in ks], axis=1)


def _points(ks: Sequence[int], curve: Curve) -> Iterator[CurvePoint]:
    names = ("value", "low", "high", "band_low", "band_high")
    for i, k in enumerate(ks):
        yield CurvePoint(k=k, **{name: float(getattr(curve, name)[i]) for name in names})


class _Bootstrap(TypedDict):
    num_resamples: int
    level: float
    seed: int


def _bootstrap(config: CompareConfig) -> _Bootstrap:
    return _Bootstrap(num_resamples=config.num_resamples, level=config.level, seed=config.seed)


def _estimate(evaluations: Sequence[Evaluation], name: str, config: CompareConfig) -> Estimate:
    parts = [metric_values(evaluation, name) for evaluation in evaluations]
    denominators = [part.denominators_P for part in parts if part.denominators_P is not None]
    interval = bootstrap_hierarchical(
        [part.numerators_P for part in parts], denominators or None, bounds=parts[0].bounds, **_bootstrap(config)
    )
    return Estimate(value=interval.value, low=interval.low, high=interval.high)


def contrast(
    arm: Sequence[Evaluation], other: Sequence[Evaluation], name: str, config: CompareConfig, *, fraction: float = 1.0
) -> Estimate:
    """Estimate ``arm - fraction x other`` of one metric, paired by problem.

    With a fraction below 1 this asks how much of the other's value the arm keeps, without dividing by an estimate that
    may be near 0.
    """
    arms, others = ([metric_values(evaluation, name) for evaluation in side] for side in (arm, other))
    bounds = arms[0].bounds
    if bounds is not None:
        bounds = (min(bounds[0], fraction * bounds[0]), max(bounds[1], fraction * bounds[1]))
    interval = bootstrap_difference(
        [(values.numerators_P, values.denominators_P) for values in arms],
        [(fraction * values.numerators_P, values.denominators_P) for values in others],
        bounds=bounds,
        **_bootstrap(config),
    )
    return Estimate(value=interval.value, low=interval.low, high=interval.high)


def _difference(estimate: Estimate) -> Difference:
    return Difference(
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        resolved=estimate.low > 0 or estimate.high < 0,
    )


def point_estimate(evaluations: Sequence[Evaluation], name: str) -> float:
    """Return the value of a metric, pooled over the seeds of an arm."""
    parts = [metric_values(evaluation, name) for evaluation in evaluations]
    total = sum(
        len(values.numerators_P) if values.denominators_P is None else values.denominators_P.sum() for values in parts
    )
    return float(sum(values.numerators_P.sum() for values in parts) / total)


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
        further={
            name: Estimate(value=measured.value, low=measured.low, high=measured.high)
            for name, measured in summary.metrics.items()
            if name not in values
        },
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
