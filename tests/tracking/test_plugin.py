"""Under the variables that Kubeflow's MLflow plugin sets: attached to its runs, and no run of ours beside them."""

import json
import os
import uuid

import pytest

from progrpo_components.tracking import close_runs, open_tracking, runs_of_pipeline
from progrpo_components.tracking.runs import new_client
from progrpo_components.tracking.sync import sync

from .conftest import history, place_of, runs_of


@pytest.fixture
def kfp_runs(sqlite_server, use, pipeline_run, monkeypatch):
    """What the plugin makes: (client, its run of the pipeline, its nested run of the task)."""
    from mlflow import MlflowClient

    use(sqlite_server.uri)
    client = MlflowClient(tracking_uri=sqlite_server.uri)
    experiment_id = client.create_experiment(f"kfp-{pipeline_run}")
    parent = client.create_run(experiment_id, run_name="kfp run").info.run_id
    task = client.create_run(experiment_id, run_name="train", tags={"mlflow.parentRunId": parent}).info.run_id
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment_id)
    return client, parent, task


def all_runs(client, pipeline_run):
    experiment = client.get_experiment_by_name(f"kfp-{pipeline_run}")
    return {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}


@pytest.mark.usefixtures("_no_sender")
def test_a_task_logs_into_the_run_that_the_plugin_made_for_it(kfp_runs, pipeline_run, monkeypatch, tmp_path):
    client, parent, task = kfp_runs
    monkeypatch.setenv("MLFLOW_RUN_ID", task)
    with open_tracking(place_of(pipeline_run, tags={"progrpo.algorithm": "grpo"}), tmp_path / "out") as tracker:
        tracker.log(1, {"train/reward": 0.5})
        tracker.log_params({"alpha": 0.3})
    assert [result.problem for result in sync(tmp_path)] == [None]
    assert set(all_runs(client, pipeline_run)) == {parent, task}  # no sibling, in this experiment or in ours
    assert client.get_experiment_by_name("tracking") is None or runs_of(client, pipeline_run) == {}
    run = client.get_run(task)
    assert history(client, task) == {"train/reward": [(1, 0.5)]}
    assert run.data.params == {"alpha": "0.3"}
    assert run.data.tags["progrpo.algorithm"] == "grpo"
    assert run.data.tags["progrpo.seed"] == "0"
    assert run.info.status == "RUNNING"  # the plugin ends what it made
    found = runs_of_pipeline(experiment=f"kfp-{pipeline_run}", pipeline_run_id=pipeline_run)
    assert close_runs(found, "failed") == []


