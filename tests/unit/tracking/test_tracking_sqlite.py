"""Tracking into a real sqlite store, read back with mlflow's own client."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from progrpo.manifest import write_manifest
from progrpo.metrics import EVAL_METRICS, TRAIN_METRICS
from progrpo_components.tracking import Tracker, open_tracking


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("store") / "nested" / "mlflow.db"


@pytest.fixture(scope="module")
def client(database):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{database}")


@pytest.fixture(autouse=True)
def _tracked(monkeypatch, database):
    monkeypatch.delenv("PROGRPO_TRACKING", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")


@pytest.fixture
def summary_run(request):
    """Open the tracker of one summary run of this test."""

    def open_one(arm: str = "grpo", seed: int | None = 0, **kwargs) -> Tracker:
        settings = {"experiment": "unit", "pipeline_run_id": request.node.name, "name": f"{arm} seed {seed}"}
        return open_tracking(arm=arm, seed=seed, **settings | kwargs)

    return open_one


def history(client, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in client.get_metric_history(run_id, key))


def test_tracking_off_never_imports_mlflow():
    code = """
import sys
from progrpo_components.tracking import open_tracking
with open_tracking(experiment="e", pipeline_run_id="p", name="n", arm="grpo", seed=0) as tracker:
    tracker.log(1, {"train/reward": 1.0})
    tracker.log_params({"a": 1})
assert tracker.run_id is None
assert "mlflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PROGRPO_TRACKING": "off"})


def test_a_later_step_finds_the_run_of_an_earlier_one(client, summary_run):
    with summary_run(tags={"progrpo.run_name": "demo"}) as train:
        train.log(1, {"train/reward": 0.25})
        train.log(2, {"train/reward": 0.5})
    with summary_run(name="another name") as evaluate:
        evaluate.log_metrics({"eval/pass_at_8": 0.75})

    assert evaluate.run_id == train.run_id
    run = client.get_run(train.run_id)
    assert run.info.run_name == "grpo seed 0"
    assert run.info.status == "FINISHED"
    assert run.data.tags["progrpo.run_name"] == "demo"
    assert run.data.tags["progrpo.arm"] == "grpo"
    assert run.data.tags["progrpo.seed"] == "0"
    assert run.data.metrics["eval/pass_at_8"] == 0.75
    assert history(client, train.run_id, "train/reward") == [(1, 0.25), (2, 0.5)]


def test_arms_seeds_and_pipeline_runs_have_runs_of_their_own(summary_run):
    openings = [
        {"arm": "grpo", "seed": None},  # before the seeded ones: a missing tag must not match any seed
        {"arm": "grpo", "seed": 0},
        {"arm": "grpo", "seed": 1},
        {"arm": "progrpo", "seed": 0},
        {"arm": "grpo", "seed": 0, "pipeline_run_id": "it's another"},
    ]
    first = [summary_run(**opening) for opening in openings]
    again = [summary_run(**opening) for opening in openings]
    for tracker in (*first, *again):
        tracker.close()
    assert len({tracker.run_id for tracker in first}) == len(openings)
    assert [tracker.run_id for tracker in again] == [tracker.run_id for tracker in first]


def test_metrics_arrive_while_the_step_still_runs(client, summary_run):
    with summary_run() as tracker:
        tracker.log(1, {"train/loss": 0.5})
        deadline = time.monotonic() + 20
        while not history(client, tracker.run_id, "train/loss") and time.monotonic() < deadline:
            time.sleep(0.1)
        assert history(client, tracker.run_id, "train/loss") == [(1, 0.5)]


def test_more_metrics_than_a_batch_holds_all_arrive(client, summary_run):
    with summary_run() as tracker:
        for step in range(1, 1202):
            tracker.log(step, {"train/reward": step / 2})
    assert history(client, tracker.run_id, "train/reward") == [(step, step / 2) for step in range(1, 1202)]


def test_mlflow_takes_every_name_of_ours(client, summary_run):
    names = [name.format(k=8) for name in (*TRAIN_METRICS, *EVAL_METRICS)]
    with summary_run() as tracker:
        tracker.log(1, dict.fromkeys(names, 1.0))
    assert set(client.get_run(tracker.run_id).data.metrics) == set(names)


