"""validate-inputs: what it hands on, and that it finds what would fail later."""

import json
import shutil
from types import SimpleNamespace

import pytest

from progrpo.errors import CheckpointError, ConfigError, DataError, ProGRPOError, StorageError
from progrpo_components import steps
from progrpo_components.validate_inputs.component import validate_inputs
from progrpo_pipelines.packaging.presets import form_defaults, preset_parameters
from s3 import s3_server  # noqa: F401 - a fixture


def check(pipeline="compare", *, preset="smoke", train_retries=0, card=None, overrides=None, **form):
    fields = {**form_defaults(pipeline, preset), "overrides": overrides or {}, **form}
    return steps.validate_inputs(
        pipeline, fields, preset=preset_parameters(preset, pipeline), train_retries=train_retries, card=card
    )


@pytest.fixture
def checkpoint(embedded_checkpoint, tmp_path):
    return shutil.copytree(embedded_checkpoint, tmp_path / "model", ignore=shutil.ignore_patterns("manifest.json"))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def problems(n=40):
    return [{"prompt": f"What is {i} plus {i}?", "answer": str(2 * i)} for i in range(n)]


def test_runs_are_arms_times_seeds_with_integers_again():
    found = check(seeds=[0.0, 7.0])
    assert [(run["arm"]["name"], run["seed"]) for run in found.runs] == [
        ("grpo", 0),
        ("progrpo", 0),
        ("grpo", 7),
        ("progrpo", 7),
    ]
    assert all(isinstance(run["seed"], int) for run in found.runs)
    assert found.runs[1]["arm"]["algorithm"]["alpha"] == 1.0


def test_every_later_task_gets_its_settings(tmp_path):
    found = check(train_steps=20, overrides={"placement": {"cpu": "3"}}, card=tmp_path / "card.md")
    assert found.train["steps"] == 20
    assert found.train["group_size"] == 16
    assert found.dataset["source"]["type"] == "countdown"
    assert (found.gpu_count, found.cpu, found.memory, found.tolerations) == ("", "3", "8Gi", [])
    card = (tmp_path / "card.md").read_text()
    assert '"steps": 20' in card
    assert "progrpo with seed 1" in card


def test_component_takes_the_fields_of_its_pipeline_and_no_others(tmp_path):
    for pipeline, num_runs in (("prepare", 0), ("evaluate", 0), ("train-and-evaluate", 1), ("compare", 4)):
        given = {**form_defaults(pipeline, "smoke"), "preset": preset_parameters("smoke", pipeline), "train_retries": 0}
        found = validate_inputs.python_func(
            pipeline, card=SimpleNamespace(path=tmp_path / "card", uri="s3://root/card"), **given
        )
        assert type(found) is tuple  # kfp matches the fields by place
        assert len(found[0]) == num_runs


def test_a_contradiction_in_the_settings_is_found():
    recentred = {"name": "recentred", "algorithm": {"type": "progrpo", "prompt_confidence": "group_mean"}}
    with pytest.raises(ConfigError, match="micro_batch_size 8 splits the groups of 16"):
        check(arms=["grpo", recentred], overrides={"train": {"micro_batch_size": 8}})
    few = {"source": {"num_train": 8}}
    with pytest.raises(DataError, match=r"holds 8 problems, but train\.prompts_per_step is 16"):
        check(overrides={"dataset": few})


def test_every_problem_is_named_at_once(tmp_path):
    with pytest.raises(ProGRPOError) as caught:
        check(
            checkpoint_uri=str(tmp_path / "nowhere"),
            dataset_train_uri=str(tmp_path / "none.jsonl"),
            dataset_task="math",
        )
    assert str(caught.value).startswith("2 problems:")
    assert "checkpoint_uri: " in str(caught.value)
    assert "dataset: " in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([], {}, "has no rows"),
        (problems(), {"answer_column": "solution"}, "has no column 'solution'"),
        ([{"prompt": "x", "answer": ""}] * 3, {}, "rows cannot be used"),
        (problems(1), {}, "one usable problem, but two splits are needed"),
        ([{"prompt": "x " * 500, "answer": "1"}, *problems()], {}, "Raise it or drop the problem"),
    ],
    ids=["empty", "column", "answers", "one", "long"],
)
def test_a_wrong_dataset_is_found(tmp_path, rows, settings, message):
    uri = write(tmp_path / "data.jsonl", rows)
    with pytest.raises(DataError, match=message):
        check(dataset_train_uri=uri, dataset_task="math", overrides={"dataset": {"source": settings}})


def test_of_a_large_dataset_only_the_first_rows_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("progrpo.inputs.MAX_READ", 1000)
    monkeypatch.setattr("progrpo.data.head.HEAD_BYTES", 2000)
    path = tmp_path / "data.jsonl"
    wide = {"overrides": {"train": {"max_prompt_tokens": 200}}}
    write(path, [*problems(100), {"prompt": "", "answer": 1}])  # what is behind the first rows is for prepare-dataset
    check(dataset_train_uri=str(path), dataset_task="math", **wide)
    write(path, [{"prompt": "", "answer": 1}] * 100)
    with pytest.raises(DataError, match=r"none of its first \d+ rows can be used"):
        check(dataset_train_uri=str(path), dataset_task="math", **wide)


