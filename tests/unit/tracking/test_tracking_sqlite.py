"""What steps log, delivered into a real sqlite store and read back with mlflow's own client."""

import json
from pathlib import Path

import pytest

from progrpo.manifest import write_manifest
from progrpo.metrics import EVAL_METRICS, TRAIN_METRICS
from progrpo_components.tracking import Tracker, locate, open_tracking, spool
from progrpo_components.tracking.sync import sync


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("store") / "nested" / "mlflow.db"


@pytest.fixture(scope="module")
def client(database):
    from mlflow import MlflowClient

    database.parent.mkdir()
    return MlflowClient(tracking_uri=f"sqlite:///{database}")


@pytest.fixture(autouse=True)
def _tracked(monkeypatch, database):
    monkeypatch.delenv("PROGRPO_TRACKING", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    monkeypatch.setattr(Tracker, "_start", lambda self: None)  # a sender for each would take seconds


@pytest.fixture
def summary_run(request, tmp_path):
    """Return a function that gives a tracker of one summary run of this test."""

    def open_one(arm: str | None = "grpo", seed: int | None = 0, **options) -> Tracker:
        options = {"experiment": "unit", "pipeline_run_id": request.node.name, "task": "train"} | options
        return open_tracking(locate(arm=arm, seed=seed, **options), tmp_path / "out")

    return open_one


@pytest.fixture
def deliver(tmp_path):
    """Return a function that delivers what was logged, and gives the runs' ids in the order of their opening."""

    def deliver_all() -> list[str]:
        results = list(sync(tmp_path))
        assert [result.problem for result in results] == [None] * len(results)
        assert list(tmp_path.rglob(spool.PATTERN)) == []
        return [result.run_id for result in results]

    return deliver_all


def history(client, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in client.get_metric_history(run_id, key))


def test_a_later_step_finds_the_run_of_an_earlier_one(client, summary_run, deliver):
    with summary_run(run_name="demo", tags={"progrpo.algorithm": "grpo"}) as train:
        train.log(1, {"train/reward": 0.25})
        train.log(2, {"train/reward": 0.5})
    with summary_run(run_name="demo", task="evaluate") as evaluate:
        evaluate.log_metrics({"eval/pass_at_8": 0.75})

    first, second = deliver()
    assert first == second
    run = client.get_run(first)
    assert run.info.run_name == "grpo-seed0"
    assert run.info.status == "FINISHED"
    tags = {"progrpo.run_name": "demo", "progrpo.arm": "grpo", "progrpo.seed": "0", "progrpo.algorithm": "grpo"}
    assert tags.items() <= run.data.tags.items()
    assert run.data.metrics["eval/pass_at_8"] == 0.75
    assert history(client, first, "train/reward") == [(1, 0.25), (2, 0.5)]


def test_arms_seeds_and_pipeline_runs_have_runs_of_their_own(summary_run, deliver):
    openings = [
        {"arm": "grpo", "seed": None},  # before the seeded ones: a missing tag must not match any seed
        {"arm": "grpo", "seed": 0},
        {"arm": "grpo", "seed": 1},
        {"arm": "progrpo", "seed": 0},
        {"arm": None, "seed": None},
        {"arm": "grpo", "seed": 0, "pipeline_run_id": "it's another"},
    ]
    for opening in openings * 2:
        summary_run(**opening).close()
    ids = deliver()
    assert len(set(ids)) == len(openings)
    assert ids[: len(openings)] == ids[len(openings) :]


def test_a_step_that_goes_on_from_a_resume_point_says_nothing_twice(client, summary_run, deliver):
    """The first attempt was killed after step 5 and logged it; the second goes on after step 3. Wall time differs."""
    first = summary_run()
    for step in range(1, 6):
        first.log(step, {"train/reward": step / 8, "train/step_s": 1.0})
    deliver_killed = list(sync(first._path.parent))
    assert deliver_killed[0].problem is None
    assert client.get_run(deliver_killed[0].run_id).info.status == "KILLED"
    first._path.unlink()
    with summary_run() as second:
        for step in range(4, 8):
            second.log(step, {"train/reward": step / 8, "train/step_s": 2.0})
    (run_id,) = deliver()
    assert run_id == deliver_killed[0].run_id
    assert history(client, run_id, "train/reward") == [(step, step / 8) for step in range(1, 8)]
    assert history(client, run_id, "train/step_s") == [(step, 1.0 if step < 6 else 2.0) for step in range(1, 8)]
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_hole_that_a_lost_spool_left_is_filled(client, summary_run, deliver):
    with summary_run() as first:
        for step in (1, 2, 6):
            first.log(step, {"train/reward": float(step)})
    deliver()
    with summary_run() as again:
        for step in range(1, 9):
            again.log(step, {"train/reward": float(step)})
    (run_id,) = deliver()
    assert history(client, run_id, "train/reward") == [(step, float(step)) for step in range(1, 9)]


def test_another_number_of_the_run_is_a_correction_and_the_same_is_not(client, summary_run, deliver):
    for value in (0.5, 0.5, 0.75):
        with summary_run() as tracker:
            tracker.log_metrics({"eval/pass_at_1": value})
        (run_id,) = deliver()
    assert history(client, run_id, "eval/pass_at_1") == [(0, 0.5), (0, 0.75)]
    assert client.get_run(run_id).data.metrics == {"eval/pass_at_1": 0.75}


def test_more_metrics_than_a_batch_holds_all_arrive(client, summary_run, deliver):
    with summary_run() as tracker:
        for step in range(1, 1202):
            tracker.log(step, {"train/reward": step / 2})
        tracker.log(1, {f"many/{number}": 1.0 for number in range(1500)})
    (run_id,) = deliver()
    assert history(client, run_id, "train/reward") == [(step, step / 2) for step in range(1, 1202)]
    assert len(client.get_run(run_id).data.metrics) == 1501


def test_mlflow_takes_every_name_of_ours(client, summary_run, deliver):
    names = [name.format(k=8) for name in (*TRAIN_METRICS, *EVAL_METRICS)]
    with summary_run() as tracker:
        tracker.log(1, dict.fromkeys(names, 1.0))
    (run_id,) = deliver()
    assert set(client.get_run(run_id).data.metrics) == set(names)


def test_params_are_flattened_batched_cut_off_and_whole_in_an_artifact(client, summary_run, deliver, tmp_path):
    many = {f"p{i}": i for i in range(250)}
    nested = {
        "loss": {"clip_high": 0.28, "normalize_std": True},
        "micro_batch_size": None,
        "ks": [1, 2],
        "text": "é" * 7000,
    }
    with summary_run() as tracker:
        tracker.log_params(many)
        tracker.log_config("train", nested)
    (run_id,) = deliver()
    params = client.get_run(run_id).data.params
    text = params.pop("train.text")
    assert text == "é" * 5997 + "..."
    assert params == {f"p{i}": str(i) for i in range(250)} | {
        "train.loss.clip_high": "0.28",
        "train.loss.normalize_std": "true",
        "train.ks": "[1, 2]",
    }
    whole = client.download_artifacts(run_id, "config/train.json", str(tmp_path))
    assert json.loads(Path(whole).read_text()) == nested


def test_of_a_hundred_params_one_that_changed_is_refused_alone(client, summary_run, deliver, caplog):
    with summary_run() as tracker:
        tracker.log_params({"p50": "a prompt nobody may read"})
    deliver()
    with summary_run() as tracker:
        tracker.log_params({f"p{i}": i for i in range(100)})
        tracker.log(1, {"train/reward": 1.0})
    (run_id,) = deliver()
    run = client.get_run(run_id)
    assert run.data.params == {f"p{i}": str(i) for i in range(100)} | {"p50": "a prompt nobody may read"}
    assert run.data.metrics == {"train/reward": 1.0}
    warnings = [record.getMessage() for record in caplog.records if record.name.endswith("delivery")]
    assert warnings == [f"MLflow refused param p50 of run {run_id}: MlflowException: INVALID_PARAMETER_VALUE"]


@pytest.mark.parametrize("contexts", [{"train": "training", "eval": "evaluation"}, {"eval": "evaluation"}])
def test_the_dataset_is_named_by_its_digest(client, summary_run, deliver, tmp_path, contexts):
    data = tmp_path / "data"
    data.mkdir()
    # MLflow keeps one entry a digest, with its first source.
    (data / "train.parquet").write_text(f"rows of {contexts}")
    manifest = write_manifest(data, "dataset", metadata={"num_train": 64, "num_eval": 16, "tasks": ["countdown"]})
    with summary_run() as tracker:
        tracker.log_dataset(data, contexts=contexts)
    (run_id,) = deliver()
    run = client.get_run(run_id)
    inputs = {item.tags[0].value: item.dataset for item in run.inputs.dataset_inputs}
    assert set(inputs) == set(contexts.values())
    assert inputs["evaluation"].name == "countdown-eval"
    assert inputs["evaluation"].digest == manifest.digest[:36]
    assert json.loads(inputs["evaluation"].profile) == {"num_rows": 16}
    assert json.loads(inputs["evaluation"].source) == {"uri": data.as_uri(), "digest": manifest.digest}
    assert run.data.tags["progrpo.dataset_digest"] == manifest.digest


def test_artifacts_lie_beside_the_database_also_after_the_output_has_moved(
    client, database, summary_run, deliver, tmp_path
):
    output = tmp_path / "out"
    (output / "plots").mkdir(parents=True)
    (output / "report.html").write_text("<p>report</p>")
    (output / "plots" / "a.txt").write_text("plot")
    (output / ".hidden").write_text("not for others")
    with summary_run() as tracker:
        tracker.log_artifacts(output)
        tracker.log_artifacts(output / "report.html", "single")
    output.rename(tmp_path / "moved")  # the spool lies in it: nothing was delivered
    (run_id,) = deliver()
    stored = database.parent / "mlartifacts" / run_id / "artifacts"
    files = {path.relative_to(stored).as_posix() for path in stored.rglob("*") if path.is_file()}
    assert files == {"report.html", "plots/a.txt", "single/report.html"}
    assert (stored / "plots" / "a.txt").read_text() == "plot"
    assert client.get_run(run_id).info.artifact_uri == stored.as_uri()


def test_a_store_that_takes_no_files_does_not_hold_the_numbers_up(client, summary_run, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(MlflowClient, "log_artifact", full)
    (tmp_path / "a.txt").write_text("a")
    with summary_run() as tracker:
        tracker.log_artifacts(tmp_path / "a.txt")
        tracker.log(1, {"train/reward": 1.0})
    (left,) = sync(tmp_path)
    assert "No space left" in left.problem
    run = client.get_run(left.run_id)
    assert (run.data.metrics, run.info.status) == ({"train/reward": 1.0}, "FINISHED")
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("bad"), "FAILED"), (SystemExit(143), "KILLED"), (KeyboardInterrupt(), "KILLED")]
)
def test_an_exception_ends_the_run_and_is_passed_on(client, summary_run, deliver, error, status):
    with pytest.raises(type(error)), summary_run() as tracker:  # noqa: PT012
        tracker.log(1, {"train/reward": 1.0})
        raise error
    (run_id,) = deliver()
    run = client.get_run(run_id)
    assert run.info.status == status
    assert run.data.metrics == {"train/reward": 1.0}


