"""General ability: every trained arm against the start checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from progrpo.comparison.result import AbilityResult, Difference
from progrpo.comparison.sources import Evaluation
from progrpo.config import START, CompareConfig
from progrpo.evaluation.ability import compare_ability
from progrpo.evaluation.bootstrap import Bootstrap


def ability_results(config: CompareConfig, evaluations: Mapping[str, Sequence[Evaluation]]) -> list[AbilityResult]:
    """Subtract the start checkpoint's ability from that of every arm whose seeds were all measured.

    Raises:
        ComparisonError: measured with other tasks, settings or documents.
    """
    before = next((evaluation.ability for evaluation in evaluations.get(START, ())), None)
    if before is None:
        return []
    bootstrap = Bootstrap(num_resamples=config.num_resamples, level=config.level, seed=config.seed)
    results = []
    for arm, of_arm in evaluations.items():
        after = [evaluation.ability for evaluation in of_arm]
        measured = [directory for directory in after if directory is not None]
        if arm == START or len(measured) < len(after):
            continue
        for each in compare_ability(before, measured, bootstrap):
            interval = each.difference
            difference = Difference(
                value=interval.value, low=interval.low, high=interval.high, resolved=each.outcome != "not resolved"
            )
            results.append(
                AbilityResult(
                    arm=arm,
                    task=each.task,
                    metric=each.metric,
                    before=each.before,
                    after=each.after,
                    difference=difference,
                    higher_is_better=each.higher_is_better,
                    outcome=each.outcome,
                )
            )
    return results


def ability_warnings(evaluations: Mapping[str, Sequence[Evaluation]]) -> list[str]:
    """Say where general ability was measured and yet cannot be compared."""
    everything = [evaluation for of_arm in evaluations.values() for evaluation in of_arm]
    missing = [evaluation.label for evaluation in everything if evaluation.ability is None]
    if len(missing) == len(everything):
        return []
    if START not in evaluations or START in missing:
        return [f"General ability was measured, but not of {START}: there is nothing to compare it with."]
    if missing:
        return [
            f"General ability was not measured of {', '.join(missing)}; an arm is compared where all its seeds were."
        ]
    return []
