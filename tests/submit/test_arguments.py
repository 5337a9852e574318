"""Arguments are checked against the IR before anything is sent."""

import json
from pathlib import Path

import pytest
import yaml

from progrpo.errors import ConfigError
from progrpo_components.form import read_form
from progrpo_pipelines.client.package import Parameter, load_package
from progrpo_pipelines.packaging.presets import defaults_of, preset_parameters, resolve

TYPES = {
    "STRING": [("010", "010"), ("true", "true"), ("", ""), ("a=b", "a=b")],
    "NUMBER_INTEGER": [("4", 4), ("-1", -1), ("2.0", 2)],
    "NUMBER_DOUBLE": [("1e-6", 1e-6), ("4", 4.0)],
    "BOOLEAN": [("true", True), ("False", False)],
    "LIST": [("[0, 1]", [0, 1]), ("[grpo, progrpo]", ["grpo", "progrpo"]), ("[]", [])],
    "STRUCT": [('{"a": 1e-6}', {"a": 1e-6}), ("{a: {b: x}}", {"a": {"b": "x"}})],
}
WRONG = {
    "NUMBER_INTEGER": ["010", "1.5", "four", "true", "1e400", "1" * 400, ""],
    "NUMBER_DOUBLE": ["NaN", "Infinity", "1" * 400, "x", "false"],
    "BOOLEAN": ["1", "yes", ""],
    "LIST": ["0", "{}", "[2026-01-01]", "[1"],
    "STRUCT": ["[]", "a", "{1: 2}", "{a: 2026-01-01}", "{a: .nan}"],
}


@pytest.mark.parametrize(("type_", "text", "value"), [(t, *case) for t, cases in TYPES.items() for case in cases])
def test_text_becomes_the_parameters_type(type_, text, value):
    got = Parameter("p", type_, required=True).parse(text)
    assert (got, type(got)) == (value, type(value))


@pytest.mark.parametrize(("type_", "text"), [(t, text) for t, texts in WRONG.items() for text in texts])
def test_wrong_text_is_refused(type_, text):
    with pytest.raises(ConfigError, match="parameter p is "):
        Parameter("p", type_, required=True).parse(text)


@pytest.mark.parametrize("value", [5, True, None, 1.5])
def test_file_value_for_a_text_must_be_quoted(value):
    with pytest.raises(ConfigError, match="Write it in quotes"):
        Parameter("p", "STRING", required=True).check(value)


def test_literals_are_the_only_values():
    parameter = Parameter("algorithm", "STRING", required=False, literals=("grpo", "progrpo"))
    assert parameter.parse("grpo") == "grpo"
    with pytest.raises(ConfigError, match=r"one of grpo, progrpo; given was 'grop'\.$"):
        parameter.parse("grop")


@pytest.fixture
def package(tmp_path, package_path):
    """The small package with a parameter that must be given and one with literals."""
    spec = yaml.safe_load(Path(package_path).read_text())
    spec["root"]["inputDefinitions"]["parameters"] |= {
        "checkpoint_uri": {"parameterType": "STRING"},
        "algorithm": {"parameterType": "STRING", "defaultValue": "grpo", "literals": ["grpo", "progrpo"]},
        "note": {"parameterType": "STRING", "isOptional": True},
    }
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def test_everything_wrong_is_in_one_message_and_nothing_was_sent(recorder, submit, package):
    done = submit("--set", "algoritm=grpo", "--set", "algorithm=ppo", "--set", "nonsense", package=str(package))
    assert done.code == 2
    assert "algoritm: unknown parameter" in done.err
    assert "Did you mean algorithm?" in done.err
    assert "parameter algorithm is one of grpo, progrpo" in done.err
    assert "--set nonsense: expected NAME=VALUE" in done.err
    assert recorder.requests == []


def test_missing_parameter_is_refused(recorder, submit, package):
    done = submit(package=str(package))
    assert done.code == 2
    assert "checkpoint_uri: must be given" in done.err
    assert "note" not in done.err
    assert recorder.requests == []


def test_dotted_name_is_explained(submit, package):
    done = submit("--set", "dataset.source.seed=1", package=str(package))
    assert "a package takes whole parameters. Give --set 'dataset={...}'" in done.err


def test_dotted_name_goes_into_overrides_where_there_are_some(submit, package):
    spec = yaml.safe_load(package.read_text())
    spec["root"]["inputDefinitions"]["parameters"]["overrides"] = {"parameterType": "STRUCT", "isOptional": True}
    package.write_text(yaml.safe_dump(spec))
    done = submit("--set", "train.loss.clip_low=0.1", package=str(package))
    assert "Give --set 'overrides={train: {loss: {clip_low: ...}}}'" in done.err


