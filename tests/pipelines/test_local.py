"""The pipelines under kfp.local, submitted as the form does: what the cache skips, and where wrong inputs fail."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from progrpo_pipelines.packaging.presets import form_defaults

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1000)]

PROBLEMS = [{"prompt": f"What is {i} plus {i}?", "answer": str(2 * i)} for i in range(40)]


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def results(tmp_path_factory, python):
    folder = tmp_path_factory.mktemp("local")
    data = folder / "math.jsonl"
    pickled = folder / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    (pickled / "pytorch_model.bin").write_bytes(b"pickle")
    form = {"dataset_train_uri": str(data), "dataset_task": "math"}

    def run(pipeline, *, files=None, **changes):
        defaults = form_defaults(pipeline, "smoke")
        return {"pipeline": pipeline, "preset": "smoke", "form": {**defaults, **changes}, "files": files or {}}

    runs = {
        "first": run("prepare", **form, files={str(data): jsonl(PROBLEMS)}),
        "again": run("prepare", **form),
        "changed": run("prepare", **form, files={str(data): jsonl(PROBLEMS[1:])}),
        "parameter": run("compare", overrides={"train": {"group_sise": 8}}),
        "dataset": run("evaluate", **form, overrides={"dataset": {"source": {"answer_column": "solution"}}}),
        "checkpoint": run("train-and-evaluate", checkpoint_uri=str(pickled)),
    }
    (folder / "runs.json").write_text(json.dumps(list(runs.values())))
    command = [python, str(Path(__file__).parent / "local_runs.py"), str(folder / "runs.json")]
    environment = {**os.environ, "PROGRPO_TRACKING": "off", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*command, str(folder / "results.json")], capture_output=True, text=True, timeout=900, env=environment
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return dict(zip(runs, json.loads((folder / "results.json").read_text()), strict=True))


def test_a_run_again_skips_prepare_and_import(results):
    ran = {"validate-inputs": ["finished"], "prepare-dataset": ["finished"], "import-checkpoint": ["finished"]}
    assert results["first"] == {"failed": False, "steps": ran, "errors": {}}
    assert results["again"] == {"failed": False, "steps": {"validate-inputs": ["finished"]}, "errors": {}}


def test_another_content_at_the_same_uri_is_prepared_anew_and_the_checkpoint_is_not(results):
    ran = {"validate-inputs": ["finished"], "prepare-dataset": ["finished"]}
    assert results["changed"] == {"failed": False, "steps": ran, "errors": {}}


@pytest.mark.parametrize(
    ("wrong", "messages"),
    [
        ("parameter", ["train.group_sise: unknown key", "Did you mean 'group_size'?"]),
        ("dataset", ["has no column 'solution'", "Set prompt_column and answer_column."]),
        (
            "checkpoint",
            ["checkpoint_uri: ", "pytorch_model.bin, but loading pickled weights can run code", "Convert it"],
        ),
    ],
)
def test_wrong_inputs_fail_in_the_first_task_with_what_to_do(results, wrong, messages):
    result = results[wrong]
    assert result["failed"]
    assert set(result["steps"]) == {"validate-inputs"}  # nothing else was started but finish, which reports nothing
    for message in messages:
        assert message in result["errors"]["validate-inputs"]