def test_the_runs_of_a_pipeline_run_are_one_of_its_own_and_flat_summaries(client, summary_run, deliver, request):
    summary_run("grpo").close()
    summary_run("progrpo").close()
    summary_run(None, None, task="compare").close()
    deliver()
    experiment = client.get_experiment_by_name("unit")
    own = f"tags.`progrpo.pipeline_run_id` = '{request.node.name}'"
    runs = client.search_runs([experiment.experiment_id], own)
    roles = {run.info.run_name: run.data.tags["progrpo.role"] for run in runs}
    assert roles == {"grpo-seed0": "summary", "progrpo-seed0": "summary", request.node.name: "pipeline"}
    assert not any("mlflow.parentRunId" in run.data.tags for run in runs)


def test_a_deleted_experiment_is_a_problem_that_says_what_to_do(client, summary_run, tmp_path):
    client.delete_experiment(client.create_experiment("gone"))
    summary_run(experiment="gone").close()
    (left,) = sync(tmp_path)
    assert "experiment 'gone' was deleted. Restore it" in left.problem


def test_a_file_that_is_no_database_is_a_problem(summary_run, monkeypatch, tmp_path):
    path = tmp_path / "mlflow.db"
    path.write_text("not a database, but a text that is long enough to be taken for a header" * 50)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    summary_run().close()
    (left,) = sync(tmp_path)
    assert "DatabaseError" in left.problem
    assert left.path.is_file()