def test_settings_win_over_the_file(recorder, submit, package, tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("checkpoint_uri: s3://models/a\nalgorithm: grpo\n")
    done = submit("--params-file", str(file), "--set", "algorithm=progrpo", package=str(package))
    assert done.code == 0, done.err
    expected = {"checkpoint_uri": "s3://models/a", "algorithm": "progrpo"}
    assert recorder.posted("/runs")[0]["runtime_config"]["parameters"] == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [", "is not YAML"), ("a: 1", "is no compiled pipeline"), ("pipelineInfo: {name: x}\nroot: {dag: 3}", "kfp")],
)
def test_file_that_is_no_package(submit, tmp_path, content, message):
    path = tmp_path / "x.yaml"
    path.write_text(content)
    done = submit(package=str(path))
    assert done.code == 2
    assert message in done.err


def test_file_is_a_file_by_its_looks(submit):
    for target in ("missing.yaml", "packages/compare", "compare.zip"):
        done = submit(package=target)
        assert done.code == 2
        assert f"cannot read {target}: No such file" in done.err


def test_unknown_pipeline_names_the_closest(submit):
    done = submit(package="compar")
    assert done.code == 2
    assert "Did you mean 'compare'?" in done.err


def test_pipeline_by_name_is_compiled_with_its_preset(recorder, submit):
    """The first task makes of what is sent the settings that were asked for, also where one undoes the preset's."""
    settings = ("experiment=2024", "evaluation.top_p=0.95", "evaluation.num_samples=3")
    assert (
        preset_parameters("smoke", "evaluate")["evaluation"]["top_p"] != defaults_of("evaluate")["evaluation"]["top_p"]
    )
    done = submit("--preset", "smoke", *(text for item in settings for text in ("--set", item)), package="evaluate")
    assert done.code == 0, done.err
    (body,) = recorder.posted("/runs")
    assert body["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "evaluate"
    sent = read_form("evaluate", body["runtime_config"]["parameters"], preset_parameters("smoke", "evaluate"))
    assert sent == resolve("evaluate", preset="smoke", settings=settings)


def test_pipeline_by_name_is_compiled_for_the_backend(recorder, submit):
    for backend in ("2.15", "2.17"):
        assert submit("--preset", "smoke", "--backend", backend, package="evaluate").code == 0
    old, new = (json.dumps(body["pipeline_spec"]) for body in recorder.posted("/runs"))
    assert ("literals" in old, "literals" in new) == (False, True)


def test_no_cache_reaches_every_task(recorder, submit, package_path):
    assert '"enableCache": true' in json.dumps(load_package(Path(package_path)).document)
    assert submit("--no-cache").code == 0
    assert "enableCache" not in json.dumps(recorder.posted("/runs"))


def test_dry_run_sends_nothing(recorder, progrpo, package_path):
    done = progrpo("submit", package_path, "--experiment", "nightly", "--set", "experiment=x", "--dry-run")
    assert done.code == 0
    assert done.json["runtime_config"]["parameters"] == {"experiment": "x"}
    assert recorder.requests == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--timeout", "soon"], "--timeout 'soon': expected a time above zero"),
        (["--poll", "0"], "--poll '0'"),
        (["--upload", "--no-cache"], "--no-cache changes the package"),
        (["--pipeline-version", "1"], "give --upload as well"),
        (["--preset", "smoke"], "--preset belongs to the name of a pipeline"),
        (["--backend", "2.16"], "--backend belongs to the name of a pipeline"),
        (["--priority-class", "high"], "--priority-class belongs to the name of a pipeline"),
        (["--idempotency-key", "a b"], "allowed are up to 128 letters"),
        (["--params-file", "missing.yaml"], "cannot read missing.yaml"),
    ],
)
def test_bad_options(recorder, submit, arguments, message):
    done = submit(*arguments)
    assert done.code == 2
    assert message in done.err
    assert recorder.requests == []


def test_a_number_that_yaml_takes_for_a_text(recorder, submit, tmp_path):
    (tmp_path / "params.json").write_text('{"rate": 1e-06}')
    assert submit("--params-file", str(tmp_path / "params.json")).code == 0
    (run,) = recorder.runs.values()
    assert run["runtime_config"]["parameters"]["rate"] == 1e-6


def test_images_that_a_cluster_cannot_pull_are_named(recorder, submit):
    assert "a cluster cannot pull localhost/none:1: compile with --registry" in submit().err


def test_a_report_that_cannot_be_written_is_known_before_the_run(recorder, submit, tmp_path):
    (tmp_path / "file").write_text("")
    done = submit("--wait", "--junit", str(tmp_path / "file" / "junit.xml"))
    assert done.code == 2
    assert not recorder.runs


@pytest.mark.parametrize(
    ("form", "settings"),
    [
        (["train_steps=7"], ["train.steps=7"]),
        (["arms=[grpo]"], ["arms=[{name: grpo, algorithm: {type: grpo}}]"]),
        (["train_learning_rate=2e-6", "seeds=[3]"], ["train.learning_rate=2.0e-6", "seeds=[3]"]),
        (["dataset_train_uri=s3://a/t.jsonl", "dataset_task=math"],
         ["dataset.source={type: file, train_uri: 's3://a/t.jsonl', task: math}"]),
    ],
)  # fmt: skip
def test_names_of_the_form_and_of_the_settings_are_the_same(form, settings):
    assert resolve("compare", settings=form) == resolve("compare", settings=settings)


def test_file_may_use_the_forms_names(tmp_path):
    (tmp_path / "params.yaml").write_text("train_steps: 7\n")
    assert resolve("compare", params_file=tmp_path / "params.yaml").train.steps == 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train_step=7"], r"train_step: unknown key.*Did you mean 'train_steps' \(train\.steps\)"),
        (["train_steps=7", "train.steps=8"], "train.steps and train_steps are names of one setting: give one of them"),
        (["dataset_task=math"], "task"),
    ],
)
def test_name_that_is_neither_or_given_twice(settings, message):
    with pytest.raises(ConfigError, match=message):
        resolve("compare", settings=settings)


def test_setting_of_a_package_is_led_to_the_form(submit, package):
    spec = yaml.safe_load(package.read_text())
    spec["root"]["inputDefinitions"]["parameters"]["train_steps"] = {
        "parameterType": "NUMBER_INTEGER",
        "isOptional": True,
    }
    package.write_text(yaml.safe_dump(spec))
    done = submit("--set", "train.steps=7", package=str(package))
    assert "The form calls it train_steps: give --set train_steps=VALUE" in done.err
