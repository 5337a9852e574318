"""The create-run form: what it says, what wins, what is refused, and that it loses nothing."""

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from progrpo.config import CountdownSource, FileSource, ProGRPO, merge
from progrpo.errors import ConfigError
from progrpo_components.form import ALGORITHMS, PATHS, arguments_of, defaults_of, fields_of, read_form
from progrpo_components.settings import PIPELINES, ComparePipeline
from progrpo_pipelines.packaging.presets import (
    form_defaults,
    preset_names,
    preset_parameters,
    request,
    required_fields,
    resolve,
)

GIVEN = {"checkpoint_uri": "s3://models/mine", "dataset_train_uri": "s3://data/t.jsonl"}
GIVEN_EVAL = {"checkpoint_uri": "s3://models/mine", "dataset_eval_uri": "s3://data/e.jsonl"}


def compare(form, preset="smoke"):
    parameters = preset_parameters(preset, "compare")
    return read_form("compare", {**form_defaults("compare", preset), **form}, parameters)


@pytest.mark.parametrize("pipeline", sorted(PIPELINES))
def test_a_form_has_at_most_fifteen_parameters_in_a_logical_order(pipeline):
    names = [field.name for field in fields_of(pipeline)]
    assert names == sorted(names)
    assert len(names) <= 15
    groups = list(dict.fromkeys(name.split("_")[0] for name in names))
    what, inputs, where = ["algorithm", "arms"], ["checkpoint", "dataset"], ["gpu", "overrides", "placement"]
    logical = [*what, *inputs, "eval", "experiment", *where, "seed", "seeds", "train"]
    assert groups == [group for group in logical if group in groups]
    assert set(names) == {*PATHS, "overrides"} & set(names)


@pytest.mark.parametrize("preset", [None, *preset_names()])
@pytest.mark.parametrize("pipeline", sorted(PIPELINES))
def test_the_defaults_of_a_form_are_the_preset(pipeline, preset):
    required = set() if preset is None else required_fields(preset, pipeline)
    given = {name: value for name, value in {**GIVEN, **GIVEN_EVAL}.items() if name in required}
    brought = {} if preset is None else preset_parameters(preset, pipeline)
    form = form_defaults(pipeline, preset)
    assert not set(form) & required
    keys = [f"{PATHS[name]}={value}" for name, value in given.items()]
    assert read_form(pipeline, {**form, **given}, brought) == resolve(pipeline, preset=preset, settings=keys)
    assert form["overrides"] == {}


def named(name):
    return {"name": name, "algorithm": {"type": name}}


def at(values, path):
    for key in path.split("."):
        values = values.get(key, {}) if isinstance(values, dict) else {}
    return values or None


VALUES = st.fixed_dictionaries(
    {},
    optional={
        "train.steps": st.integers(1, 10_000),
        "train.group_size": st.integers(2, 64),
        "train.learning_rate": st.floats(1e-7, 1e-2),
        "train.warmup_steps": st.integers(0, 10),
        "train.heldout": st.sampled_from([None, {"every": 5}]),
        "train.engine": st.sampled_from(
            [{"type": "transformers", "batch_size": 4}, {"type": "vllm", "memory_frac": 0.5}]
        ),
        "arms": st.lists(st.sampled_from(ALGORITHMS), min_size=1, unique=True).map(
            lambda names: [{"name": f"a{name}", "algorithm": {"type": name}} for name in names]
        ),
        "comparison.baseline": st.just("start"),
        "dataset.source": st.sampled_from(
            [
                {"type": "countdown", "num_train": 70},
                {"type": "file", "train_uri": "a.jsonl", "eval_uri": "b.csv", "task": "exact", "answer_column": "x"},
                {"type": "file", "eval_uri": "b.csv"},
            ]
        ),
        "dataset.system_prompt": st.sampled_from([None, "", "Be brief."]),
        "evaluation.ks": st.sampled_from([None, [1, 4]]),
        "experiment": st.text("ab 1", min_size=1, max_size=9),
        "placement.node_selector": st.dictionaries(st.sampled_from(["pool", "nvidia.com/gpu.product"]), st.just("x")),
        "placement.tolerations": st.just([{"key": "gpu", "operator": "Exists"}]),
        "placement.gpu_count": st.integers(0, 8),
        "seeds": st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4, unique=True),
    },
)


