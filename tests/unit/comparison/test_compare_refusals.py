"""What may not be compared is refused, naming both sides; what a reader must know is said."""

import json

import pytest

from progrpo.comparison import tables
from progrpo.comparison.compare import compare
from progrpo.comparison.result import read_comparison
from progrpo.config import CompareConfig
from progrpo.errors import ComparisonError, ManifestError
from progrpo.manifest import write_manifest

QUICK = CompareConfig(num_resamples=100)
CORRECT = [[1, 0], [0, 1]]


@pytest.fixture
def pair(tmp_path, write_evaluation):
    """Return a function that compares GRPO with a ProGRPO evaluation made from the keywords given."""

    def build(*, config=QUICK, trainings=(), **other):
        first = write_evaluation(tmp_path / "first", "grpo", 0, correct=CORRECT)
        second = write_evaluation(tmp_path / "second", **({"arm": "progrpo", "seed": 0, "correct": CORRECT} | other))
        compare(config, evaluations=[first, second], trainings=trainings, output=tmp_path / "out")
        return read_comparison(tmp_path / "out")

    return build


def test_another_dataset_is_refused(pair, tmp_path):
    with pytest.raises(ComparisonError) as caught:
        pair(protocol={"dataset_digest": "f" * 64})
    message = str(caught.value)
    for part in ("protocol.dataset_digest", "dddd", "'ffff", str(tmp_path / "first"), str(tmp_path / "second")):
        assert part in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "theirs", "said"),
    [
        ("chat_template_digest", "f" * 64, f"chat_template_digest is '{'c' * 64}' in grpo seed 0; '{'f' * 64}' in"),
        ("temperature", 1.0, "temperature is 0.6 in grpo seed 0; 1.0 in progrpo seed 0"),
        ("top_p", 0.9, "top_p is 0.95 in grpo seed 0; 0.9 in progrpo seed 0"),
        ("max_completion_tokens", 128, "max_completion_tokens is 64 in grpo seed 0; 128 in progrpo seed 0"),
        ("verifier", {"countdown": "2"}, "verifier.countdown is '1' in grpo seed 0; '2' in progrpo seed 0"),
        ("top_k", 20, "top_k is None in grpo seed 0; 20 in progrpo seed 0"),
    ],
)
def test_another_protocol_is_an_alarm_on_top_of_everything(pair, tmp_path, key, theirs, said):
    comparison = pair(protocol={key: theirs})
    (difference,) = comparison.protocol_differences
    assert said in difference
    assert key not in {name.partition(".")[0] for name in comparison.protocol}
    assert all(text.startswith("NOT COMPARABLE") for text in tables.headline_sentences(comparison))
    assert f"> Warning: The arms were measured in different ways: {difference}." in tables.markdown_summary(comparison)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index('role="alert"') < page.index("headline-title")
    assert not [warning for warning in comparison.warnings if key in warning]  # said once


@pytest.mark.parametrize(
    ("key", "theirs"), [("dtype", "bfloat16"), ("engine", "vllm"), ("digest", "f" * 64), ("max_problems", 3)]
)
def test_other_arithmetic_is_no_other_protocol(pair, key, theirs):
    assert pair(protocol={key: theirs}).protocol_differences == ()


def test_equal_protocols_raise_no_alarm(pair, tmp_path):
    comparison = pair()
    assert comparison.protocol_differences == ()
    assert "NOT COMPARABLE" not in tables.markdown_summary(comparison)
    assert 'role="alert"' not in (tmp_path / "out" / "report.html").read_text()


def test_another_number_of_samples_is_refused(pair):
    with pytest.raises(ComparisonError, match=r"protocol\.num_samples differs: 2 .* 3 "):
        pair(correct=[[1, 0, 0], [0, 0, 1]])


def test_another_sampling_seed_is_no_other_protocol(pair):
    assert pair(protocol={"seed": 9}).arm("progrpo").metrics["eval/pass_at_1"].value == 0.5


