"""progrpo rollouts, through the command line, on rollouts that are written here."""

import csv
import io
import json

import pytest

from progrpo.training.recorder import write_rollouts
from progrpo_pipelines.cli import main
from progrpo_pipelines.local.rollouts import cut, visible

NAN = float("nan")


def group(problem, completions, *, rewards, shifts=None, **columns):
    """One group as columns; a reward of NaN is a completion that could not be verified."""
    rows = {
        "problem_id": [problem] * len(completions),
        "prompt": [f"prompt of {problem}"] * len(completions),
        "completion": completions,
        "correct": [reward == 1 for reward in rewards],
        "reward": rewards,
        "advantage": [reward - 0.5 for reward in rewards],
        "group": [0] * len(completions),
    }
    return rows | ({"advantage_shift": shifts} if shifts else {}) | columns


def joined(*groups):
    return {name: [value for rows in groups for value in rows[name]] for name in groups[0]}


def make_run(directory, *steps, arm=None):
    for step, table in steps:
        write_rollouts(directory / "rollouts" / f"step_{step:05d}.parquet", table)
    if arm is not None:
        config = {"arm": {"name": arm, "algorithm": {"type": "grpo"}}, "seed": 3}
        (directory / "manifest.json").write_text(json.dumps({"config": config}))
    return str(directory)


A = group("a", ["1+1", "2*1", "9"], rewards=[1.0, 1.0, 0.0])
B = group("b", ["4", "5", "6"], rewards=[0.0, 0.0, NAN])


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", (1, A), (10, joined(A, B)), arm="grpo")


def show(arguments, capsys):
    code = 0
    try:
        main(["rollouts", *arguments])
    except SystemExit as exit_:
        code = exit_.code or 0
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    assert code in (0, 2)
    assert (code == 2) == captured.err.startswith("error: ")
    return captured.err if code else captured.out


def show_json(arguments, capsys):
    return json.loads(show([*arguments, "--json"], capsys))


def test_the_last_step_is_shown_with_arm_and_counts(run, capsys):
    out = show([run], capsys)
    assert "grpo, seed 3, step 10: 6 of 6 rollouts" in out
    for words in ("prompt of a", "2*1", "advantage", " ? ", "-0.500"):
        assert words in out
    for absent in ("ARM term", "c(q)", "tokens"):
        assert absent not in out  # columns that the file does not have


@pytest.mark.parametrize(
    ("step", "expected"), [("first", [1] * 3), ("last", [10] * 6), ("1", [1] * 3), ("all", [1] * 3 + [10] * 6)]
)
def test_steps(run, capsys, step, expected):
    assert [row["step"] for row in show_json([run, "--step", step], capsys)] == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--correct"], ["1+1", "2*1"]),
        (["--incorrect"], ["9", "4", "5"]),  # what could not be verified is neither
        (["--problem", "b"], ["4", "5", "6"]),
        (["--problem", "a", "--incorrect"], ["9"]),
        (["--limit", "2"], ["1+1", "2*1"]),
        (["--sort", "completion"], ["9", "6", "5", "4", "2*1", "1+1"]),
        (["--sort", "reward", "--ascending"], ["9", "4", "5", "1+1", "2*1", "6"]),  # what has no value comes last
        (["--sort", "reward"], ["1+1", "2*1", "9", "4", "5", "6"]),
    ],
)
def test_selection_and_order(run, capsys, options, expected):
    assert [row["completion"] for row in show_json([run, *options], capsys)] == expected


def test_what_is_not_a_number_is_null_in_json_and_empty_in_csv(run, capsys):
    assert show_json([run], capsys)[-1]["reward"] is None
    rows = list(csv.DictReader(io.StringIO(show([run, "--csv"], capsys))))
    assert rows[0] == {
        "step": "10",
        "problem_id": "a",
        "prompt": "prompt of a",
        "completion": "1+1",
        "correct": "True",
        "reward": "1.0",
        "advantage": "0.5",
        "group": "0",
    }
    assert rows[-1]["reward"] == ""


def test_a_table_has_twenty_rows_unless_told(tmp_path, capsys):
    many = group("m", [f"answer {i}" for i in range(30)], rewards=[0.0] * 30)
    run = make_run(tmp_path / "run", (1, many))
    assert "run, step 1: 20 of 30 rollouts" in show([run], capsys)
    assert "run, step 1: 30 of 30 rollouts" in show([run, "--limit", "99"], capsys)
    assert len(show_json([run], capsys)) == 30


def test_text_of_a_model_is_shown_and_not_obeyed(tmp_path, capsys):
    nasty = "\x1b[2J[red]\x07[/red]\u202eabc\nnext\x9b"
    run = make_run(tmp_path / "run", (1, group("[bold]p[/bold]", [nasty], rewards=[0.0])), arm="arm\x1b[31m[red]")
    out = show([run, "--width", "200"], capsys)
    for character in ("\x1b", "\x07", "\u202e", "\x9b"):
        assert character not in out
    flat = "".join(out.replace("│", "").split())
    for words in ("[bold]p[/bold]", "\\x1b[2J[red]\\x07[/red]", "\\u202eabc\\nnext", "arm\\x1b[31m[red],seed3"):
        assert words.replace(" ", "") in flat
    table = show([run, "--csv"], capsys)
    assert "\x1b" not in table
    assert "\x9b" not in table
    (row,) = csv.DictReader(io.StringIO(table))
    assert row["completion"].endswith("abc\nnext\\x9b")
    assert show_json([run], capsys)[0]["completion"] == nasty  # JSON has escapes of its own