def break_checkpoint(path, how):
    if how == "pickle":
        (path / "model.safetensors").unlink()
        (path / "pytorch_model.bin").write_bytes(b"x")
    elif how == "no tokenizer":
        (path / "tokenizer.json").unlink()
    elif how == "no template":
        (path / "chat_template.jinja").unlink()
        settings = json.loads((path / "tokenizer_config.json").read_text())
        settings.pop("chat_template", None)
        (path / "tokenizer_config.json").write_text(json.dumps(settings))
    elif how == "cut off":
        (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-10])
    elif how == "code":
        settings = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**settings, "auto_map": {"AutoModel": "evil.Model"}}))
    else:
        (path / "config.json").unlink()


BROKEN = {
    "pickle": "loading pickled weights can run code.*Convert it",
    "no tokenizer": "has no tokenizer.*save_pretrained",
    "no template": "no chat template.*Put a chat_template.jinja",
    "cut off": "cut off or not a safetensors file. Copy it again",
    "code": "asks for code of the checkpoint to be run",
    "no config": "has no config.json. Give a Hugging Face directory",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_wrong_checkpoint_is_found(checkpoint, how):
    break_checkpoint(checkpoint, how)
    with pytest.raises(CheckpointError, match=f"checkpoint_uri: .*{BROKEN[how]}"):
        check(checkpoint_uri=str(checkpoint))


def test_a_good_checkpoint_in_s3_passes_and_a_wrong_one_is_named_by_its_uri(checkpoint, s3_server, monkeypatch):  # noqa: F811
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    client = s3_server.client()
    client.create_bucket(Bucket="validated")
    for path in checkpoint.iterdir():
        client.upload_file(str(path), "validated", f"good/{path.name}")
        if path.name != "model.safetensors":
            client.upload_file(str(path), "validated", f"pickled/{path.name}")
    client.put_object(Bucket="validated", Key="pickled/pytorch_model.bin", Body=b"pickle")
    found = check("prepare", checkpoint_uri="s3://validated/good")
    assert found.checkpoint["uri"] == "s3://validated/good"
    with pytest.raises(CheckpointError, match=r"checkpoint_uri: s3://validated/pickled has neither .*pickled weights"):
        check("prepare", checkpoint_uri="s3://validated/pickled")
    with pytest.raises(StorageError, match=r"checkpoint_uri: .*there is no such bucket"):
        check("prepare", checkpoint_uri="s3://nowhere-at-all/good")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match=r"checkpoint_uri: .*the secret key is wrong") as caught:
        check("prepare", checkpoint_uri="s3://validated/good")
    assert "wrong" not in str(caught.value).replace("the secret key is wrong", "")


def test_training_state_must_be_writable(s3_server, monkeypatch):  # noqa: F811
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3_server.client().create_bucket(Bucket="written")
    check(overrides={"train": {"checkpointing": {"uri": "s3://written/runs"}}}, train_retries=2)
    assert not s3_server.client().list_objects_v2(Bucket="written").get("Contents")  # the probe is gone
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match=r"train\.checkpointing\.uri: .*the secret key is wrong"):
        check(overrides={"train": {"checkpointing": {"uri": "s3://written/runs"}}})


def test_training_is_tried_again_only_where_it_can_go_on():
    with pytest.raises(ConfigError, match=r"tries a failed training 2 more times.*train\.checkpointing\.uri"):
        check(train_retries=2)


def test_fewer_gpus_than_processes_is_an_error_only_where_a_gpu_is_asked_for():
    two = {"distributed": {"num_processes": 2}}
    check(overrides={"train": two})  # on CPUs
    with pytest.raises(ConfigError, match=r"gpu_count is 1, but train\.device is cuda with 2 processes"):
        check(gpu_count=1, overrides={"train": {**two, "device": "cuda"}})


def test_several_nodes_need_the_package_that_trains_on_them():
    with pytest.raises(
        ConfigError, match=r"trainjob is set, but here the pod of the step trains. Take the package of pre"
    ):
        check(overrides={"trainjob": {"num_nodes": 2}, "train": {"distributed": {"num_processes": 2}}})
    nodes = {"train": {"device": "cpu", "distributed": {"num_processes": 3}}, "trainjob": {"num_nodes": 2}}
    preset = {**preset_parameters("smoke", "compare"), **nodes}
    form = form_defaults("compare", "smoke")
    with pytest.raises(ConfigError, match=r"num_processes is 3, which does not divide among trainjob.num_nodes 2"):
        steps.validate_inputs("compare", {**form, "overrides": {"train": {"prompts_per_step": 3}}}, preset=preset)
    with pytest.raises(ConfigError, match=r"this package trains by a TrainJob. Take one of another preset"):
        steps.validate_inputs(
            "compare",
            {**form, "overrides": {"trainjob": None, "train": {"distributed": {"num_processes": 1}}}},
            preset=preset,
        )


def test_memory_is_compared_with_the_gpu_that_the_node_selector_names():
    small = {"nvidia.com/gpu.product": "Tiny-0GB"}
    with pytest.raises(ConfigError, match="weights, gradients and optimizer alone take"):
        check(gpu_count=1, placement_node_selector=small, overrides={"train": {"device": "cuda"}})
    check(gpu_count=1, placement_node_selector={"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"})


def test_identities_follow_the_content(tmp_path):
    uri = write(tmp_path / "data.jsonl", problems())
    form = {"pipeline": "prepare", "dataset_train_uri": uri, "dataset_task": "math"}
    first = check(**form)
    assert check(**form).dataset_identity == first.dataset_identity
    write(tmp_path / "data.jsonl", problems(39))
    changed = check(**form)
    assert changed.dataset_identity != first.dataset_identity
    assert changed.checkpoint_identity == first.checkpoint_identity
