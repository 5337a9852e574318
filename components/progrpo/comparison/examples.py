"""Completions to look at: a few problems, chosen by a rule that is stated in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from progrpo.comparison.charts import success_rates
from progrpo.comparison.result import Comparison
from progrpo.comparison.sources import Evaluation, iterate_samples, read_prompts
from progrpo.config import START

_MAX_CHARACTERS = 2000
_PER_REASON = 2


@dataclass(frozen=True)
class Completion:
    """One completion, cut to a readable length."""

    text: str
    num_left_out: int  # characters
    correct: bool
    answer: str | None
    num_tokens: int
    truncated: bool


@dataclass(frozen=True)
class ArmExamples:
    """The completions shown of one arm."""

    arm: str
    rate: float
    completions: tuple[Completion, ...]


@dataclass(frozen=True)
class Example:
    """One problem and what each arm made of it."""

    problem_id: str
    reason: str
    prompt: str | None
    arms: tuple[ArmExamples, ...]


def find_examples(comparison: Comparison, evaluations: Mapping[str, Sequence[Evaluation]]) -> list[Example]:
    """Choose problems and, for each arm's first seed, its first correct and its first wrong completion there.

    The problems are those on which the first trained arm gains most and loses most against the baseline (over all
    seeds), and some spread evenly over the rest, so that the choice cannot flatter either side.
    """
    baseline = comparison.baseline
    ids = evaluations[baseline][0].problem_ids
    others = [arm.name for arm in comparison.arms if arm.name not in (baseline, START)]
    rates = {arm: success_rates(of_arm) for arm, of_arm in evaluations.items()}
    reasons: dict[int, str] = {}
    if others:
        gain_P = rates[others[0]] - rates[baseline]
        order = np.argsort(-gain_P, kind="stable")
        for p in order[:_PER_REASON]:
            if gain_P[p] > 0:
                reasons[int(p)] = f"{others[0]} gains most against {baseline}"
        for p in order[::-1][:_PER_REASON]:
            if gain_P[p] < 0:
                reasons[int(p)] = f"{others[0]} loses most against {baseline}"
    rest = [p for p in range(len(ids)) if p not in reasons]
    count = min(_PER_REASON, len(rest))
    for i in range(count):
        reasons[rest[(2 * i + 1) * len(rest) // (2 * count)]] = "spread evenly over the other problems"
    chosen = [ids[p] for p in reasons]
    prompts = read_prompts(evaluations[baseline][0].directory, chosen)
    completions = {arm: _read_completions(of_arm[0], chosen) for arm, of_arm in evaluations.items()}
    return [
        Example(
            problem_id=ids[p],
            reason=reason,
            prompt=prompts.get(ids[p]),
            arms=tuple(
                ArmExamples(arm.name, float(rates[arm.name][p]), tuple(completions[arm.name][ids[p]]))
                for arm in comparison.arms
            ),
        )
        for p, reason in reasons.items()
    ]


def _read_completions(evaluation: Evaluation, problem_ids: Sequence[str]) -> dict[str, list[Completion]]:
    columns = ["problem_id", "completion", "answer", "correct", "num_tokens", "finish_reason"]
    first: dict[tuple[str, bool], Completion] = {}
    for row in iterate_samples(evaluation.directory, columns, problem_ids):
        first.setdefault((row["problem_id"], row["correct"]), _completion(row))
    return {
        problem_id: [first[problem_id, correct] for correct in (True, False) if (problem_id, correct) in first]
        for problem_id in problem_ids
    }


def _completion(row: Mapping[str, object]) -> Completion:
    text = str(row["completion"])
    return Completion(
        text=text[:_MAX_CHARACTERS],
        num_left_out=max(0, len(text) - _MAX_CHARACTERS),
        correct=bool(row["correct"]),
        answer=None if row["answer"] is None else str(row["answer"]),
        num_tokens=int(str(row["num_tokens"])),
        truncated=row["finish_reason"] == "length",
    )