@pytest.mark.parametrize("name", ["eval/pass@8", "../up", "/root", "a//b", "", "x" * 251])
def test_a_name_mlflow_refuses_does_not_cost_the_others(client, summary_run, caplog, name):
    with summary_run() as tracker:
        tracker.log(1, {name: 1.0, "train/reward": 0.5})
        tracker.log(2, {name: 1.0})
    assert client.get_run(tracker.run_id).data.metrics == {"train/reward": 0.5}
    assert [record.getMessage().count("not a name that it takes") for record in caplog.records] == [1]


def test_non_finite_values_are_left_out_and_said_once(client, summary_run, caplog):
    with summary_run() as tracker:
        for step, loss in enumerate((0.5, float("nan"), float("inf"), 0.25)):
            tracker.log(step, {"train/loss": loss, "train/reward": 1.0})
    assert history(client, tracker.run_id, "train/loss") == [(0, 0.5), (3, 0.25)]
    assert len(history(client, tracker.run_id, "train/reward")) == 4
    assert len(caplog.records) == 1


def test_params_are_flattened_batched_and_cut_off(client, summary_run):
    many = {f"p{i}": i for i in range(250)}
    nested = {
        "loss": {"clip_high": 0.28, "normalize_std": True},
        "micro_batch_size": None,
        "ks": [1, 2],
        "text": "é" * 7000,
    }
    with summary_run() as tracker:
        tracker.log_params(many)
        tracker.log_params(nested, prefix="train.")
    params = client.get_run(tracker.run_id).data.params
    text = params.pop("train.text")
    assert text == "é" * 5997 + "..."
    assert params == {f"p{i}": str(i) for i in range(250)} | {
        "train.loss.clip_high": "0.28",
        "train.loss.normalize_std": "true",
        "train.ks": "[1, 2]",
    }


def test_a_changed_param_is_refused_and_metrics_still_arrive(client, summary_run, caplog):
    with summary_run() as tracker:
        tracker.log_params({"alpha": 0.3})
    with summary_run() as retry:
        retry.log_params({"alpha": 0.5})
        retry.log(1, {"train/reward": 1.0})
    run = client.get_run(tracker.run_id)
    assert run.data.params == {"alpha": "0.3"}
    assert run.data.metrics == {"train/reward": 1.0}
    assert "refused 1 params" in caplog.text


@pytest.mark.parametrize(("seed", "expected"), [(0, {"training", "evaluation"}), (None, {"evaluation"})])
def test_the_dataset_is_named_by_its_digest(client, summary_run, tmp_path, seed, expected):
    (tmp_path / "train.parquet").write_text(f"rows of {seed}")  # MLflow keeps one entry a digest, with its first source
    manifest = write_manifest(tmp_path, "dataset", metadata={"num_train": 64, "num_eval": 16, "tasks": ["countdown"]})
    with summary_run(seed=seed) as tracker:
        tracker.log_dataset(tmp_path)
    run = client.get_run(tracker.run_id)
    inputs = {item.tags[0].value: item.dataset for item in run.inputs.dataset_inputs}
    assert set(inputs) == expected
    assert inputs["evaluation"].name == "countdown-eval"
    assert inputs["evaluation"].digest == manifest.digest[:36]
    assert json.loads(inputs["evaluation"].profile) == {"num_rows": 16}
    assert json.loads(inputs["evaluation"].source) == {"uri": tmp_path.as_uri(), "digest": manifest.digest}
    assert run.data.tags["progrpo.dataset_digest"] == manifest.digest


def test_a_directory_that_is_no_dataset_is_a_warning(summary_run, tmp_path, caplog):
    with summary_run() as tracker:
        tracker.log_dataset(tmp_path)
    assert "did not take the dataset" in caplog.text