def test_other_problems_are_refused(pair, tmp_path):
    with pytest.raises(ComparisonError) as caught:
        pair(problem_ids=["p0000", "other"])
    for part in ("problems differ", "'p0001'", "'other'", str(tmp_path / "first"), str(tmp_path / "second")):
        assert part in str(caught.value)


def test_one_arm_and_seed_twice_is_refused(pair, tmp_path):
    with pytest.raises(ComparisonError, match="grpo seed 0 is given twice") as caught:
        pair(arm="grpo")
    assert str(tmp_path / "first") in str(caught.value)
    assert str(tmp_path / "second") in str(caught.value)


def test_one_arm_name_for_two_algorithms_is_refused(pair):
    with pytest.raises(ComparisonError, match=r"algorithm differs: .*'grpo'.*'progrpo'"):
        pair(arm="grpo", seed=1, algorithm={"type": "progrpo"})


def test_an_absent_baseline_names_the_arms(pair):
    with pytest.raises(ComparisonError, match="'start' was not evaluated; the arms given are grpo, progrpo"):
        pair(config=CompareConfig(baseline="start"))


def test_nothing_to_compare(tmp_path):
    with pytest.raises(ComparisonError, match="no evaluations"):
        compare(QUICK, evaluations=[], trainings=[], output=tmp_path)


def test_a_trained_arm_needs_a_seed_and_start_has_none(pair):
    with pytest.raises(ComparisonError, match="'start' with seed 0"):
        pair(arm="start")


def test_an_arm_name_that_is_none_is_refused(pair):
    with pytest.raises(ComparisonError, match=r"evaluation\.json is not an evaluation: arm"):
        pair(arm="<b>")


def test_changed_samples_are_refused(tmp_path, write_evaluation):
    directory = write_evaluation(tmp_path / "a", correct=CORRECT)
    with (directory / "samples.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ManifestError, match=r"samples\.parquet differs"):
        compare(QUICK, evaluations=[directory], trainings=[], output=tmp_path / "out")


def test_a_training_run_is_no_evaluation(tmp_path, write_training):
    directory = write_training(tmp_path / "t", rows=[{"train/reward": 0.1}])
    with pytest.raises(ManifestError, match="holds a training artifact"):
        compare(QUICK, evaluations=[directory], trainings=[], output=tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_samples", 3, "2 completions of each, evaluation.json says 2 and 3"),
        ("num_problems", 5, "has 2 problems and"),
    ],
)
def test_files_that_disagree_are_refused(tmp_path, write_evaluation, key, value, message):
    directory = write_evaluation(tmp_path / "a", correct=CORRECT, **{key: value})
    with pytest.raises(ComparisonError, match=message):
        compare(QUICK, evaluations=[directory], trainings=[], output=tmp_path / "out")


def test_a_training_given_twice_is_refused(pair, tmp_path, write_training):
    runs = [write_training(tmp_path / name, rows=[{"train/reward": 0.1}]) for name in ("t1", "t2")]
    with pytest.raises(ComparisonError, match="training of grpo seed 0 is given twice"):
        pair(trainings=runs)


def test_changed_metrics_are_refused_but_weights_are_not_read(pair, tmp_path, write_training):
    run = write_training(tmp_path / "t", rows=[{"train/reward": 0.1}])
    (run / "weights.bin").write_bytes(b"abc")
    write_manifest(run, "training", config=json.loads((run / "manifest.json").read_text())["config"])
    (run / "weights.bin").unlink()
    assert pair(trainings=[run]).arm("grpo").per_seed[0].training_digest
    (run / "metrics.jsonl").write_text('{"step": 1, "train/reward": 1.0}\n')
    with pytest.raises(ManifestError, match=r"metrics\.jsonl is missing or differs"):
        compare(QUICK, evaluations=[tmp_path / "first"], trainings=[run], output=tmp_path / "out")