@settings(max_examples=150, deadline=None)
@given(VALUES, st.sampled_from([None, *preset_names()]))
def test_any_settings_survive_the_form_and_its_floats(values, preset):
    nested = {"comparison": {"baseline": "start"}}
    for path, value in values.items():
        *parents, last = path.split(".")
        place = nested
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = value
    brought = {} if preset is None else preset_parameters(preset, "compare")
    if preset is not None and required_fields(preset, "compare"):
        nested["checkpoint"] = {"uri": "/models/mine"}
        nested["dataset"] = {"source": {"type": "file", "train_uri": "mine.jsonl"}, **nested.get("dataset", {})}
    meant = merge(merge(defaults_of("compare"), brought), nested)
    try:
        wanted = ComparePipeline.model_validate(meant)
    except ValidationError:
        reject()  # such as a group size that the preset's micro-batches do not divide
    form = {**form_defaults("compare", preset), **arguments_of("compare", nested, wanted.model_dump(mode="json"))}
    assert set(form) <= {field.name for field in fields_of("compare")}
    assert read_form("compare", as_kfp_hands_over(form), brought) == wanted
    assert at(form["overrides"], "train.steps") is None  # it stands in its field, where Kubeflow shows it


def as_kfp_hands_over(value):
    """Integers inside structs and lists are floats, and there is no null (kfp 2.17.0, to_protobuf_value)."""
    assert value is not None
    if isinstance(value, dict):
        return {key: as_kfp_hands_over(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_kfp_hands_over(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def test_the_form_is_over_the_preset_and_overrides_over_both():
    run = compare({"train_steps": 7, "overrides": {"train": {"group_size": 4}}})
    assert (run.train.steps, run.train.group_size) == (7, 4)
    assert run.train.prompts_per_step == 16  # the preset's
    assert run.arms[1].algorithm == ProGRPO(alpha=1.0)


def test_a_name_stands_for_an_arm():
    assert [arm.name for arm in compare({"arms": ["grpo", "dapo"]}).arms] == ["grpo", "dapo"]


def test_an_algorithm_keeps_the_settings_of_the_preset_only_if_it_is_the_same():
    brought = preset_parameters("smoke", "train-and-evaluate")
    form = form_defaults("train-and-evaluate", "smoke")
    assert read_form("train-and-evaluate", form, brought).arm.algorithm == ProGRPO(alpha=1.0)
    other = read_form("train-and-evaluate", {**form, "algorithm": "dapo"}, brought)
    assert (other.arm.name, other.arm.algorithm.type) == ("dapo", "dapo")
    stronger = {**form, "overrides": {"arm": {"algorithm": {"alpha": 2}}}}
    assert read_form("train-and-evaluate", stronger, brought).arm.algorithm == ProGRPO(alpha=2)


def test_a_file_takes_the_place_of_the_embedded_problems():
    assert isinstance(compare({}).dataset.source, CountdownSource)
    run = compare({"dataset_train_uri": "s3://b/t.jsonl", "dataset_task": "math"})
    assert run.dataset.source == FileSource(train_uri="s3://b/t.jsonl", task="math")


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"overrides": {"train": {"steps": None}}}, r"train\.steps"),
        ({"dataset_task": "math"}, r"dataset_task is 'math', but neither dataset_train_uri nor dataset_eval_uri"),
        ({"overrides": {"train": {"group_sise": 8}}}, r"train.group_sise: unknown key.*Did you mean 'group_size'"),
        ({"overrides": {"train": 3}}, "train"),
        ({"overrides": [1]}, "overrides is a list, but must be a mapping"),
        ({"seeds": [0.5]}, r"seeds\.0"),
        ({"train_steps": 0}, r"train\.steps"),
        ({"arms": ["grpo", "progrop"]}, r"arms\.1\.algorithm"),
        ({"arms": "grpo"}, "arms"),
        ({"epochs": 3}, r"'epochs' is no parameter of compare. There are: arms,"),
        ({"placement_node_selector": {"pool": "a b"}}, r"placement\.node_selector"),
        ({"placement_tolerations": [{"operator": "Equal"}]}, "operator Equal needs a key"),
        ({"gpu_type": "H100"}, r"placement\.gpu_type"),
        ({"overrides": {"placement": {"node_affinity": {"required": []}}}}, "unknown key"),
    ],
)
def test_what_is_refused_is_named(form, message):
    with pytest.raises(ConfigError, match=message):
        compare(form)