def test_long_texts_are_cut():
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdefg", 6) == "abcde…"
    assert visible("a\tb\nc", keep="\n") == "a\\tb\nc"


def test_arm_and_length_columns_are_shown_where_they_are(tmp_path, capsys):
    extra = {
        "prompt_confidence": [0.5] * 3,
        "answer_confidence": [0.25, 0.5, NAN],
        "overlong_penalty": [0.0, -0.5, 0.0],
        "num_tokens": [3, 4, 5],
    }
    table = group("a", ["x", "y", "z"], rewards=[1.0, 0.0, 0.0], shifts=[0.25, 0.0, NAN], **extra)
    out = show([make_run(tmp_path / "run", (1, table))], capsys)
    for words in ("ARM term", "c(q)", "c(o|q)", "penalty", "tokens", "0.250"):
        assert words in out


# --- two runs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path):
    grpo = joined(
        group("same", ["1", "1"], rewards=[1.0, 1.0]),
        group("variety", ["2", "2"], rewards=[1.0, 1.0]),
        group("lost", ["3", "4"], rewards=[0.0, 0.0]),
        group("only here", ["5", "5"], rewards=[0.0, 0.0]),
    )
    progrpo = joined(
        group("same", ["1", "1"], rewards=[1.0, 1.0], shifts=[0.1, 0.3]),
        group(
            "variety",
            [
                "2",
                " 2 ",
            ],
            rewards=[1.0, 1.0],
            shifts=[0.0, 0.0],
        ),
        group("lost", ["7", "4"], rewards=[1.0, NAN], shifts=[0.0, NAN]),
    )
    progrpo["answer"] = ["1", "1", "2", "2/1", "7", "4"]
    return make_run(tmp_path / "a", (5, grpo), (6, grpo), arm="grpo"), make_run(
        tmp_path / "b", (5, progrpo), (7, progrpo), arm="progrpo"
    )


def test_two_runs_are_compared_on_common_problems_most_different_first(two, capsys):
    found = show_json([*two], capsys)
    assert [item["problem_id"] for item in found] == ["lost", "variety", "same"]
    lost, variety, same = found
    # one of progrpo's could not be verified, so its share is 1 of 1
    assert (lost["left"]["correct_share"], lost["right"]["correct_share"]) == (0.0, 1.0)
    assert (lost["left"]["num_distinct"], lost["right"]["num_distinct_correct"]) == (2, 1)
    assert lost["right"]["mean_advantage"] == 0.5  # of the one that has an advantage
    assert (variety["left"]["num_distinct"], variety["right"]["num_distinct"]) == (1, 2)  # answers, not completions
    # 0.5 + 0.1 and 0.5 + 0.3: ARM's term is part of the advantage
    assert same["right"]["mean_advantage"] == pytest.approx(0.7)
    assert same["left"]["example"] == "1"


def test_two_runs_in_a_table_and_as_csv(two, capsys):
    out = " ".join(show([*two, "--limit", "2"], capsys).split())
    assert "grpo, seed 3 | progrpo, seed 3, step 5: 2 of 3 problems, most different first" in out
    assert "0% | 100%" in out
    rows = list(csv.DictReader(io.StringIO(show([*two, "--csv"], capsys))))
    assert [row["problem_id"] for row in rows] == ["lost", "variety", "same"]
    assert (rows[0]["left_correct_share"], rows[0]["right_correct_share"]) == ("0.0", "1.0")


def test_one_problem_of_two_runs(two, capsys):
    assert [item["problem_id"] for item in show_json([*two, "--problem", "same"], capsys)] == ["same"]


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--step", "7"], ["--step 7", "were not kept", "1, 10"]),
        (["--step", "newest"], ["--step 'newest'", "first, last, all"]),
        (["--problem", "aa"], ["--problem 'aa' is not among the 2 problems", "such as a"]),
        (["--sort", "advantages"], ["no such column", "problem_id", "Did you mean 'advantage'?"]),
        (["--width", "2"], ["--width 2", "at least 5"]),
        (["--json", "--csv"], ["not both"]),
    ],
)
def test_a_mistake_names_what_is_allowed(run, capsys, options, words):
    message = show([run, *options], capsys)
    assert all(word in message for word in words), message


def test_a_directory_without_rollouts_names_the_runs_below(run, tmp_path, capsys):
    assert f"Below it are: {run}." in show([str(tmp_path)], capsys)
    (tmp_path / "empty").mkdir()
    assert "train.log_rollouts_every says which" in show([str(tmp_path / "empty")], capsys)
    assert "is not a directory" in show([str(tmp_path / "absent")], capsys)


def test_the_rollouts_directory_itself_will_do(run, capsys):
    assert "grpo, seed 3, step 10" in show([f"{run}/rollouts"], capsys)


def test_files_that_hold_no_rollouts(tmp_path, capsys):
    folder = tmp_path / "rollouts"
    folder.mkdir()
    (folder / "step_00001.parquet").write_bytes(b"no parquet")
    assert "cannot be read" in show([str(tmp_path)], capsys)
    write_rollouts(folder / "step_00001.parquet", {"problem_id": ["a"], "score": [1.0]})
    assert "has no column 'prompt'" in show([str(tmp_path)], capsys)


def test_runs_that_cannot_be_compared(two, run, tmp_path, capsys):
    other = make_run(tmp_path / "other", (5, group("elsewhere", ["1"], rewards=[0.0])))
    assert "no common problem" in show([two[0], other], capsys)
    assert "kept no common step" in show([two[0], run], capsys)
    assert "3 directories were given" in show([*two, run], capsys)
    assert "most different first" in show([*two, "--sort", "reward"], capsys)
