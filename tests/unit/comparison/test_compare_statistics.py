"""Estimates that can be checked by hand."""

import json
import re

import numpy as np
import pytest

from progrpo.comparison import tables
from progrpo.comparison.compare import compare
from progrpo.comparison.curves import moving_average
from progrpo.comparison.result import read_comparison
from progrpo.config import CompareConfig
from progrpo.errors import ManifestError
from progrpo.evaluation.summary import metric_names
from progrpo.manifest import read_manifest
from progrpo.metrics import Progress

QUICK = CompareConfig(num_resamples=200)


def run(tmp_path, evaluations, trainings=(), config=QUICK, progress=None):
    output = tmp_path / "comparison"
    compare(config, evaluations=evaluations, trainings=trainings, output=output, progress=progress)
    return read_comparison(output)


def test_pass_at_k_is_the_mean_over_problems_and_seeds(tmp_path, write_evaluation):
    a = write_evaluation(tmp_path / "a", "grpo", 0, correct=[[1, 0], [0, 0]])
    b = write_evaluation(tmp_path / "b", "grpo", 1, correct=[[1, 1], [1, 0]])
    arm = run(tmp_path, [b, a]).arm("grpo")
    # Pass@1: seed 0 (1/2 + 0) / 2 = 1/4, seed 1 (1 + 1/2) / 2 = 3/4. Pass@2: 1/2 and 1.
    assert arm.metrics["eval/pass_at_1"].value == pytest.approx(0.5)
    assert arm.metrics["eval/pass_at_2"].value == pytest.approx(0.75)
    assert [seed.metrics["eval/pass_at_1"] for seed in arm.per_seed] == pytest.approx([0.25, 0.75])
    assert arm.seeds == (0, 1)


def test_entropy_and_nll_are_means_over_tokens(tmp_path, write_evaluation):
    # (2 tokens at 0.5 nats + 6 tokens at 0.1) / 8 = 0.2; nll twice that; not (0.5 + 0.1) / 2.
    entropy, nll = [[0.5], [0.1]], [[1.0], [0.2]]
    a = write_evaluation(tmp_path / "a", correct=[[1, 0], [0, 0]], num_tokens=[[1], [3]], entropy=entropy, nll=nll)
    metrics = run(tmp_path, [a]).arm("grpo").metrics
    assert metrics["eval/entropy"].value == pytest.approx(0.2)
    assert metrics["eval/sampled_nll"].value == pytest.approx(0.4)
    assert metrics["eval/completion_tokens"].value == pytest.approx(2.0)


def test_distinct_correct_counts_right_answers_once_each(tmp_path, write_evaluation):
    a = write_evaluation(
        tmp_path / "a",
        correct=[[1, 1, 1, 0], [0, 0, 0, 1]],
        answers=[["x", "y", "x", "z"], [None, "q", "q", "q"]],
        truncated=[[0, 0, 0, 0], [1, 0, 1, 0]],
    )
    metrics = run(tmp_path, [a]).arm("grpo").metrics
    assert metrics["eval/distinct_correct"].value == pytest.approx((2 + 1) / 2)
    assert metrics["eval/truncated_frac"].value == pytest.approx(2 / 8)


def test_differences_are_paired_by_problem(tmp_path, write_evaluation):
    # Problems differ widely, but on each the arm has exactly one correct completion more: no spread is left.
    rows = [[1] * solved + [0] * (4 - solved) for solved in range(5)]
    base = write_evaluation(tmp_path / "a", "grpo", correct=rows[:4] * 50)
    arm = write_evaluation(tmp_path / "b", "progrpo", correct=rows[1:] * 50)
    comparison = run(tmp_path, [arm, base])
    (difference,) = comparison.differences
    at_1 = difference.metrics["eval/pass_at_1"]
    # What is left is what no 200 problems show: kinds that make up less than 1 - 0.05^(1/200) = 1.5 % of all.
    assert at_1.value == pytest.approx(0.25)
    assert at_1.low == pytest.approx(0.25 - 1.25 * (1 - 0.05 ** (1 / 200)))
    assert at_1.high == pytest.approx(0.25 + 0.75 * (1 - 0.05 ** (1 / 200)))
    assert at_1.resolved
    spread = comparison.arm("grpo").metrics["eval/pass_at_1"]
    assert spread.high - spread.low > 0.07  # four kinds of problems: about 2 * 1.96 * 0.28 / sqrt(200)
    assert difference.superiority.value == 1.0


