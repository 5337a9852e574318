"""What the steps do around the library: configuration, reporting, one output directory or none."""

import json
import os
import signal
import subprocess
import sys

import pytest

from progrpo.errors import ConfigError, DataError, ManifestError, StorageError
from progrpo.manifest import write_manifest
from progrpo_components import standalone, steps
from progrpo_components.reporting import PROGRESS_DIR, reported
from progrpo_components.tracking import is_legal_name

GRPO = {"name": "grpo", "algorithm": {"type": "grpo"}}


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_step_reports_start_progress_and_end(tmp_path, monkeypatch):
    monkeypatch.setenv(PROGRESS_DIR, str(tmp_path))
    with reported("train", arm="grpo", seed=1, output=tmp_path / "out") as progress:
        progress.update(1, 4, reward=0.5)
    start, update, end = lines_of(tmp_path / "train-grpo-1.jsonl")
    assert start == {"step": "train", "arm": "grpo", "seed": 1, "state": "running", "pid": os.getpid()}
    assert (update["done"], update["total"], update["reward"]) == (1, 4, 0.5)
    assert end == {"state": "finished", "output": str(tmp_path / "out")}


@pytest.mark.parametrize(
    ("error", "user_error", "text"),
    [(DataError("row 3 has no answer"), True, "row 3 has no answer"), (KeyError("x"), False, "KeyError: 'x'")],
)
def test_a_step_reports_its_error_and_raises_it(tmp_path, monkeypatch, error, user_error, text):
    monkeypatch.setenv(PROGRESS_DIR, str(tmp_path))
    with pytest.raises(type(error)), reported("evaluate", arm="start"):
        raise error
    end = lines_of(tmp_path / "evaluate-start.jsonl")[-1]
    assert end["state"] == "failed"
    assert end["user_error"] is user_error
    assert end["error"].endswith(text)
    assert ("Traceback" in end["error"]) is not user_error


def test_without_a_progress_directory_progress_is_logged(caplog, monkeypatch):
    monkeypatch.delenv(PROGRESS_DIR, raising=False)
    with caplog.at_level("INFO"), reported("train", arm="grpo", seed=0) as progress:
        for done in range(1, 6):
            progress.update(done, 5, reward=0.5)
    assert [record.message for record in caplog.records] == [
        "train-grpo-0: 1/5 reward 0.5",
        "train-grpo-0: 5/5 reward 0.5",  # the ones between are less than ten seconds later
    ]


def test_sigterm_ends_a_step_through_its_context_managers(tmp_path):
    code = (
        "import time\nfrom progrpo_components.reporting import reported\n"
        "try:\n    with reported('train'):\n        print('up', flush=True)\n        time.sleep(60)\n"
        "finally:\n    print('closed', flush=True)\n"
    )
    environment = {**os.environ, PROGRESS_DIR: str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[0] == "closed\n"
    assert process.returncode == 128 + signal.SIGTERM
    assert lines_of(tmp_path / "train.jsonl")[-1]["state"] == "failed"


def test_metrics_of_an_evaluation_are_plain_numbers(tmp_path):
    metrics = {"eval/pass_at_1": {"value": 0.25, "low": 0.2, "high": 0.3}, "eval/entropy": 1.5}
    (tmp_path / "evaluation.json").write_text(json.dumps({"metrics": metrics}))
    assert steps.read_metrics(tmp_path) == {"eval/pass_at_1": 0.25, "eval/entropy": 1.5}


def test_kubeflow_shows_a_few_numbers_that_say_of_which_run_they_are(tmp_path):
    """In *Compare runs* the metrics of all evaluations stand under one name, "Evaluate > metrics"."""
    metrics = {f"eval/pass_at_{k}": {"value": k / 7, "low": 0, "high": 1} for k in (8, 16, 1)}
    metrics |= {
        "eval/entropy": 1.5,
        "eval/distinct_correct": 2.123456,
        "eval/self_bleu": 0.1,
        "eval/majority_at_8": 0.3,
    }
    arm = {"name": "progrpo", "algorithm": {"type": "progrpo"}}
    for name, config, metadata in (("progrpo-seed3", {"arm": arm, "seed": 3}, {}), ("start", {}, {"arm": "start"})):
        directory = tmp_path / name
        directory.mkdir()
        (directory / "evaluation.json").write_text(json.dumps({"metrics": metrics}))
        write_manifest(directory, "evaluation", config=config, metadata=metadata)
        shown = steps.headline(directory)
        assert shown == {
            f"{name}/pass_at_1": 0.1429,
            f"{name}/pass_at_16": 2.2857,
            f"{name}/entropy": 1.5,
            f"{name}/distinct_correct": 2.1235,
        }
        assert all(is_legal_name(key) for key in shown), "Kubeflow's plugin logs them in one request"


def test_a_directory_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ManifestError, match=r"not a finished checkpoint artifact"):
        steps.evaluate({}, dataset=tmp_path, model=tmp_path, output=tmp_path / "out")