def test_a_text_that_must_be_given_may_not_be_empty():
    brought = preset_parameters("single-gpu", "compare")
    form = {**form_defaults("compare", "single-gpu"), **GIVEN, "checkpoint_uri": ""}
    with pytest.raises(ConfigError, match=r"checkpoint\.uri"):
        read_form("compare", form, brought)
    with pytest.raises(ConfigError, match="neither train_uri nor eval_uri is given"):
        read_form("compare", {**form, **GIVEN, "dataset_train_uri": ""}, brought)


def test_overrides_are_over_the_form_and_take_its_names():
    assert compare({"train_steps": 7, "overrides": {"train": {"steps": 9}}}).train.steps == 9
    assert compare({"train_steps": 7, "overrides": {"train_steps": 9}}).train.steps == 9
    run = compare({"overrides": {"train.group_size": 8, "arms": ["grpo", "dapo"], "dataset_train_uri": "t.jsonl"}})
    assert run.train.group_size == 8
    assert [arm.algorithm.type for arm in run.arms] == ["grpo", "dapo"]
    assert run.dataset.source == FileSource(train_uri="t.jsonl")
    assert compare({"overrides": {"arms": {"1": {"algorithm": {"alpha": 2}}}}}).arms[1].algorithm == ProGRPO(alpha=2)


@pytest.mark.parametrize(
    ("pipeline", "settings", "expected"),
    [
        ("compare", ["train.steps=20"], {"train_steps": 20, "overrides": {}}),
        ("compare", ["train_steps=20", "seeds=[3]"], {"train_steps": 20, "seeds": [3], "overrides": {}}),
        ("compare", ["arms=[grpo, dapo]"], {"arms": [named("grpo"), named("dapo")], "overrides": {}}),
        ("compare", ["arms.1.algorithm.alpha=2"], {"overrides": {"arms": {"1": {"algorithm": {"alpha": 2}}}}}),
        ("train-and-evaluate", ["algorithm=dapo"], {"algorithm": "dapo", "overrides": {}}),
        (
            "evaluate",
            ["dataset_eval_uri=e.csv"],
            {"dataset_eval_uri": "e.csv", "dataset_task": "math", "overrides": {}},
        ),
        ("evaluate", ["evaluation.top_p=0.9"], {"overrides": {"evaluation": {"top_p": 0.9}}}),
    ],
)
def test_what_the_command_line_says_stands_in_the_form(pipeline, settings, expected):
    asked = request(pipeline, preset="smoke", settings=settings)
    assert asked.arguments == {**form_defaults(pipeline, "smoke"), **expected}
    assert read_form(pipeline, asked.arguments, preset_parameters("smoke", pipeline)) == asked.settings


def test_the_experiment_is_no_override():
    with pytest.raises(ConfigError, match="that is the parameter experiment"):
        read_form("compare", {"overrides": {"experiment": "mine"}}, {})