@pytest.mark.usefixtures("_no_sender")
def test_a_run_that_is_handed_out_wins_over_a_server_of_ours(kfp_runs, pipeline_run, monkeypatch, tmp_path):
    client, _, task = kfp_runs
    monkeypatch.setenv("MLFLOW_RUN_ID", task)
    monkeypatch.setenv("PROGRPO_MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("PROGRPO_MLFLOW_TRACKING_TOKEN", "of ours")
    with open_tracking(place_of(pipeline_run), tmp_path / "out") as tracker:
        tracker.log(1, {"train/reward": 0.5})
    assert [result.problem for result in sync(tmp_path)] == [None]
    assert history(client, task) == {"train/reward": [(1, 0.5)]}
    assert "MLFLOW_TRACKING_TOKEN" not in os.environ


def config_of(endpoint, parent, experiment_id, **others):
    """KFP_MLFLOW_CONFIG as the API server of 2.17.0 writes it: MLflowRuntimeConfig, empty fields left out."""
    first = {"endpoint": endpoint, "parentRunId": parent, "experimentId": experiment_id, "authType": "none"}
    return json.dumps({**first, "timeout": "30s", **others}, separators=(",", ":"))


@pytest.fixture
def on(kfp_runs, sqlite_server, monkeypatch):
    """The plugin on and nothing handed out: (client, its run of the pipeline, its nested run of the task)."""
    client, parent, task = kfp_runs
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    experiment_id = client.get_run(parent).info.experiment_id
    monkeypatch.setenv("KFP_MLFLOW_CONFIG", config_of(sqlite_server.uri, parent, experiment_id))
    return client, parent, task


@pytest.mark.usefixtures("_no_sender")
def test_with_nothing_handed_out_the_summary_runs_are_beside_the_plugins(on, pipeline_run, tmp_path):
    client, parent, task = on
    for _ in range(2):  # a retry
        with open_tracking(place_of(pipeline_run), tmp_path / "out") as tracker:
            tracker.log(1, {"train/reward": 0.5})
        assert [result.problem for result in sync(tmp_path)] == [None]
    (ours,) = set(all_runs(client, pipeline_run)) - {parent, task}
    run = client.get_run(ours)
    assert "mlflow.parentRunId" not in run.data.tags, "flat, to be laid beside those of other arms"
    assert (run.info.run_name, run.info.status) == ("grpo-seed0", "FINISHED")
    assert history(client, ours) == {"train/reward": [(1, 0.5)]}
    assert client.get_experiment_by_name("tracking") is None or runs_of(client, pipeline_run) == {}


@pytest.mark.usefixtures("_no_sender")
def test_with_nothing_handed_out_the_run_of_the_pipeline_is_the_plugins(on, pipeline_run, tmp_path):
    client, parent, task = on
    compare = place_of(pipeline_run, None, None, task="compare")
    summary = compare.summary_of("grpo", 0, {}).model_dump(mode="json")
    with open_tracking(compare, tmp_path / "out") as tracker:
        tracker.log_metrics({"compare/grpo/pass_at_1": 0.5})
        tracker.log_summaries(
            [{"place": summary, "params": {}, "lines": [{"numbers": {"eval/entropy": 1.0}, "time": 1}]}]
        )
    assert [result.problem for result in sync(tmp_path)] == [None]
    runs = all_runs(client, pipeline_run)
    assert {run.info.run_name for run_id, run in runs.items() if run_id not in (parent, task)} == {"grpo-seed0"}
    run = runs[parent]
    assert (run.info.run_name, run.info.status) == ("kfp run", "RUNNING")  # the plugin ends what it made
    assert run.data.metrics == {"compare/grpo/pass_at_1": 0.5}
    assert run.data.tags["progrpo.pipeline_run_id"] == pipeline_run
    assert close_runs(runs_of_pipeline(experiment="tracking", pipeline_run_id=pipeline_run), "failed") == []
    assert client.get_run(parent).info.status == "RUNNING"


@pytest.mark.usefixtures("_no_sender")
def test_on_a_server_without_the_plugins_runs_all_are_ours(on, pipeline_run, monkeypatch, tmp_path):
    """The team's server need not be the one of Kubeflow."""
    client, _, _ = on
    monkeypatch.setenv("KFP_MLFLOW_CONFIG", config_of("http://mlflow.kubeflow:5000", uuid.uuid4().hex, "77"))
    for place in (place_of(pipeline_run), place_of(pipeline_run, None, None, task="compare")):
        with open_tracking(place, tmp_path / place.task) as tracker:
            tracker.log_metrics({"eval/entropy": 1.0})
    assert [result.problem for result in sync(tmp_path)] == [None, None]
    runs = runs_of(client, pipeline_run)
    assert {name: run.info.status for name, run in runs.items()} == {
        "grpo-seed0": "FINISHED",
        pipeline_run: "FINISHED",
    }
    assert close_runs(runs_of_pipeline(experiment="tracking", pipeline_run_id=pipeline_run), "succeeded") == []


@pytest.mark.usefixtures("_no_sender")
def test_the_comparison_makes_the_flat_summary_runs(kfp_runs, pipeline_run, monkeypatch, tmp_path):
    """Nested runs cannot be laid side by side, so there is one flat run for each (arm, seed) in the same experiment."""
    client, parent, task = kfp_runs
    monkeypatch.setenv("MLFLOW_RUN_ID", task)
    compare = place_of(pipeline_run, None, None, task="compare")
    lines = [{"metrics": {"train/reward": step / 4}, "step": step, "time": 1} for step in (1, 2)]
    lines.append({"numbers": {"eval/pass_at_8": 0.75}, "time": 1})
    summaries = [
        {
            "place": compare.summary_of(arm, 0, {"progrpo.algorithm": arm}).model_dump(mode="json"),
            "params": {f"p{number}": "x" for number in range(150)},
            "lines": lines,
        }
        for arm in ("grpo", "progrpo")
    ]
    for _ in range(2):
        with open_tracking(compare, tmp_path / "out") as tracker:
            tracker.log_summaries(summaries)
        assert [result.problem for result in sync(tmp_path)] == [None]
    runs = all_runs(client, pipeline_run)
    flat = {run.info.run_name: run for run_id, run in runs.items() if run_id not in (parent, task)}
    assert sorted(flat) == ["grpo-seed0", "progrpo-seed0"]
    for name, run in flat.items():
        assert "mlflow.parentRunId" not in run.data.tags
        assert run.data.tags["progrpo.algorithm"] == name.removesuffix("-seed0")
        assert len(run.data.params) == 150
        assert history(client, run.info.run_id) == {
            "train/reward": [(1, 0.25), (2, 0.5)],
            "eval/pass_at_8": [(0, 0.75)],
        }
        assert run.info.status == "FINISHED"


@pytest.mark.parametrize("raw", ["", "{", "[]", "null", '"text"', "{}", '{"parentRunId": 3}', '{"parentRunId": "a"}'])
def test_a_plugin_that_changed_is_as_none(use, monkeypatch, raw):
    use("http://127.0.0.1:1")
    monkeypatch.setenv("KFP_MLFLOW_CONFIG", raw)
    place = place_of("p")
    assert (place.role, place.parent_id, place.run_id) == ("summary", None, None)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"authType": "none"}, {}),
        ({"authType": "kubernetes"}, {"MLFLOW_TRACKING_AUTH": "kubernetes"}),
        (
            {"authType": "kubernetes", "workspacesEnabled": True, "workspace": "team-a"},
            {"MLFLOW_TRACKING_AUTH": "kubernetes-namespaced", "MLFLOW_WORKSPACE": "team-a"},
        ),
        ({"authType": "bearer", "insecureSkipVerify": True}, {"MLFLOW_TRACKING_INSECURE_TLS": "true"}),
    ],
)
def test_the_plugins_server_is_used_where_no_other_is_set(use, monkeypatch, config, expected):
    use("")
    for name in ("MLFLOW_TRACKING_AUTH", "MLFLOW_WORKSPACE", "MLFLOW_TRACKING_INSECURE_TLS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)  # and so it is gone again after the test
    monkeypatch.setenv("KFP_MLFLOW_CONFIG", config_of("https://u:p@mlflow.example", "a", "1", **config))
    place = place_of("p")
    assert (place.uri, place.parent_id, place.experiment_id) == ("https://mlflow.example", "a", "1")
    assert os.environ["MLFLOW_TRACKING_URI"] == "https://u:p@mlflow.example"
    assert {name: os.environ[name] for name in expected} == expected


def test_what_a_pipeline_run_left_open_is_ended(sqlite_server, use, pipeline_run):
    from progrpo_components.tracking import connect

    use(sqlite_server.uri)
    _, killed = connect(place_of(pipeline_run, seed=1))
    _, done = connect(place_of(pipeline_run, seed=2))
    client = new_client(sqlite_server.uri)
    client.set_terminated(done, "FINISHED")
    _, other = connect(place_of("another"))
    pipeline = runs_of(client, pipeline_run)[pipeline_run].info.run_id
    ended = close_runs(runs_of_pipeline(experiment="tracking", pipeline_run_id=pipeline_run), "failed")
    assert sorted(ended) == sorted([killed, pipeline])
    status = {run_id: client.get_run(run_id).info.status for run_id in (killed, done, pipeline, other)}
    assert status == {killed: "FAILED", done: "FINISHED", pipeline: "FAILED", other: "RUNNING"}
    assert close_runs(runs_of_pipeline(experiment="tracking", pipeline_run_id=pipeline_run), "failed") == []
    assert runs_of_pipeline(experiment="no such", pipeline_run_id="p") == []


def test_the_end_of_a_pipeline_never_fails_for_its_tracking(use, tmp_path, caplog):
    use("http://ana:s3cret@127.0.0.1:1")
    assert runs_of_pipeline(experiment="e", pipeline_run_id="p") == []
    assert "may show ended runs as running" in caplog.text
    assert "s3cret" not in caplog.text
    use(f"sqlite:///{tmp_path}/none.db")
    assert runs_of_pipeline(experiment="e", pipeline_run_id="p") == []
    assert not (tmp_path / "none.db").exists()