@pytest.mark.parametrize(
    ("step", "extra"), [("train", {"checkpoint": "absent", "arm": GRPO}), ("evaluate", {"model": "model"})]
)
def test_a_missing_input_is_refused_before_the_heavy_imports(step, extra, tmp_path):
    (tmp_path / "model").mkdir()
    write_manifest(tmp_path / "model", "checkpoint")
    code = (
        "import json, pathlib, sys\nfrom progrpo.errors import ManifestError\n"
        "from progrpo_components.standalone import run_step\n"
        "try:\n    run_step(sys.argv[1], json.loads(sys.argv[2]), pathlib.Path('out'), source='c.yaml')\n"
        "except ManifestError as error:\n    print(error)\n"
        "assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code, step, json.dumps({"dataset": "absent", **extra})]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("absent has no manifest.json")
    assert not (tmp_path / "out").exists()


def test_artifact_metadata_holds_digests_and_scalars_only(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    manifest = write_manifest(
        tmp_path, "dataset", inputs={"x": "abc"}, metadata={"num_train": 3, "tasks": ["math"], "none": None}
    )
    described = steps.describe(manifest)
    assert described == {
        "digest": manifest.digest,
        "created_by": manifest.created_by,
        "x_digest": "abc",
        "num_train": 3,
    }


def test_tracking_of_a_local_run_uses_the_run_of_progrpo_run(monkeypatch):
    tracking = steps.Tracking.of_pipeline("e", "kfp-1", "nightly 7")
    place = tracking.locate("compare")
    assert (place.name, place.key["progrpo.pipeline_run_id"]) == ("nightly 7", "kfp-1")
    monkeypatch.setenv(steps.RUN_ID_VARIABLE, "demo-1f")
    monkeypatch.setenv(steps.RUN_NAME_VARIABLE, "demo")
    tracking = steps.Tracking.of_pipeline("e", "12345678", "compare-2026-01-01")
    assert (tracking.run_id, tracking.run_name) == ("demo-1f", "demo")


def test_step_output_appears_whole_or_not_at_all(tmp_path):
    output = tmp_path / "dataset"
    values = {"source": {"type": "file", "train_uri": str(tmp_path / "absent.jsonl")}}
    with pytest.raises((DataError, OSError)):
        standalone.run_step("prepare-dataset", values, output, source="c.yaml")
    assert list(tmp_path.iterdir()) == []


def test_step_overwrites_nothing(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        standalone.run_step("prepare-dataset", {}, tmp_path, source="c.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("train", {"arm": GRPO}, "dataset: required"),
        (
            "train",
            {"dataset": "d", "checkpoint": "c", "arm": GRPO, "sed": 1},
            "sed: unknown key.*Did you mean 'seed'",
        ),
        ("evaluate", {"dataset": "d", "model": "m", "evaluation": {"num_samples": 0}}, r"evaluation\.num_samples"),
        ("compare", {"evaluations": []}, "evaluations"),
    ],
)
def test_step_configuration_is_closed(name, values, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        standalone.run_step(name, values, tmp_path / "out", source="c.yaml")


def test_step_from_a_file_makes_the_artifact(tmp_path):
    values = {"source": {"type": "countdown", "num_train": 8, "num_eval": 4}}
    manifest = standalone.run_step("prepare-dataset", values, tmp_path / "out", source="c.yaml")
    assert manifest.kind == "dataset"
    assert (manifest.metadata["num_train"], manifest.metadata["num_eval"]) == (8, 4)
    assert (tmp_path / "out" / "manifest.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_changed_since_the_first_task_looked_is_refused(tmp_path):
    """The cache would know the new content by the old one's key."""
    from progrpo.config import DatasetConfig
    from progrpo.inputs import dataset_identity

    file = tmp_path / "problems.jsonl"
    rows = [{"prompt": f"what is {i} + 1?", "answer": str(i + 1)} for i in range(20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"source": {"type": "file", "train_uri": str(file), "task": "exact"}}
    identity = dataset_identity(DatasetConfig.model_validate(config))
    steps.prepare_dataset(config, output=tmp_path / "same", identity=identity)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    with pytest.raises(StorageError, match="changed while the run was under way"):
        steps.prepare_dataset(config, output=tmp_path / "changed", identity=identity)


def test_an_empty_experiment_is_the_default():
    assert steps.Tracking.of_pipeline("", "run", "").experiment == "progrpo"
