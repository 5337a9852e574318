"""Defaults, preset, file and --set, each over the one before."""

import pytest
import yaml

from progrpo.config import GRPO, FileSource, ProGRPO, merge
from progrpo.errors import ConfigError
from progrpo.training.preflight import Findings, check_settings
from progrpo_components.settings import PIPELINES
from progrpo_pipelines.packaging.presets import preset_names, required_fields, resolve

OWN_INPUTS = ["checkpoint.uri=/models/mine", "dataset.source.train_uri=t.jsonl", "dataset.source.eval_uri=e.jsonl"]


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("pipeline", sorted(PIPELINES))
def test_every_preset_fits_every_pipeline(pipeline, preset):
    own = required_fields(preset, pipeline)
    parameters = resolve(pipeline, preset=preset, settings=OWN_INPUTS if own else [])
    if own:
        assert parameters.checkpoint.uri == "/models/mine"
        with pytest.raises(ConfigError, match=rf"preset {preset} is for a model and data of your own.*checkpoint_uri="):
            resolve(pipeline, preset=preset)


@pytest.mark.parametrize("preset", [name for name in preset_names() if required_fields(name, "compare")])
def test_a_preset_for_gpus_holds_together(preset):
    parameters = resolve("compare", preset=preset, settings=OWN_INPUTS)
    findings = Findings()
    check_settings(parameters.arms, parameters.train, findings)
    assert not findings.errors
    assert not findings.warnings
    nodes = parameters.trainjob.num_nodes if parameters.trainjob else 1
    assert parameters.placement.gpu_count * nodes == parameters.train.distributed.num_processes
    assert parameters.evaluation.num_processes <= parameters.placement.gpu_count


def test_later_sources_win(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("train: {steps: 7, learning_rate: 1e-3}\n")
    parameters = resolve("compare", preset="smoke", params_file=file, settings=["train.steps=9"])
    assert parameters.train.steps == 9  # --set over the file
    assert parameters.train.learning_rate == 1e-3  # the file over the preset; YAML 1.1 reads 1e-3 as a text
    assert parameters.train.group_size == resolve("compare", preset="smoke").train.group_size  # the preset's is kept
    assert parameters.comparison.num_resamples == 2000  # default


def test_set_reaches_into_lists():
    parameters = resolve(
        "compare", settings=["arms.1.algorithm.alpha=2", "arms.0.name=baseline", "comparison.baseline=start"]
    )
    assert [arm.name for arm in parameters.arms] == ["baseline", "progrpo"]
    assert parameters.arms[0].algorithm == GRPO()
    assert parameters.arms[1].algorithm == ProGRPO(alpha=2)


def test_set_replaces_a_list_whole():
    assert resolve("compare", settings=["seeds=[3, 5, 8]"]).seeds == (3, 5, 8)


def test_another_type_drops_the_keys_of_the_first():
    parameters = resolve(
        "evaluate",
        preset="smoke",  # a countdown source, whose num_train a file source does not know
        settings=["dataset.source.type=file", "dataset.source.train_uri=a.jsonl"],
    )
    assert parameters.dataset.source == FileSource(train_uri="a.jsonl")


def test_order_of_settings_does_not_matter_across_keys():
    settings = ["dataset.source.train_uri=a.jsonl", "dataset.source.type=file"]
    assert resolve("evaluate", settings=settings) == resolve("evaluate", settings=settings[::-1])


@pytest.mark.parametrize("text", ["2024", "true", "null", "1.5"])
def test_a_text_parameter_stays_text(text):
    assert resolve("evaluate", settings=[f"experiment={text}"]).experiment == text


def test_null_takes_a_value_away():
    parameters = resolve("evaluate", settings=["evaluation.max_problems=4", "evaluation.max_problems=null"])
    assert parameters.evaluation.max_problems is None


def test_value_may_contain_an_equals_sign():
    assert resolve("evaluate", settings=["checkpoint.uri=s3://b/run=1"]).checkpoint.uri == "s3://b/run=1"


def test_error_names_the_sources(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"trian": {}}))
    with pytest.raises(ConfigError, match=r"parameters of compare, preset smoke, .*mine\.yaml"):
        resolve("compare", preset="smoke", params_file=file)


def test_merge_changes_neither_argument():
    base, over = {"a": [{"b": 1}], "c": 1}, {"a": {0: {"b": 2}}}
    assert merge(base, over) == {"a": [{"b": 2}], "c": 1}
    assert (base, over) == ({"a": [{"b": 1}], "c": 1}, {"a": {0: {"b": 2}}})
