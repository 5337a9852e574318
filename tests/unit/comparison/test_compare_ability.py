"""General ability in the comparison: every arm against the start, in every output, and as a rule of the gate."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from progrpo.comparison.compare import compare
from progrpo.comparison.result import Comparison, read_comparison
from progrpo.config import AbilityConfig, CompareConfig, parse
from progrpo.errors import ComparisonError, ConfigError
from progrpo.evaluation.ability import ABILITY
from progrpo.manifest import write_manifest
from progrpo_components.settings import ComparePipeline

NUM = 400
BEFORE = np.arange(NUM) < 0.6 * NUM  # accuracy 0.6


def _measure(evaluation: Path, right, *, metric="acc", higher_is_better=True, **settings) -> Path:
    """Write what measure_ability writes of a task with one metric into an evaluation."""
    directory = evaluation / ABILITY
    directory.mkdir()
    rows = [{"task": "hellaswag", "metric": metric, "document": f"{i}", "value": float(v)} for i, v in enumerate(right)]
    pq.write_table(pa.Table.from_pylist(rows), directory / "documents.parquet")
    content = {"task_versions": {"hellaswag": 1}, "higher_is_better": {"hellaswag": {metric: higher_is_better}}}
    (directory / "ability.json").write_text(json.dumps(content))
    config = AbilityConfig(tasks=("hellaswag",), **settings).model_dump(mode="json")
    write_manifest(directory, "ability", config={"ability": config})
    return evaluation


def _flip(start: np.ndarray, first: int, count: int) -> np.ndarray:
    """Return the answers with ``count`` of them, from ``first`` on, turned round."""
    after = start.copy()
    after[first : first + count] = ~after[first : first + count]
    return after


@pytest.fixture
def evaluations(tmp_path, write_evaluation) -> dict[str, Path]:
    """Start, grpo with two seeds and progrpo with two, with hardly any Pass@k between them."""
    rng = np.random.default_rng(0)
    made = {}
    for arm, seed in [("start", None), ("grpo", 0), ("grpo", 1), ("progrpo", 0), ("progrpo", 1)]:
        made[f"{arm}{'' if seed is None else seed}"] = write_evaluation(
            tmp_path / f"{arm}{seed}", arm, seed, correct=rng.random((12, 4)) < 0.5
        )
    return made


def _compare(evaluations, output: Path, **config) -> Comparison:
    compare(
        CompareConfig(num_resamples=200, **config), evaluations=list(evaluations.values()), trainings=[], output=output
    )
    return read_comparison(output)


def test_every_arm_is_held_against_the_start_over_its_seeds(evaluations, tmp_path):
    _measure(evaluations["start"], BEFORE)
    for seed, lost in ((0, 60), (1, 64)):  # of 240 right ones: -0.15 and -0.16
        _measure(evaluations[f"grpo{seed}"], _flip(BEFORE, 0, lost))
        _measure(evaluations[f"progrpo{seed}"], _flip(_flip(BEFORE, 0, 4), 300, 4 + seed))  # as many lost as won
    comparison = _compare(evaluations, tmp_path / "out")
    results = {result.arm: result for result in comparison.ability}
    assert set(results) == {"grpo", "progrpo"}
    grpo, progrpo = results["grpo"], results["progrpo"]
    assert (grpo.before, grpo.after) == (pytest.approx(0.6), pytest.approx(0.445))
    assert grpo.difference.value == pytest.approx(-0.155)
    assert grpo.difference.low < -0.155 < grpo.difference.high < 0
    assert (grpo.outcome, grpo.difference.resolved) == ("worse", True)
    assert progrpo.outcome == "not resolved"
    report, summary = (tmp_path / "out" / name for name in ("report.html", "summary.md"))
    for text in (report.read_text(), summary.read_text()):
        assert "hellaswag" in text
        assert "General ability got worse, resolved: grpo in hellaswag acc." in text
        assert "0.4450" in text
    assert 'href="#ability"' in report.read_text()
    assert not [warning for warning in comparison.warnings if "ability" in warning]


def test_less_is_better_where_the_task_says_so(evaluations, tmp_path):
    evaluations = {"start": evaluations["start"], "grpo0": evaluations["grpo0"]}
    _measure(evaluations["start"], BEFORE, metric="brier", higher_is_better=False)
    _measure(evaluations["grpo0"], _flip(BEFORE, 0, 60), metric="brier", higher_is_better=False)
    (result,) = _compare(evaluations, tmp_path / "out").ability
    assert result.outcome == "better"


def test_what_was_measured_of_some_only_is_said(evaluations, tmp_path):
    assert _compare(evaluations, tmp_path / "none").ability == ()
    assert "General ability" not in (tmp_path / "none/report.html").read_text()
    for name in ("grpo0", "grpo1", "progrpo0"):
        _measure(evaluations[name], BEFORE)
    without_start = _compare(evaluations, tmp_path / "without")
    assert without_start.ability == ()
    assert any("not of start" in warning for warning in without_start.warnings)
    _measure(evaluations["start"], BEFORE)
    partly = _compare(evaluations, tmp_path / "partly")
    assert [result.arm for result in partly.ability] == ["grpo"]
    assert any("was not measured of progrpo seed 1" in warning for warning in partly.warnings)


def test_other_settings_are_refused(evaluations, tmp_path):
    _measure(evaluations["start"], BEFORE)
    for name in ("grpo0", "grpo1", "progrpo0", "progrpo1"):
        _measure(evaluations[name], BEFORE, num_fewshot=5)
    with pytest.raises(ComparisonError, match="settings differ"):
        _compare(evaluations, tmp_path / "out")


@pytest.mark.parametrize(
    ("lost", "won", "margin", "outcome"),
    [(60, 0, 0.01, "reject"), (0, 0, 0.05, "promote"), (8, 4, 0.01, "not_resolved"), (0, 60, 0.01, "promote")],
)
def test_a_rule_of_the_gate(evaluations, tmp_path, lost, won, margin, outcome):
    _measure(evaluations["start"], BEFORE)
    for name in ("grpo0", "grpo1", "progrpo0", "progrpo1"):
        _measure(evaluations[name], _flip(_flip(BEFORE, 0, lost), 300, won))
    rule = {"relation": "keeps_ability", "task": "hellaswag", "margin": margin}
    gate = _compare(evaluations, tmp_path / "out", gate={"candidate": "progrpo", "rules": [rule]}).gate
    assert gate is not None
    assert gate.outcome == outcome
    assert gate.rules[0].reason.startswith(f"hellaswag acc of progrpo not worse than start by more than {margin:g}: ")
    assert "hellaswag acc of progrpo not worse" in (tmp_path / "out/report.html").read_text()


def test_a_rule_about_what_was_not_measured_is_refused(evaluations, tmp_path):
    rule = {"relation": "keeps_ability", "task": "hellaswag", "metric": "acc_norm", "margin": 0.01}
    gate = {"candidate": "progrpo", "rules": [rule]}
    with pytest.raises(ComparisonError, match="acc_norm of hellaswag, but of progrpo and start was measured: nothing"):
        _compare(evaluations, tmp_path / "out", gate=gate)
    with pytest.raises(ConfigError, match=r"evaluation\.ability is not set"):
        parse(ComparePipeline, {"comparison": {"gate": gate}}, source="parameters")
    with pytest.raises(ValidationError):
        CompareConfig(gate=gate | {"rules": [{**rule, "margin": 0}]})
    parse(
        ComparePipeline,
        {"comparison": {"gate": gate}, "evaluation": {"ability": {"tasks": ["hellaswag"]}}},
        source="parameters",
    )
