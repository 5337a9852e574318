"""A user's mistake: exit code 2, one message that names the key and what is allowed, no traceback."""

import pytest

from progrpo_pipelines.cli import main

RUN = ["run", "compare", "--preset", "smoke"]


def run_cli(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    return exit_.value.code, captured.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "comparee"], ["unknown pipeline 'comparee'", "train-and-evaluate", "Did you mean 'compare'?"]),
        (["run", "compare", "--preset", "smok"], ["unknown preset 'smok'", "Did you mean 'smoke'?"]),
        (["step", "trian", "--config", "c", "--output", "o"], ["unknown step 'trian'", "Did you mean 'train'?"]),
        ([*RUN, "--set", "train.stepss=4"], ["train.stepss", "unknown key", "learning_rate", "Did you mean 'steps'?"]),
        ([*RUN, "--set", "trian.steps=4"], ["trian", "unknown key", "Did you mean 'train'?"]),
        ([*RUN, "--set", "train.group_size=1"], ["train.group_size", "greater than or equal to 2", "Given: 1"]),
        ([*RUN, "--set", "arms.1.algorithm.alpha=-1"], ["arms.1.algorithm.alpha", "greater than or equal to 0"]),
        ([*RUN, "--set", "arms.7.name=x"], ["arms is a list of 2", "0 to 1"]),
        ([*RUN, "--set", "arms.one.name=x"], ["arms is a list of 2"]),
        ([*RUN, "--set", "evaluation.ks=[64]"], ["k = 64", "num_samples = 32", "Raise num_samples"]),
        ([*RUN, "--set", "comparison.baseline=ppo"], ["comparison.baseline is 'ppo'", "grpo, progrpo, start"]),
        ([*RUN, "--set", "seeds=[0,0]"], ["seeds must differ"]),
        ([*RUN, "--set", "seeds=0"], ["seeds", "Given: 0"]),
        ([*RUN, "--set", "seeds=[]"], ["seeds", "at least 1"]),
        ([*RUN, "--set", "seeds=[9007199254740993]"], ["seeds.0", "4294967295"]),  # as a double it is another seed
        ([*RUN, "--set", "evaluation.seed=1.0e+30"], ["evaluation.seed"]),
        ([*RUN, "--set", "train.learning_rate=.nan"], ["train.learning_rate", "finite"]),
        ([*RUN, "--set", "train=[1]"], ["train", "[1]"]),
        ([*RUN, "--set", "arms.1.name=grpo"], ["arm names must differ"]),
        ([*RUN, "--set", "train.steps=2.5"], ["train.steps", "2.5"]),
        ([*RUN, "--set", "train.steps"], ["expected KEY=VALUE"]),
        ([*RUN, "--set", ".steps=1"], ["expected KEY=VALUE"]),
        ([*RUN, "--set", "seeds=[0"], ["not valid YAML"]),
        ([*RUN, "--set", "experiment=2026-02-30"], ["not valid YAML", "day is out of range"]),
        ([*RUN, "--set", "train=3", "--set", "train.steps=1"], ["train was already set as a whole"]),
        ([*RUN, "--params-file", "absent.yaml"], ["cannot read absent.yaml", "No such file"]),
        (["step", "train", "--config", "absent.yaml", "--output", "o"], ["cannot read absent.yaml"]),
        ([*RUN, "--set", "checkpoint.uri=/absent/model"], ["checkpoint.uri: '/absent/model' does not exist"]),
        ([*RUN, "--set", "checkpoint.uri=hf://a/b"], ["checkpoint.uri", "'hf' is not supported", "s3://"]),
        ([*RUN, "--set", "checkpoint.uri=embedded://x"], ["checkpoint.uri", "Embedded: countdown-sft"]),
        (
            [*RUN, "--set", "dataset.source={type: file, train_uri: absent.jsonl}"],
            ["dataset.source.train_uri: 'absent.jsonl' does not exist"],
        ),
        (
            [*RUN, "--set", f"dataset.source={{type: file, train_uri: {__file__}, eval_uri: absent.csv}}"],
            ["dataset.source.eval_uri: 'absent.csv' does not exist"],
        ),
        (["compile"], ["name of a pipeline or --all"]),
        (["compile", "compare", "--all"], ["name of a pipeline or --all"]),
        (["compile", "--all", "--preset", "smoke"], ["--all compiles every preset"]),
        (["compile", "nothing"], ["unknown pipeline 'nothing'"]),
    ],
)
def test_one_message_and_exit_code_2(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, message = run_cli(arguments, capsys)
    assert code == 2
    assert message.startswith("error: ")
    for part in expected:
        assert part in message
    assert list(tmp_path.iterdir()) == []  # nothing was written


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"- 1\n", "must hold a mapping of names to values, not a list"),
        (b"{a: ", "not valid YAML or JSON"),
        (b"\xff\xfe\xff", "not valid YAML or JSON"),
        (b"1: 2\n", "must hold a mapping of names"),
        (b"experiment: 2026-02-30\n", "day is out of range"),
        (b"arms: {7: {name: x}}\n", "arms.7: arms is a list of 2"),  # no such place in the list
    ],
)
def test_unusable_params_file(content, expected, capsys, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    code, message = run_cli([*RUN, "--params-file", str(path)], capsys)
    assert code == 2
    assert str(path) in message
    assert expected in message


@pytest.mark.parametrize("name", ["thesis.txt", "parameters.json"])
def test_output_that_is_no_run_is_left_alone(capsys, tmp_path, name):
    (tmp_path / name).write_text('["years of work"]')
    code, message = run_cli([*RUN, "--output", str(tmp_path), "--replace"], capsys)
    assert code == 2
    assert "is not a run of progrpo" in message
    assert (tmp_path / name).read_text() == '["years of work"]'


@pytest.mark.parametrize(
    "command", [RUN, ["compile", "--all"], ["step", "prepare-dataset", "--config", "dataset.yaml"]], ids=" ".join
)
def test_output_that_cannot_be_written(capsys, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dataset.yaml").touch()
    (tmp_path / "file").write_text("mine")
    code, message = run_cli([*command, "--output", "file/output"], capsys)
    assert code == 2
    assert message.startswith("error: cannot write to --output ")
    assert "file" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset.yaml", "file"]


def test_earlier_run_is_kept_without_replace(capsys, tmp_path):
    (tmp_path / "parameters.json").write_text('{"pipeline": "compare", "parameters": {}}')
    code, message = run_cli([*RUN, "--output", str(tmp_path)], capsys)
    assert code == 2
    assert "holds an earlier run" in message
    assert "--replace" in message
    assert (tmp_path / "parameters.json").exists()


def test_unknown_option_is_exit_code_2(capsys):
    assert run_cli(["run", "compare", "--stepss", "4"], capsys)[0] == 2