def test_training_that_differs_in_more_than_the_algorithm_is_said(pair, tmp_path, write_training):
    rows = [{"train/reward": 0.1}]
    a = write_training(tmp_path / "a", "grpo", 0, rows=rows, train={"loss": {"clip_low": 0.2, "kl_beta": 0.0}})
    b = write_training(
        tmp_path / "b", "progrpo", 0, rows=rows, train={"loss": {"clip_low": 0.1, "kl_beta": 0.0}, "num_threads": 2}
    )
    warnings = [w for w in pair(trainings=[a, b]).warnings if "more than the algorithm" in w]
    assert warnings == [
        "Training differed in more than the algorithm: loss.clip_low is 0.2 in grpo seed 0; 0.1 in progrpo seed 0."
    ]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index("loss.clip_low is 0.2") < page.index("headline-title")


def test_what_weakens_a_comparison_is_said(pair, tmp_path, write_training):
    stray = write_training(tmp_path / "stray", "progrpo-gated", 0, rows=[{"train/reward": 0.1}])
    warnings = "\n".join(pair(seed=3, hardware="1 GPU", unscored=2, trainings=[stray]).warnings)
    assert "One training seed only (grpo, progrpo)" in warnings
    assert "different seeds (grpo: 0; progrpo: 3)" in warnings
    assert "evaluated on different hardware (1 GPU; 2 cores)" in warnings
    assert "progrpo seed 3: 2 of 4 completions could not be scored" in warnings
    assert "Training progrpo-gated seed 0 was given without its evaluation" in warnings


def test_an_evaluation_of_another_checkpoint_than_trained_is_said(pair, tmp_path, write_training):
    run = write_training(tmp_path / "t", rows=[{"train/reward": 0.1}])
    (run / "checkpoint").mkdir()
    (run / "checkpoint" / "config.json").write_text("{}")
    write_manifest(run / "checkpoint", "checkpoint")
    warnings = [w for w in pair(trainings=[run]).warnings if "another checkpoint" in w]
    assert len(warnings) == 1
    assert "grpo seed 0 measured checkpoint eeeeeeeeeeee" in warnings[0]


def test_two_seeds_alike_need_no_warning(tmp_path, write_evaluation):
    evaluations = [
        write_evaluation(tmp_path / f"{arm}{seed}", arm, seed, correct=CORRECT)
        for arm in ("grpo", "progrpo")
        for seed in (0, 1)
    ]
    compare(QUICK, evaluations=evaluations, trainings=[], output=tmp_path / "out")
    assert read_comparison(tmp_path / "out").warnings == ()


ROWS = [{"train/reward": 0.1}]


def test_training_from_another_checkpoint_or_dataset_is_said(pair, tmp_path, write_training):
    runs = [
        write_training(tmp_path / arm, arm, rows=ROWS, inputs={"dataset": "d" * 64, "checkpoint": digest * 64})
        for arm, digest in (("grpo", "a"), ("progrpo", "b"))
    ]
    warnings = [w for w in pair(trainings=runs).warnings if "One training seed" not in w]
    assert warnings == [
        "Training differed in more than the algorithm: "
        "inputs.checkpoint is 'aaaaaaaaaaaa' in grpo seed 0; 'bbbbbbbbbbbb' in progrpo seed 0."
    ]


def test_training_that_does_not_fit_the_evaluations_is_said(tmp_path, write_evaluation, write_training):
    start = write_evaluation(tmp_path / "start", "start", None, correct=CORRECT)
    arm = write_evaluation(tmp_path / "grpo", "grpo", 0, correct=CORRECT)
    run = write_training(tmp_path / "t", rows=ROWS, inputs={"dataset": "9" * 64, "checkpoint": "9" * 64})
    compare(QUICK, evaluations=[start, arm], trainings=[run], output=tmp_path / "out")
    warnings = "\n".join(read_comparison(tmp_path / "out").warnings)
    assert "Trained on another dataset than the one evaluated on: grpo seed 0." in warnings
    assert "start is not the checkpoint that training began from: grpo seed 0." in warnings


def test_a_broken_manifest_inside_a_training_run_is_named(pair, tmp_path, write_training):
    run = write_training(tmp_path / "t", rows=ROWS)
    (run / "checkpoint").mkdir()
    (run / "checkpoint" / "manifest.json").write_text("{")
    with pytest.raises(ManifestError, match=r"checkpoint/manifest\.json is not a valid manifest"):
        pair(trainings=[run])
