"""Tables for papers and programs, what training cost, and what of the method differs."""

import csv
import io

import pytest

from progrpo.comparison.charts import cost_chart
from progrpo.comparison.compare import compare
from progrpo.comparison.report import _method
from progrpo.comparison.result import read_comparison
from progrpo.config import CompareConfig

QUICK = CompareConfig(num_resamples=100)
ROWS = [{"train/reward": 0.1}]


@pytest.fixture(scope="module")
def comparison(report_directory):
    return read_comparison(report_directory)


def test_csv_holds_every_number_with_all_its_digits(report_directory, comparison):
    rows = list(csv.DictReader(io.StringIO((report_directory / "table.csv").read_text())))
    assert len(rows) == len(comparison.arms) * len(comparison.metric_names)
    (row,) = [r for r in rows if (r["arm"], r["metric"]) == ("progrpo", "eval/pass_at_4")]
    estimate = comparison.arm("progrpo").metrics["eval/pass_at_4"]
    assert [float(row[c]) for c in ("value", "low", "high")] == [estimate.value, estimate.low, estimate.high]
    difference = next(d for d in comparison.differences if d.arm == "progrpo").metrics["eval/pass_at_4"]
    assert float(row["difference_low"]) == difference.low
    assert row["resolved"] == str(difference.resolved).lower()
    assert {r["resolved"] for r in rows if r["arm"] == "grpo"} == {""}  # the baseline has no difference to itself


def test_latex_is_a_table_with_the_headline(report_directory, comparison):
    text = (report_directory / "table.tex").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    assert lines[0] == r"\begin{tabular}{lccccc}"
    assert lines[-1] == r"\end{tabular}"
    body = [line for line in lines if line.endswith(r" \\")]
    assert {line.count(" & ") for line in body} == {5}
    assert body[0].startswith(r"Arm & Pass@1 (\%) & ")
    progrpo = next(line for line in body if line.startswith("progrpo &"))
    entropy = next(d for d in comparison.differences if d.arm == "progrpo").metrics["eval/entropy"]
    assert entropy.resolved  # planted
    value = comparison.arm("progrpo").metrics["eval/entropy"].value
    assert f"${value:.3f}^{{*}}$" in progrpo
    assert "^{*}" not in next(line for line in body if line.startswith("grpo &"))


def test_the_markdown_summary_lies_beside_the_report(report_directory):
    text = (report_directory / "summary.md").read_text()
    assert text.startswith("**progrpo minus grpo: pass@1 ")
    assert "\n\n| Arm | Pass@1 (%) |" in text  # a table needs an empty line before it


def test_cost_is_in_gpu_hours_where_every_arm_had_gpus(tmp_path, write_evaluation, write_training):
    """600 s of training on "1 GPU" are wall time; on "8 x H100" they are 4/3 GPU-hours."""
    correct = {"start": [[0, 0], [0, 1]], "grpo": [[0, 1], [1, 1]], "progrpo": [[1, 1], [1, 1]]}
    evaluations = [
        write_evaluation(tmp_path / arm, arm, None if arm == "start" else 0, correct=c) for arm, c in correct.items()
    ]
    trainings = [write_training(tmp_path / f"t-{arm}", arm, rows=ROWS, hardware="8 x H100") for arm in ("grpo",)]
    trainings.append(write_training(tmp_path / "t-progrpo", "progrpo", rows=ROWS))
    compare(QUICK, evaluations=evaluations, trainings=trainings, output=tmp_path / "wall")
    chart = cost_chart(read_comparison(tmp_path / "wall"))
    assert chart.figure["layout"]["xaxis"]["title"]["text"] == "hours of training a seed (wall time)"
    trainings[1] = write_training(tmp_path / "t2-progrpo", "progrpo", rows=ROWS, hardware="16 x H100")
    compare(QUICK, evaluations=evaluations, trainings=trainings, output=tmp_path / "gpu")
    chart = cost_chart(read_comparison(tmp_path / "gpu"))
    assert chart.figure["layout"]["xaxis"]["title"]["text"] == "GPU-hours of training a seed"
    grpo, progrpo = chart.figure["data"]
    assert grpo["x"] == pytest.approx([8 * 600 / 3600] * 2)
    assert progrpo["x"] == pytest.approx([16 * 600 / 3600] * 2)
    assert grpo["y"] == pytest.approx([50, 50])  # pass@1 25 % to 75 %, pass@2 50 % to 100 %
    assert progrpo["y"] == pytest.approx([75, 50])


def test_without_a_start_or_times_there_is_no_cost(tmp_path, write_evaluation):
    evaluations = [write_evaluation(tmp_path / arm, arm, correct=[[1, 0]]) for arm in ("grpo", "progrpo")]
    compare(QUICK, evaluations=evaluations, trainings=[], output=tmp_path / "out")
    assert cost_chart(read_comparison(tmp_path / "out")) is None


def test_the_method_in_force_is_what_the_algorithm_sets_over_what_all_share(comparison):
    """An algorithm's own loss is an intended difference: it is laid beside the shared one it replaces."""
    shared = {"loss": {"clip_low": 0.2, "kl_beta": 0.0}, "dynamic_sampling": None, "steps": 100}
    dapo = {"type": "dapo", "loss": {"clip_low": 0.1}, "dynamic_sampling": {"max_rounds": 3}, "overlong_penalty": None}
    set_of_dapo = {key: value for key, value in dapo.items() if value is not None}
    of = comparison.arm("grpo").model_copy
    assert _method(of(update={"algorithm": {"type": "grpo", "loss": None}, "train": shared})) == {
        "type": "grpo", "loss": {"clip_low": 0.2, "kl_beta": 0.0},
    }  # fmt: skip
    assert _method(of(update={"algorithm": dapo, "train": shared})) == set_of_dapo
    assert _method(of(update={"algorithm": dapo, "train": None})) == set_of_dapo


def test_an_algorithm_that_brings_its_own_loss_needs_no_warning(tmp_path, write_evaluation, write_training):
    own = {"type": "progrpo", "alpha": 0.3, "loss": {"clip_low": 0.1, "kl_beta": 0.0}}
    evaluations = [
        write_evaluation(tmp_path / "grpo", "grpo", correct=[[1, 0]]),
        write_evaluation(tmp_path / "progrpo", "progrpo", correct=[[1, 0]], algorithm=own),
    ]
    trainings = [write_training(tmp_path / f"t-{arm}", arm, rows=ROWS) for arm in ("grpo", "progrpo")]
    compare(QUICK, evaluations=evaluations, trainings=trainings, output=tmp_path / "out")
    assert not [w for w in read_comparison(tmp_path / "out").warnings if "more than the algorithm" in w]
    page = (tmp_path / "out" / "report.html").read_text()
    assert '<code>loss.clip_low</code> <span class="tag">differs, as intended</span>' in page
