"""General ability: every trained arm against the start checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from progrpo.comparison.result import AbilityResult
from progrpo.comparison.sources import Evaluation
from progrpo.comparison.statistics import bootstrap_of, difference_of
from progrpo.config import START, CompareConfig
from progrpo.evaluation.ability import compare_ability


def ability_results(config: CompareConfig, evaluations: Mapping[str, Sequence[Evaluation]]) -> list[AbilityResult]:
    """Subtract the start checkpoint's ability from that of every arm whose seeds were all measured.

    Raises:
        ComparisonError: measured with other tasks, settings or documents.
    """
    before = next((evaluation.ability for evaluation in evaluations.get(START, ())), None)
    if before is None:
        return []
    results = []
    for arm, of_arm in evaluations.items():
        after = [evaluation.ability for evaluation in of_arm]
        measured = [directory for directory in after if directory is not None]
        if arm == START or len(measured) < len(after):
            continue
        for each in compare_ability(before, measured, bootstrap_of(config)):
            results.append(AbilityResult(**vars(each) | {"arm": arm, "difference": difference_of(each.difference)}))
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