def test_artifacts_lie_beside_the_database(client, database, summary_run, tmp_path):
    report = tmp_path / "out" / "report.html"
    report.parent.mkdir()
    report.write_text("<p>report</p>")
    with summary_run() as tracker:
        tracker.log_artifacts(tmp_path / "out")
        tracker.log_artifacts(report, "single")
    stored = database.parent / "mlartifacts" / tracker.run_id / "artifacts"
    assert (stored / "report.html").read_text() == "<p>report</p>"
    assert (stored / "single" / "report.html").read_text() == "<p>report</p>"
    assert client.get_run(tracker.run_id).info.artifact_uri == stored.as_uri()


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("bad"), "FAILED"), (SystemExit(143), "KILLED"), (KeyboardInterrupt(), "KILLED")]
)
def test_an_exception_ends_the_run_and_is_passed_on(client, summary_run, error, status):
    with pytest.raises(type(error)), summary_run() as tracker:  # noqa: PT012
        tracker.log(1, {"train/reward": 1.0})
        raise error
    run = client.get_run(tracker.run_id)
    assert run.info.status == status
    assert run.data.metrics == {"train/reward": 1.0}


def test_a_retried_step_takes_the_failed_run_up_again(client, summary_run):
    tracker = summary_run()
    tracker.close("FAILED")
    with summary_run() as retry:
        assert retry.run_id == tracker.run_id
        assert client.get_run(retry.run_id).info.status == "RUNNING"
    assert client.get_run(retry.run_id).info.status == "FINISHED"


def test_what_comes_after_close_is_dropped(client, summary_run):
    tracker = summary_run()
    tracker.close()
    tracker.close("FAILED")
    tracker.log(1, {"train/reward": 1.0})
    tracker.log_params({"a": 1})
    run = client.get_run(tracker.run_id)
    assert (run.info.status, run.data.metrics, run.data.params) == ("FINISHED", {}, {})


def test_a_deleted_experiment_is_a_warning_that_says_what_to_do(client, summary_run, caplog):
    client.delete_experiment(client.create_experiment("gone"))
    with summary_run(experiment="gone") as tracker:
        tracker.log(1, {"train/reward": 1.0})
    assert tracker.run_id is None
    assert "Restore it" in caplog.text


def test_a_file_that_is_no_database_is_a_warning(summary_run, monkeypatch, tmp_path, caplog):
    path = tmp_path / "mlflow.db"
    path.write_text("not a database, but a text that is long enough to be taken for a header" * 50)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    assert summary_run().run_id is None
    assert "cannot be used" in caplog.text


@pytest.mark.slow
def test_four_processes_start_together_on_a_store_that_does_not_exist(tmp_path):
    """Two steps a run, each twice: two runs, all numbers, no warning. Each process has a TMPDIR of its own, as
    ``progrpo run`` gives it: mlflow's own lock lies there and does not help."""
    code = """
import sys, time
from pathlib import Path
from progrpo_components.tracking import open_tracking
import mlflow, mlflow.store.tracking.sqlalchemy_store
directory, number = Path(sys.argv[1]), int(sys.argv[2])
(directory / f"ready{number}").touch()
while len(list(directory.glob("ready*"))) < 4:
    time.sleep(0.005)
with open_tracking(experiment="e", pipeline_run_id="p", name="n", arm="grpo", seed=number % 2) as tracker:
    for step in range(200):
        tracker.log(step, {f"process{number}": float(step)})
"""
    environment = {name: value for name, value in os.environ.items() if name != "PROGRPO_TRACKING"}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path / 'mlflow.db'}"
    processes = []
    for number in range(4):
        own = tmp_path / f"tmp{number}"
        own.mkdir()
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", code, str(tmp_path), str(number)],
                env={**environment, "TMPDIR": str(own)},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0
        assert "cannot be used" not in errors, errors

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=environment["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("e")
    runs = client.search_runs([experiment.experiment_id])
    seeds = {run.data.tags["progrpo.seed"]: run.info.run_id for run in runs}
    assert sorted(run.data.tags["progrpo.seed"] for run in runs) == ["0", "1"]
    for number in range(4):
        expected = [(step, float(step)) for step in range(200)]
        assert history(client, seeds[str(number % 2)], f"process{number}") == expected
