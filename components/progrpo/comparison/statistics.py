"""From counted completions to estimates: per arm, per seed, and of every arm against the baseline.

Every metric is a sum over problems divided by another one, pooled over seeds: a mean over problems for Pass@k and
distinct correct answers, a mean over tokens for entropy and negative log-likelihood, a mean over completions for
length and truncation. Intervals come from :mod:`progrpo.evaluation.bootstrap`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

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
from progrpo.evaluation.bootstrap import bootstrap_difference, bootstrap_hierarchical
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
    curve = tuple(
        CurvePoint(k=k, **_estimate(evaluations, pass_at(k), config).model_dump())
        for k in sorted({*curve_ks(first.num_samples), *ks})
    )
    at = {point.k: Estimate(value=point.value, low=point.low, high=point.high) for point in curve}
    metrics = {pass_at(k): at[k] for k in ks}
    metrics.update({name: _estimate(evaluations, name, config) for name in OTHER_METRICS})
    runs = [trainings.get((e.arm, e.seed)) if e.seed is not None else None for e in evaluations]
    per_seed = tuple(_seed_result(e, run, tuple(metrics)) for e, run in zip(evaluations, runs, strict=True))
    return ArmResult(
        name=first.arm,
        algorithm=first.algorithm,
        metrics=metrics,
        curve=curve,
        per_seed=per_seed,
        wall_time=_wall_time(per_seed),
        train=next((run.config for run in runs if run is not None), None),
    )


def subtract(
    arm: Sequence[Evaluation], baseline: Sequence[Evaluation], metrics: Sequence[str], config: CompareConfig
) -> ArmDifference:
    """Estimate ``arm - baseline`` for every metric, paired by problem; resolved where the interval excludes 0."""
    return ArmDifference(arm=arm[0].arm, metrics={name: _difference(arm, baseline, name, config) for name in metrics})


def metric_parts(evaluation: Evaluation, name: str) -> tuple[Floats, Floats | None]:
    """Return numerators and denominators [P] of a metric; None: all 1.

    Args:
        evaluation: one evaluation.
        name: a key of :data:`progrpo.metrics.EVAL_METRICS`, with k filled in.
    """
    if name.startswith(pass_prefix := "eval/pass_at_"):
        k = int(name.removeprefix(pass_prefix))
        return pass_at_k(evaluation.summary.num_samples, evaluation.num_correct_P, k), None
    samples_P = np.full(len(evaluation.problem_ids), evaluation.summary.num_samples, dtype=np.float64)
    tokens_P = evaluation.num_tokens_P.astype(np.float64)
    parts: dict[str, tuple[Any, Any]] = {
        "eval/entropy": (evaluation.entropy_sum_P, tokens_P),
        "eval/sampled_nll": (evaluation.nll_sum_P, tokens_P),
        "eval/distinct_correct": (evaluation.distinct_correct_P.astype(np.float64), None),
        "eval/completion_tokens": (tokens_P, samples_P),
        "eval/truncated_frac": (evaluation.num_truncated_P.astype(np.float64), samples_P),
    }
    return parts[name]


def curve_ks(num_samples: int) -> list[int]:
    """The k of the plotted curve: each up to 64, beyond that enough for a smooth line, and n itself."""
    dense = range(1, min(num_samples, _ALL_K_UP_TO) + 1)
    sparse = np.geomspace(_ALL_K_UP_TO, num_samples, _STEPS_BEYOND) if num_samples > _ALL_K_UP_TO else ()
    return sorted({*dense, *(round(k) for k in sparse)})


def _estimate(evaluations: Sequence[Evaluation], name: str, config: CompareConfig) -> Estimate:
    parts = [metric_parts(evaluation, name) for evaluation in evaluations]
    denominators = [denominator for _, denominator in parts if denominator is not None]
    interval = bootstrap_hierarchical(
        [numerator for numerator, _ in parts],
        denominators or None,
        num_resamples=config.num_resamples,
        level=config.level,
        seed=config.seed,
    )
    return Estimate(value=interval.value, low=interval.low, high=interval.high)


def contrast(
    arm: Sequence[Evaluation], other: Sequence[Evaluation], name: str, config: CompareConfig, *, fraction: float = 1.0
) -> Estimate:
    """Estimate ``arm - fraction x other`` of one metric, paired by problem.

    With a fraction below 1 this asks how much of the other's value the arm keeps, without dividing by an estimate that
    may be near 0.
    """
    others = [metric_parts(evaluation, name) for evaluation in other]
    interval = bootstrap_difference(
        [metric_parts(evaluation, name) for evaluation in arm],
        [(fraction * numerators, denominators) for numerators, denominators in others],
        num_resamples=config.num_resamples,
        level=config.level,
        seed=config.seed,
    )
    return Estimate(value=interval.value, low=interval.low, high=interval.high)


def _difference(
    arm: Sequence[Evaluation], baseline: Sequence[Evaluation], name: str, config: CompareConfig
) -> Difference:
    estimate = contrast(arm, baseline, name, config)
    return Difference(**estimate.model_dump(), resolved=estimate.low > 0 or estimate.high < 0)


def point_estimate(evaluations: Sequence[Evaluation], name: str) -> float:
    """Return the value of a metric, pooled over the seeds of an arm."""
    parts = [metric_parts(evaluation, name) for evaluation in evaluations]
    total = sum(len(numerators) if denominators is None else denominators.sum() for numerators, denominators in parts)
    return float(sum(numerators.sum() for numerators, _ in parts) / total)


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