def test_the_band_of_a_difference_is_wider_than_its_intervals_and_said_in_words(tmp_path, write_evaluation):
    rng = np.random.default_rng(0)
    base = rng.random((300, 8)) < 0.3 * rng.random((300, 1))
    arm = base | (rng.random((300, 8)) < 0.08)
    evaluations = [write_evaluation(tmp_path / n, n, correct=c) for n, c in (("grpo", base), ("progrpo", arm))]
    (difference,) = run(tmp_path, evaluations).differences
    assert [point.k for point in difference.curve] == list(range(1, 9))
    for point in difference.curve:
        assert point.band_low <= point.value <= point.band_high
    widths = [(p.band_high - p.band_low) / (p.high - p.low) for p in difference.curve[1:]]
    assert min(widths) > 1  # at every k at once costs width
    assert tables.band_words(difference, "grpo") == "progrpo is above grpo for k from 1 to 8."
    none = difference.model_copy(update={"curve": difference.curve[:0]})
    assert tables.band_words(none, "grpo") == "progrpo is not resolved against grpo at any k."
    assert "progrpo is above grpo for k from 1 to 8." in (tmp_path / "comparison" / "report.html").read_text()


def test_the_report_says_what_could_not_have_been_found_and_what_would_find_it(tmp_path, write_evaluation):
    rng = np.random.default_rng(3)
    solve = 0.3 * rng.random((100, 1))
    evaluations = [
        write_evaluation(tmp_path / f"{arm}{seed}", arm, seed, correct=rng.random((100, 4)) < solve + gain)
        for arm, gain in (("grpo", 0.0), ("progrpo", 0.01))
        for seed in (0, 1)
    ]
    (difference,) = run(tmp_path, evaluations).differences
    note, seen = difference.power["eval/pass_at_1"], difference.metrics["eval/pass_at_1"]
    assert not seen.resolved
    assert abs(seen.value) < note.detectable < 0.5
    assert note.problems_needed is None or note.problems_needed > 100
    assert set(difference.power) == {"eval/pass_at_1", "eval/pass_at_4", "eval/entropy"}
    sentence = tables.power_sentences(difference, 100)[0]
    expected = (
        rf"Pass@1: true differences under {100 * note.detectable:.1f} points are resolved in less than 80%; one as .*"
    )
    assert re.fullmatch(expected, sentence)
    assert sentence in (tmp_path / "comparison" / "summary.md").read_text()
    assert sentence in (tmp_path / "comparison" / "report.html").read_text()


def test_equal_arms_are_equally_often_superior(tmp_path, write_evaluation):
    evaluations = [write_evaluation(tmp_path / arm, arm, correct=[[1, 0], [0, 0]] * 20) for arm in ("grpo", "progrpo")]
    (difference,) = run(tmp_path, evaluations).differences
    assert difference.superiority.value == 0.5
    assert difference.superiority.low < 0.5 < difference.superiority.high


def test_a_difference_that_may_be_zero_is_not_resolved(tmp_path, write_evaluation):
    # Two problems up, one down.
    base = write_evaluation(tmp_path / "a", "grpo", correct=[[1], [0], [0], [1]])
    arm = write_evaluation(tmp_path / "b", "progrpo", correct=[[0], [1], [1], [1]])
    (difference,) = run(tmp_path, [base, arm]).differences
    at_1 = difference.metrics["eval/pass_at_1"]
    assert at_1.value == 0.25
    assert at_1.low < 0 < at_1.high
    assert not at_1.resolved
    assert not difference.metrics["eval/completion_tokens"].resolved  # equal: [0, 0] does not exclude 0


def test_a_seed_that_disagrees_widens_the_interval(tmp_path, write_evaluation):
    agree = [write_evaluation(tmp_path / f"a{s}", "grpo", s, correct=[[1, 0]] * 8) for s in (0, 1)]
    differ = [write_evaluation(tmp_path / f"b{s}", "progrpo", s, correct=[[s, s]] * 8) for s in (0, 1)]
    comparison = run(tmp_path, [*agree, *differ])
    same, other = (comparison.arm(name).metrics["eval/pass_at_1"] for name in ("grpo", "progrpo"))
    assert same.value == other.value == 0.5
    assert same.high - same.low < 0.4  # eight equal problems
    assert other.low <= 0.0
    assert other.high >= 1.0


def test_level_reaches_the_bootstrap(tmp_path, write_evaluation):
    a = write_evaluation(tmp_path / "a", correct=[[i % 3 == 0] for i in range(60)])
    wide, narrow = (
        run(tmp_path, [a], config=CompareConfig(level=level)).arm("grpo").metrics["eval/pass_at_1"]
        for level in (0.99, 0.6)
    )
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_wall_times_are_means_and_a_total(tmp_path, write_evaluation):
    start = write_evaluation(tmp_path / "s", "start", None, correct=[[1]], eval_wall_time_s=7.0)
    times = [(100.0, 10.0), (300.0, 30.0)]
    evaluations = [
        write_evaluation(tmp_path / f"{s}", "grpo", s, correct=[[1]], train_wall_time_s=t, eval_wall_time_s=e)
        for s, (t, e) in enumerate(times)
    ]
    comparison = run(tmp_path, [*evaluations, start])
    wall = comparison.arm("grpo").wall_time
    assert (wall.train_s, wall.eval_s, wall.total_s) == (200.0, 20.0, 440.0)
    wall = comparison.arm("start").wall_time
    assert (wall.train_s, wall.eval_s, wall.total_s) == (None, 7.0, 7.0)


