"""What evaluations measured themselves: entropy by position, calibration, metrics beyond those compared."""

import json

import pytest

from progrpo.comparison.compare import compare
from progrpo.comparison.evaluation_charts import auroc_rows, calibration_chart, position_charts
from progrpo.comparison.result import read_comparison
from progrpo.comparison.sources import read_evaluation
from progrpo.config import CompareConfig
from progrpo.errors import ComparisonError

QUICK = CompareConfig(num_resamples=100)


def interval(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


NOTHING = {"curves": {}, "calibration": None}
BINS = [
    {"start": start, "end": end, **interval(value)} for start, end, value in ((0, 1, 0.9), (1, 2, 0.5), (2, 8, 0.3))
]
CALIBRATION = {
    "auroc": interval(0.8),
    "auroc_within": interval(0.6),
    "bins": [
        {"confidence": 0.2, "accuracy": interval(0.25), "num_completions": 4},
        {"confidence": 0.7, "accuracy": interval(0.75), "num_completions": 4},
    ],
}


@pytest.fixture
def measured(tmp_path, write_evaluation):
    """A comparison of two arms, two seeds each, of which only those of progrpo say more than Pass@k."""
    by_arm, directories = {}, []
    for arm in ("grpo", "progrpo"):
        for seed in (0, 1):
            more = {"curves": {"entropy_by_position": {"all": BINS}}, "calibration": CALIBRATION}
            directories.append(
                write_evaluation(
                    tmp_path / f"{arm}{seed}",
                    arm,
                    seed,
                    correct=[[1, 0], [0, 1]],
                    **(more if arm == "progrpo" else NOTHING),
                )
            )
            by_arm.setdefault(arm, []).append(read_evaluation(directories[-1]))
    compare(QUICK, evaluations=directories, trainings=[], output=tmp_path / "out")
    return read_comparison(tmp_path / "out"), by_arm, (tmp_path / "out" / "report.html").read_text()


def test_positions_are_counted_from_one_and_bins_drawn_in_their_middle(measured):
    comparison, by_arm, _ = measured
    (chart,) = position_charts(comparison, by_arm)  # neither correct nor wrong ones were given
    lines = [trace for trace in chart.figure["data"] if trace.get("name")]
    assert [line["x"] for line in lines] == [[1.0, 2.0, 5.5]] * 2  # tokens 3 to 8
    assert [line["y"] for line in lines] == [[0.9, 0.5, 0.3]] * 2
    assert [line["line"]["dash"] for line in lines] == ["solid", "dash"]  # a seed each
    assert chart.description == "progrpo seed 0 from 0.9 to 0.3; progrpo seed 1 from 0.9 to 0.3."


def test_calibration_is_a_line_a_seed_with_its_auroc(measured):
    comparison, by_arm, page = measured
    chart = calibration_chart(comparison, by_arm)
    lines = [trace for trace in chart.figure["data"] if trace.get("name")]
    assert lines[0]["x"] == [0.2, 0.7]
    assert lines[0]["y"] == pytest.approx([25, 75])
    assert lines[0]["error_y"]["array"] == pytest.approx([10, 10])
    assert chart.description == "progrpo seed 0 AUROC 0.800; progrpo seed 1 AUROC 0.800."
    assert [(row["arm"], row["seed"], row["auroc"].value) for row in auroc_rows(by_arm)] == [
        ("progrpo", 0, 0.8), ("progrpo", 1, 0.8),
    ]  # fmt: skip
    assert "Confidence and correctness" in page


def test_every_metric_that_all_evaluations_report_is_compared(tmp_path, write_evaluation):
    """Majority@2 of one problem with two right and two wrong, equal answers: one of six pairs is right, four by lot."""
    answers = [["1", "1", "2", "2"]]
    evaluations = [
        write_evaluation(tmp_path / arm, arm, correct=[[1, 1, 0, 0]], answers=answers, num_tokens=tokens)
        for arm, tokens in (("grpo", 10), ("progrpo", [[10, 20, 30, 40]]))
    ]
    compare(QUICK, evaluations=evaluations, trainings=[], output=tmp_path / "out")
    comparison = read_comparison(tmp_path / "out")
    assert comparison.arm("grpo").metrics["eval/majority_at_2"].value == pytest.approx(1 / 6 + 4 / 6 / 2)
    (difference,) = comparison.differences
    assert list(difference.metrics) == list(comparison.metric_names)
    assert difference.metrics["eval/completion_tokens"].value == pytest.approx(15)
    assert "eval/self_bleu" not in comparison.metric_names  # none of these evaluations has it
    assert "Majority@2 (%)" in (tmp_path / "out" / "report.html").read_text()


def test_without_any_of_it_the_sections_are_left_out(tmp_path, write_evaluation):
    evaluations = [write_evaluation(tmp_path / arm, arm, correct=[[1, 0]], **NOTHING) for arm in ("grpo", "progrpo")]
    compare(QUICK, evaluations=evaluations, trainings=[], output=tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Confidence and correctness" not in page
    assert "Entropy by position" not in page
    assert {path.name for path in (tmp_path / "out" / "plots").iterdir()} == {"pass_at_k.png", "difference.png"}


def test_an_evaluation_from_the_future_is_refused(tmp_path, write_evaluation):
    directory = write_evaluation(tmp_path / "a", correct=[[1]], schema_version=3)
    assert json.loads((directory / "evaluation.json").read_text())["schema_version"] == 3
    with pytest.raises(ComparisonError, match="has schema version 3, 2 is needed"):
        read_evaluation(directory)
