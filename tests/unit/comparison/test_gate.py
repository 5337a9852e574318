"""The promotion gate: three outcomes on intervals, typed rules, obstacles, and where the result is written."""

import json

import numpy as np
import pytest

from progrpo.comparison.compare import compare
from progrpo.comparison.gate import _side
from progrpo.comparison.result import read_comparison
from progrpo.config import CompareConfig, parse
from progrpo.errors import ComparisonError, ConfigError
from progrpo.evaluation.bootstrap import bootstrap_difference
from progrpo.evaluation.resampling import Interval
from progrpo.manifest import read_manifest
from progrpo_components.settings import ComparePipeline

NOT_WORSE = {"metric": "eval/pass_at_1", "against": "grpo", "relation": "not_worse", "margin": 0.01}
BETTER = {"metric": "eval/pass_at_4", "against": "grpo", "relation": "better"}
KEEPS = {"metric": "eval/entropy", "against": "start", "relation": "keeps", "fraction": 0.8}


@pytest.fixture
def gate(tmp_path, write_evaluation):
    """Return a function that compares start, grpo and progrpo under a gate."""

    def build(rules, *, seeds=(0, 1), progrpo=None, entropy=0.9, grpo=None, **settings):
        rng = np.random.default_rng(0)
        base = np.zeros((400, 4), bool)
        base[:160] = True  # grpo solves 40 % of the problems, always the same
        grpo = base if grpo is None else grpo
        progrpo = base if progrpo is None else progrpo
        noise = rng.uniform(0.95, 1.05, size=(400, 4))
        evaluations = [write_evaluation(tmp_path / "start", "start", None, correct=base, entropy=noise)]
        for seed in seeds:
            evaluations += [
                write_evaluation(tmp_path / f"grpo{seed}", "grpo", seed, correct=grpo, entropy=0.2),
                write_evaluation(tmp_path / f"progrpo{seed}", "progrpo", seed, correct=progrpo, entropy=entropy * noise,
                                 **settings.pop("summary", {})),
            ]  # fmt: skip
        config = parse(
            CompareConfig,
            {"num_resamples": 300, "gate": {"candidate": "progrpo", "rules": rules} | settings},
            source="test",
        )
        compare(config, evaluations=evaluations, trainings=[], output=tmp_path / "out")
        return read_comparison(tmp_path / "out").gate

    return build


def solving(extra: int, lost: int = 0) -> np.ndarray:
    """Solve the 160 problems that grpo solves but ``lost``, and ``extra`` of the other 240."""
    correct = np.zeros((400, 4), bool)
    correct[lost : 160 + extra] = True
    return correct


@pytest.mark.parametrize(
    ("interval", "threshold", "sign", "strict", "outcome"),
    [
        ((0.1, 0.3), 0.0, 1, True, "holds"),
        ((-0.3, -0.1), 0.0, 1, True, "fails"),
        ((-0.1, 0.3), 0.0, 1, True, "not_resolved"),
        ((0.0, 0.0), 0.0, 1, True, "fails"),  # equal in every resample is not better
        ((0.0, 0.0), 0.0, 1, False, "holds"),  # but it is not worse
        ((0.0, 0.3), 0.0, 1, True, "not_resolved"),
        ((-0.01, 0.3), -0.01, 1, False, "holds"),
        ((-0.011, 0.3), -0.01, 1, False, "not_resolved"),
        ((-9.0, -5.0), 0.0, -1, True, "holds"),  # fewer tokens are better
        ((5.0, 9.0), 0.0, -1, True, "fails"),
        ((-1.0, 9.0), 0.0, -1, True, "not_resolved"),
    ],
)
def test_a_rule_looks_at_its_whole_interval(interval, threshold, sign, strict, outcome):
    estimate = Interval(sum(interval) / 2, interval[0], interval[1])
    assert _side(estimate, threshold, sign, strict=strict) == outcome


@pytest.mark.parametrize(
    ("gap", "least", "most"),  # true gain; bounds of how often the rule is said to hold
    [(0.0, 0.0, 0.035), (-0.06, 0.0, 0.0), (0.06, 0.85, 1.0)],
)
def test_how_often_a_rule_holds_in_studies_with_a_known_truth(gap, least, most):
    """400 studies of 200 problems, 8 completions and 3 seeds: wrongly better at most 2.5 % and what chance adds."""
    rng = np.random.default_rng(1)

    def arm(solve_P, gain):
        runs = (np.clip(solve_P + gain + 0.01 * rng.standard_normal(), 0, 1) for _ in range(3))  # seeds differ
        return [(rng.binomial(8, run_P) / 8, None) for run_P in runs]

    holds = 0
    for _ in range(400):
        solve_P = rng.beta(1, 1.5, size=200)
        interval = bootstrap_difference(arm(solve_P, gap), arm(solve_P, 0.0), bounds=(0, 1), num_resamples=300)
        holds += _side(interval, 0.0, 1, strict=True) == "holds"
    assert least <= holds / 400 <= most


def test_all_rules_hold(gate, tmp_path):
    result = gate([NOT_WORSE, BETTER, KEEPS], progrpo=solving(40))
    assert (result.outcome, [rule.outcome for rule in result.rules]) == ("promote", ["holds"] * 3)
    not_worse, better, keeps = result.rules
    assert better.contrast.value == pytest.approx(0.1)  # 40 of 400 problems more
    assert (better.candidate_value, better.against_value) == (pytest.approx(0.5), pytest.approx(0.4))
    assert (not_worse.threshold, better.threshold, keeps.threshold) == (-0.01, 0.0, 0.0)
    assert keeps.contrast.value == pytest.approx(0.9 - 0.8, abs=2e-3)  # 0.9 of start's entropy, less 0.8 of it
    assert keeps.contrast.high - keeps.contrast.low < 0.01  # paired: what is high at start is high after it
    assert (result.seed, result.checkpoint_digest) == (0, "e" * 64)
    assert "Pass@1 of progrpo not worse than grpo by more than 1.0 points" in result.reason
    written = json.loads((tmp_path / "out" / "gate.json").read_text())
    assert written == result.model_dump(mode="json")
    assert read_manifest(tmp_path / "out", "comparison").metadata["gate"] == "promote"


