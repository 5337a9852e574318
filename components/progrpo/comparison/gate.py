"""The promotion gate: rules judged on intervals, and what follows from them.

A rule holds where the whole interval of its contrast lies on the right side of its threshold, fails where the whole
interval lies on the wrong side, and is not resolved where the threshold lies inside. The candidate is promoted if every
rule holds and rejected if one fails. Since all must hold, several rules need no correction of their level: promoting
wrongly takes a false "holds" of a rule that is not met (intersection-union test, Berger 1982, Technometrics 24:295).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from progrpo.comparison.result import AbilityResult, GateResult, RuleResult
from progrpo.comparison.sources import Evaluation
from progrpo.comparison.statistics import contrast, point_estimate
from progrpo.comparison.tables import label, number, signed_number, unit
from progrpo.config import (
    LOWER_IS_BETTER,
    START,
    Better,
    CompareConfig,
    GateConfig,
    GateRule,
    Keeps,
    KeepsAbility,
    NotWorse,
    Outcome,
)
from progrpo.errors import ComparisonError
from progrpo.evaluation.resampling import Interval


def judge(
    config: CompareConfig,
    evaluations: Mapping[str, Sequence[Evaluation]],
    obstacles: Sequence[str] = (),
    *,
    ability: Sequence[AbilityResult] = (),
) -> GateResult | None:
    """Judge the candidate of ``config.gate``; None where there is no gate.

    Args:
        config: the rules, and how intervals are made.
        evaluations: by arm.
        obstacles: reasons found elsewhere why nothing may be promoted, such as evaluations that do not compare.
        ability: general ability against the start checkpoint, where it was measured.

    Raises:
        ComparisonError: the gate names an arm or seed that was not evaluated, a k above the completions a problem, or
            an ability that was not measured.
    """
    gate = config.gate
    if gate is None:
        return None
    check_gate(gate, evaluations)
    rules = tuple(
        _judge_ability(rule, gate.candidate, ability)
        if isinstance(rule, KeepsAbility)
        else _judge_rule(rule, gate.candidate, evaluations, config)
        for rule in gate.rules
    )
    obstacles = (*obstacles, *_few_seeds(gate, evaluations))
    outcome = _outcome(rules, obstacles)
    chosen = next(e for e in evaluations[gate.candidate] if gate.seed in (None, e.seed))
    assert chosen.seed is not None
    return GateResult(
        candidate=gate.candidate,
        outcome=outcome,
        reason=_reason(outcome, rules, obstacles),
        level=config.level,
        rules=rules,
        obstacles=obstacles,
        model=gate.model,
        fail_on=gate.fail_on,
        seed=chosen.seed,
        checkpoint_digest=chosen.summary.checkpoint_digest,
    )


def check_gate(gate: GateConfig, evaluations: Mapping[str, Sequence[Evaluation]]) -> None:
    """Refuse a gate about what was not evaluated.

    Raises:
        ComparisonError: see :func:`judge`.
    """
    if missing := [arm for arm in gate.arms() if arm not in evaluations]:
        raise ComparisonError(
            f"comparison.gate names {', '.join(map(repr, missing))}, which was not evaluated; the arms given are "
            f"{', '.join(evaluations)}. Name one of them, or give its evaluation."
        )
    seeds = [evaluation.seed for evaluation in evaluations[gate.candidate]]
    if gate.seed is not None and gate.seed not in seeds:
        raise ComparisonError(
            f"comparison.gate.seed is {gate.seed}, but {gate.candidate} was evaluated with seeds "
            f"{', '.join(map(str, seeds))}. Name one of them, or leave it out."
        )
    num_samples = evaluations[gate.candidate][0].summary.num_samples
    for rule in gate.rules:
        if rule.k is not None and rule.k > num_samples:
            raise ComparisonError(
                f"comparison.gate asks for {rule.metric}, but the evaluations have {num_samples} completions a "
                f"problem. Lower k, or evaluate with more."
            )


def _judge_ability(rule: KeepsAbility, candidate: str, ability: Sequence[AbilityResult]) -> RuleResult:
    of_candidate = {(each.task, each.metric): each for each in ability if each.arm == candidate}
    found = of_candidate.get((rule.task, rule.metric))
    if found is None:
        measured = ", ".join(f"{task} {metric}" for task, metric in of_candidate) or "nothing"
        raise ComparisonError(
            f"comparison.gate asks for {rule.metric} of {rule.task}, but of {candidate} and {START} was measured: "
            f"{measured}. Name one of these, or set evaluation.ability and evaluate again."
        )
    sign, interval = 1.0 if found.higher_is_better else -1.0, found.difference
    return _result(rule, f"{rule.task} {rule.metric}", candidate, sign, interval, found.after, found.before)


def _judge_rule(
    rule: Better | NotWorse | Keeps,
    candidate: str,
    evaluations: Mapping[str, Sequence[Evaluation]],
    config: CompareConfig,
) -> RuleResult:
    arm, other, metric = evaluations[candidate], evaluations[rule.against], rule.metric
    interval = contrast(arm, other, metric, config, fraction=_fraction(rule))
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    values = point_estimate(arm, metric), point_estimate(other, metric)
    return _result(rule, metric, candidate, sign, interval, *values)


def _result(
    rule: GateRule, metric: str, candidate: str, sign: float, interval: Interval, value: float, against_value: float
) -> RuleResult:
    """Hold an interval against the threshold of a rule; ``sign`` is -1 where lower is better."""
    margin = 0.0 if isinstance(rule, Keeps) else rule.margin if isinstance(rule, Better) else -rule.margin
    threshold = sign * margin
    outcome = _side(interval, threshold, sign, strict=isinstance(rule, Better))
    return RuleResult(
        metric=metric,
        against=rule.against,
        relation=rule.relation,
        fraction=_fraction(rule),
        threshold=threshold,
        candidate_value=value,
        against_value=against_value,
        contrast=Interval(interval.value, interval.low, interval.high),
        outcome=outcome,
        reason=_rule_reason(rule, metric, candidate, interval, threshold, outcome, less=sign < 0),
    )


def _fraction(rule: GateRule) -> float:
    return rule.fraction if isinstance(rule, Keeps) else 1.0


def _side(
    estimate: Interval, threshold: float, sign: float, *, strict: bool
) -> Literal["holds", "fails", "not_resolved"]:
    worst, best = sorted((sign * (estimate.low - threshold), sign * (estimate.high - threshold)))
    if worst > 0 or (worst == 0 and not strict):
        return "holds"
    if best < 0 or (best == 0 and strict):
        return "fails"
    return "not_resolved"


def _few_seeds(gate: GateConfig, evaluations: Mapping[str, Sequence[Evaluation]]) -> list[str]:
    counts = {arm: len(evaluations[arm]) for arm in gate.arms() if arm != START}
    few = [f"{arm} has {count}" for arm, count in counts.items() if count < gate.min_seeds]
    return [f"the gate asks for {gate.min_seeds} training seeds an arm (min_seeds): {', '.join(few)}"] if few else []


def _outcome(rules: Sequence[RuleResult], obstacles: Sequence[str]) -> Outcome:
    outcomes = {rule.outcome for rule in rules}
    if obstacles:  # what cannot be trusted to promote cannot be trusted to reject either
        return "not_resolved"
    if "fails" in outcomes:
        return "reject"
    return "not_resolved" if "not_resolved" in outcomes else "promote"


def _reason(outcome: Outcome, rules: Sequence[RuleResult], obstacles: Sequence[str]) -> str:
    if obstacles:
        return "; ".join(obstacles)
    wanted = {"promote": "holds", "reject": "fails", "not_resolved": "not_resolved"}[outcome]
    return "; ".join(rule.reason for rule in rules if rule.outcome == wanted)


def rule_text(rule: RuleResult | GateRule, candidate: str) -> str:
    """Say what a rule asks for: "Pass@1 of progrpo not worse than grpo by more than 1.0 points"."""
    if rule.relation == "keeps_ability":
        margin = abs(rule.threshold) if isinstance(rule, RuleResult) else rule.margin
        name = rule.metric if isinstance(rule, RuleResult) else f"{rule.task} {rule.metric}"
        return f"{name} of {candidate} not worse than {START} by more than {margin:g}"
    less = rule.metric in LOWER_IS_BETTER
    name = label(rule.metric).partition(" (")[0]
    if rule.relation == "keeps":
        return f"{name} of {candidate} at {'most' if less else 'least'} {rule.fraction:g} of {rule.against}'s"
    margin = abs(rule.threshold) if isinstance(rule, RuleResult) else rule.margin
    amount = f"{number(rule.metric, margin)} {unit(rule.metric)}".rstrip()
    if rule.relation == "not_worse":
        return f"{name} of {candidate} not worse than {rule.against} by more than {amount}"
    return f"{name} of {candidate} better than {rule.against}" + (f" by more than {amount}" if margin else "")


def _rule_reason(
    rule: GateRule, metric: str, candidate: str, estimate: Interval, threshold: float, outcome: str, *, less: bool
) -> str:
    other = f"{rule.fraction:g} × {rule.against}" if isinstance(rule, Keeps) else rule.against
    # One digit more than in tables, and more where it takes them: "[-1.0, 0.2] is above -1.0" would puzzle.
    numbers = (estimate.value, estimate.low, estimate.high, threshold)
    for extra in range(1, 5):
        value, low, high, bound = (signed_number(metric, each, extra_digits=extra) for each in numbers)
        if outcome == "not_resolved" or threshold in numbers[1:3] or bound not in (low, high):
            break
    where = "includes"
    if outcome != "not_resolved":
        where = "is below" if (outcome == "holds") == less else "is above"
    contrasted = f"{candidate} − {other} = {value} {unit(metric)}".rstrip()
    return f"{rule_text(rule, candidate)}: {contrasted}, interval [{low}, {high}] {where} {bound}"
