"""The promote step on a real comparison: a record and an exit code, with and without MLflow."""

import json
import subprocess

import pytest
from kfp import dsl

from progrpo.errors import ConfigError
from progrpo.manifest import read_manifest, write_manifest
from progrpo_components import standalone, steps

RULES = [{"metric": "eval/pass_at_1", "against": "grpo", "relation": "better"}]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory, write_evaluation, write_training):
    """Evaluations and training runs of two arms; progrpo solves all problems, grpo half of them."""
    root = tmp_path_factory.mktemp("promote")
    evaluations, trainings = [], []
    for arm in ("grpo", "progrpo"):
        run = write_training(root / f"t-{arm}", arm, rows=[{"train/reward": 0.1}])
        (run / "checkpoint").mkdir()
        (run / "checkpoint" / "config.json").write_text(json.dumps({"arm": arm}))
        digest = write_manifest(run / "checkpoint", "checkpoint").digest
        write_manifest(run, "training", config=json.loads((run / "manifest.json").read_text())["config"])
        correct = [[arm == "progrpo" or p % 2 == 0] for p in range(40)]
        evaluations.append(write_evaluation(root / f"e-{arm}", arm, correct=correct, checkpoint_digest=digest))
        trainings.append(run)
    return evaluations, trainings


@pytest.fixture
def compared(experiment, tmp_path):
    """Return a function that compares with a gate of these settings."""

    def build(gate):
        evaluations, trainings = experiment
        config = {"num_resamples": 100} | (
            {} if gate is None else {"gate": {"candidate": "progrpo", "rules": RULES} | gate}
        )
        steps.compare(config, evaluations=evaluations, trainings=trainings, output=tmp_path / "comparison")
        return tmp_path / "comparison", {f"s3://bucket/{path.name}": path for path in trainings}

    return build


def test_the_candidate_is_found_by_arm_and_seed(compared):
    comparison, trainings = compared({"min_seeds": 1})
    assert steps.find_candidate(comparison, trainings) == "s3://bucket/t-progrpo"
    assert steps.find_candidate(comparison, {}) == ""


def test_without_a_gate_there_is_no_candidate_and_no_promotion(compared, tmp_path):
    comparison, trainings = compared(None)
    assert steps.find_candidate(comparison, trainings) == ""
    with pytest.raises(ConfigError, match=r"was compared without a gate\. Give comparison\.gate"):
        steps.promote(comparison=comparison, training_uri="", output=tmp_path / "out")


def test_the_component_does_nothing_without_a_gate_and_says_so(compared, tmp_path):
    from progrpo_components.promote.component import promote

    comparison = dsl.Artifact(name="comparison", uri=str(compared(None)[0]), metadata={})
    promotion = dsl.Artifact(name="promotion", uri=str(tmp_path / "promotion"), metadata={})
    card = dsl.Markdown(name="card", uri=str(tmp_path / "card.md"), metadata={})
    given = {"training_uri": "", "experiment": "e", "run_id": "r", "run_name": "r", "comparison": comparison}
    promote.python_func(**given, promotion=promotion, card=card)
    assert "has no gate (`comparison.gate`), so nothing is promoted" in (tmp_path / "card.md").read_text()
    assert not (tmp_path / "promotion").exists()


def test_the_headline_has_names_that_mlflow_and_kfp_take(compared):
    from progrpo_components.tracking import is_legal_name

    metrics = steps.read_comparison_metrics(compared(None)[0])
    assert metrics["compare/progrpo/pass_at_1"] == 1.0
    assert metrics["compare/progrpo/pass_at_1_difference"] == 0.5
    assert metrics["compare/progrpo/pass_at_1_difference_low"] > 0.3
    assert "compare/grpo/pass_at_1_difference" not in metrics
    assert all(is_legal_name(name) for name in metrics)


@pytest.mark.parametrize(("min_seeds", "code"), [(1, 0), (2, 1)])
def test_the_exit_code_is_the_verdict(python, compared, experiment, tmp_path, min_seeds, code):
    """``progrpo step promote``: 0 if promoted, 1 with the reason if not; 2 stays for mistakes."""
    comparison, _ = compared({"min_seeds": min_seeds})
    config = tmp_path / "promote.json"
    config.write_text(json.dumps({"comparison": str(comparison), "training": str(experiment[1][1])}))
    command = [python, "-m", "progrpo_pipelines.cli", "step", "promote", "--config", str(config)]
    done = subprocess.run([*command, "--output", str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    if code == 0:
        assert read_manifest(tmp_path / "out", "promotion").metadata["outcome"] == "promote"
    else:
        assert "error: progrpo: not resolved. the gate asks for 2 training seeds an arm" in done.stderr
        assert f"The report is {comparison}/report.html." in done.stderr
        assert not (tmp_path / "out").exists()


def test_an_unknown_key_of_the_step_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="unknown key"):
        standalone.run_step("promote", {"comparison": "x", "model": "y"}, tmp_path / "out", source="test")