def test_train_time_is_taken_from_the_run_when_the_evaluation_lacks_it(tmp_path, write_evaluation, write_training):
    evaluation = write_evaluation(tmp_path / "a", correct=[[1]], train_wall_time_s=None)
    training = write_training(tmp_path / "t", rows=[{"train/reward": 0.5}])
    arm = run(tmp_path, [evaluation], [training]).arm("grpo")
    assert arm.wall_time.train_s == 600.0
    assert (arm.per_seed[0].train_hardware, arm.per_seed[0].eval_hardware) == ("1 GPU", "2 cores")
    assert arm.per_seed[0].versions["trl"] == "1.16.0"


def test_every_metric_is_there_and_every_k_on_the_curve(report_directory):
    comparison = read_comparison(report_directory)
    undefined = {"eval/self_bleu", "eval/distinct_ngram_frac"}  # not measured by the evaluations of this test
    names = set(metric_names((1, 2, 4, 8))) - undefined
    for arm in comparison.arms:
        assert set(arm.metrics) == names
        assert [point.k for point in arm.curve] == list(range(1, 9))
        values = [point.value for point in arm.curve]
        assert values == sorted(values)
        assert all(point.low <= point.value <= point.high for point in arm.curve)
    assert [arm.name for arm in comparison.arms] == ["start", "grpo", "progrpo", "progrpo-gated"]
    assert [difference.arm for difference in comparison.differences] == ["progrpo", "progrpo-gated", "start"]


def test_the_same_input_gives_the_same_bytes(tmp_path, write_evaluation):
    a = write_evaluation(tmp_path / "a", correct=[[1, 0], [0, 0], [1, 1]])
    first = compare(QUICK, evaluations=[a], trainings=[], output=tmp_path / "x")
    second = compare(QUICK, evaluations=[a], trainings=[], output=tmp_path / "y")
    assert first.digest == second.digest


def test_the_artifact_is_whole_and_names_its_inputs(report_directory):
    manifest = read_manifest(report_directory, "comparison")
    assert set(manifest.files) == {
        "comparison.json", "report.html", "summary.md", "table.csv", "table.tex",
        "plots/pass_at_k.png", "plots/training_entropy.png", "plots/training_reward.png", "plots/difference.png",
        "plots/entropy_by_position.png", "plots/calibration.png",
    }  # fmt: skip
    assert "evaluation/start" in manifest.inputs
    assert "evaluation/progrpo/seed-1" in manifest.inputs
    assert "training/grpo/seed-0" in manifest.inputs
    for plot in (report_directory / "plots").iterdir():
        assert plot.read_bytes().startswith(b"\x89PNG")


def test_without_training_runs_there_are_no_training_plots(tmp_path, write_evaluation):
    a = write_evaluation(tmp_path / "a", correct=[[1, 0]])
    run(tmp_path, [a])
    names = {path.name for path in (tmp_path / "comparison" / "plots").iterdir()}
    assert names == {"pass_at_k.png", "calibration.png", "entropy_by_position.png"}


def test_reading_an_altered_comparison_is_refused(tmp_path, write_evaluation):
    run(tmp_path, [write_evaluation(tmp_path / "a", correct=[[1, 0]])])
    path = tmp_path / "comparison" / "comparison.json"
    path.write_text(path.read_text().replace('"num_problems": 1', '"num_problems": 2'))
    with pytest.raises(ManifestError, match=r"comparison\.json differs"):
        read_comparison(tmp_path / "comparison")


def test_progress_counts_arms(tmp_path, write_evaluation):
    evaluations = [write_evaluation(tmp_path / arm, arm, 0, correct=[[1]]) for arm in ("grpo", "progrpo")]
    run(tmp_path, evaluations, progress=Progress(tmp_path / "progress.jsonl", step="compare"))
    lines = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [(line["done"], line["total"]) for line in lines] == [(1, 2), (2, 2)]


def test_moving_average_shifts_nothing():
    # Width 3; at the ends over the two values there are.
    assert moving_average([3.0, 0.0, 6.0, 3.0], 3) == pytest.approx([1.5, 3.0, 3.0, 4.5])
    assert moving_average([1.0, 2.0], 1) == pytest.approx([1.0, 2.0])