def test_one_rule_that_fails_rejects_and_is_the_reason(gate, tmp_path):
    result = gate([NOT_WORSE, KEEPS], progrpo=solving(0, lost=60))
    assert result.outcome == "reject"
    assert [rule.outcome for rule in result.rules] == ["fails", "holds"]
    assert result.reason == result.rules[0].reason
    assert "progrpo − grpo = −15.00 points, interval [−" in result.reason
    assert result.reason.endswith("] is below −1.00")
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'Promotion of progrpo: <span class="verdict reject">reject' in page


def test_what_the_interval_holds_both_sides_of_is_not_resolved(gate):
    result = gate([NOT_WORSE, BETTER], progrpo=solving(12, lost=10))
    assert result.outcome == "not_resolved"
    assert [rule.outcome for rule in result.rules] == ["not_resolved", "not_resolved"]
    assert "includes −1.00" in result.rules[0].reason
    assert "includes 0.00" in result.rules[1].reason


def test_a_rejected_rule_outweighs_one_that_is_not_resolved(gate):
    result = gate([BETTER, KEEPS], progrpo=solving(12, lost=10), entropy=0.3)
    assert [rule.outcome for rule in result.rules] == ["not_resolved", "fails"]
    assert result.outcome == "reject"


def test_less_is_better_for_length(gate, tmp_path):
    rule = {"metric": "eval/completion_tokens", "against": "grpo"}
    result = gate(
        [rule | {"relation": "better"}, rule | {"relation": "keeps", "fraction": 1.5},
         rule | {"relation": "not_worse", "margin": 0.5}],
        seeds=(0, 1),
    )  # fmt: skip
    assert [r.outcome for r in result.rules] == ["fails", "holds", "holds"]  # both have 10 tokens everywhere
    assert [r.threshold for r in result.rules] == [-0.0, -0.0, 0.5]
    assert "at most 1.5 of grpo's" in result.rules[1].reason


@pytest.mark.parametrize("extra", [40, 0])
def test_one_seed_resolves_nothing(gate, extra):
    result = gate([BETTER], seeds=(0,), progrpo=solving(extra, lost=0 if extra else 60))
    assert result.outcome == "not_resolved"
    assert result.reason == "the gate asks for 2 training seeds an arm (min_seeds): progrpo has 1, grpo has 1"


def test_fewer_seeds_can_be_asked_for(gate):
    assert gate([BETTER], seeds=(0,), progrpo=solving(40), min_seeds=1).outcome == "promote"


def test_another_protocol_resolves_nothing(gate):
    result = gate([BETTER], progrpo=solving(40), summary={"protocol": {"temperature": 1.0}})
    assert result.outcome == "not_resolved"
    assert "measured in different ways" in result.reason


def test_the_seed_to_register_can_be_named(gate):
    assert gate([BETTER], progrpo=solving(40), seed=1).seed == 1


@pytest.mark.parametrize(
    ("rule", "settings", "message"),
    [
        (BETTER | {"against": "other"}, {}, "names 'other', which was not evaluated; the arms given are start, grpo"),
        (BETTER | {"metric": "eval/pass_at_5"}, {}, "asks for eval/pass_at_5, but the evaluations have 4 completions"),
        (BETTER, {"seed": 7}, "gate.seed is 7, but progrpo was evaluated with seeds 0, 1"),
    ],
)
def test_a_gate_about_what_was_not_measured_is_refused(gate, tmp_path, rule, settings, message):
    with pytest.raises(ComparisonError, match=message):
        gate([rule], **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("gate_config", "message"),
    [
        ({"candidate": "start", "rules": [NOT_WORSE]}, "cannot be promoted"),
        ({"candidate": "grpo", "rules": [NOT_WORSE]}, "against itself"),
        ({"candidate": "progrpo", "rules": []}, "at least 1"),
        ({"candidate": "progrpo", "rules": [BETTER | {"metric": "eval/pass@1"}]}, "no evaluation metric"),
        ({"candidate": "progrpo", "rules": [BETTER | {"metric": "eval/pass_at_0"}]}, "no evaluation metric"),
        ({"candidate": "progrpo", "rules": [BETTER | {"fraction": 0.5}]}, "fraction"),
        ({"candidate": "progrpo", "rules": [NOT_WORSE | {"margin": 0}]}, "greater than 0"),
        ({"candidate": "progrpo", "rules": [BETTER | {"relation": "best"}]}, "better"),
        ({"candidate": "other", "rules": [NOT_WORSE]}, "names 'other', allowed are grpo, progrpo, start"),
        ({"candidate": "progrpo", "rules": [BETTER | {"metric": "eval/pass_at_64"}]}, "num_samples is 32"),
        ({"candidate": "progrpo", "rules": [BETTER], "seed": 5}, "seed is 5, trained are 0, 1"),
    ],
)
def test_a_gate_that_cannot_work_is_refused_before_training(gate_config, message):
    with pytest.raises(ConfigError, match=message):
        parse(ComparePipeline, {"comparison": {"gate": gate_config}}, source="test")
