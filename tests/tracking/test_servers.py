"""Everything a step logs, on the kinds of servers that teams run."""

import json
from pathlib import Path

import pytest

from progrpo.comparison.result import GateResult
from progrpo.manifest import write_manifest
from progrpo_components.promotion import register_candidate
from progrpo_components.tracking import open_tracking
from progrpo_components.tracking.runs import new_client
from progrpo_components.tracking.sync import sync

from .conftest import history, place_of, runs_of


@pytest.fixture(params=["sqlite_server", "team_server"])
def server(request, use):
    tracked = request.getfixturevalue(request.param)
    use(tracked.uri, tracked.environment)
    return tracked


@pytest.mark.slow
@pytest.mark.usefixtures("_no_sender")
def test_everything_arrives(server, pipeline_run, tmp_path, request):
    data, output = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    (data / "train.parquet").write_text(pipeline_run)
    write_manifest(data, "dataset", metadata={"num_train": 4, "num_eval": 2, "tasks": ["countdown"]})
    for attempt in (1, 2):  # a retry changes nothing
        with open_tracking(place_of(pipeline_run, tags={"progrpo.algorithm": "grpo"}), output) as tracker:
            (output / "plots").mkdir(parents=True, exist_ok=True)
            (output / "plots" / "a.txt").write_text("plot")
            tracker.log_config("train", {f"p{number}": number for number in range(150)} | {"long": "x" * 10_000})
            tracker.log_dataset(data, contexts={"train": "training"})
            tracker.log(attempt, {"train/reward": attempt / 4})
            tracker.log(2, {"train/reward": 0.5})
            tracker.log_metrics({"eval/pass_at_8": 0.75})
            tracker.log_artifacts(output)
        assert [result.problem for result in sync(tmp_path)] == [None]
    client = new_client(server.uri)
    runs = runs_of(client, pipeline_run)
    assert sorted(runs) == sorted(["grpo-seed0", pipeline_run])
    run = client.get_run(runs["grpo-seed0"].info.run_id)
    assert history(client, run.info.run_id) == {"train/reward": [(1, 0.25), (2, 0.5)], "eval/pass_at_8": [(0, 0.75)]}
    assert len(run.data.params) == 151
    assert len(run.data.params["train.long"]) == 6000
    assert run.data.tags["progrpo.algorithm"] == "grpo"
    assert [item.dataset.name for item in run.inputs.dataset_inputs] == ["countdown-train"]
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    for name in ("plots/a.txt", "config/train.json"):
        (tmp_path / "down").mkdir(exist_ok=True)
        path = Path(client.download_artifacts(run.info.run_id, name, str(tmp_path / "down")))
        assert path.read_text() == "plot" if name.startswith("plots") else len(json.loads(path.read_text())) == 151
    if server.environment:  # in PostgreSQL and S3, and for nobody without a password
        postgres, store = request.getfixturevalue("postgres"), request.getfixturevalue("s3_server").client()
        assert postgres.query(f"SELECT count(*) FROM metrics WHERE run_uuid = '{run.info.run_id}'") == [(3,)]  # noqa: S608
        keys = [item["Key"] for item in store.list_objects_v2(Bucket="mlflow")["Contents"]]
        assert any(key.endswith(f"{run.info.run_id}/artifacts/plots/a.txt") for key in keys)


@pytest.mark.slow
@pytest.mark.usefixtures("_no_sender")
def test_a_wrong_password_leaves_everything_in_the_spool(team_server, use, pipeline_run, tmp_path, caplog):
    use(team_server.uri, {**team_server.environment, "MLFLOW_TRACKING_PASSWORD": "not-the-password"})
    with open_tracking(place_of(pipeline_run), tmp_path / "out") as tracker:
        tracker.log(1, {"train/reward": 0.5})
    (left,) = sync(tmp_path)
    assert left.problem is not None
    assert "not-the-password" not in left.problem + caplog.text
    use(team_server.uri, team_server.environment)
    assert [result.problem for result in sync(tmp_path)] == [None]


@pytest.mark.slow
@pytest.mark.usefixtures("fast_sender")
def test_variables_of_ours_come_before_those_of_a_platform(team_server, use, pipeline_run, monkeypatch, tmp_path):
    """As in the container of a step, whose sender is a process of its own."""
    elsewhere = {"MLFLOW_TRACKING_TOKEN": "the platform's", "MLFLOW_TRACKING_AUTH": "kubernetes"}
    use("http://127.0.0.1:1", {**elsewhere, "MLFLOW_TRACKING_USERNAME": "x", "MLFLOW_TRACKING_PASSWORD": "x"})
    for name, value in {"MLFLOW_TRACKING_URI": team_server.uri, **team_server.environment}.items():
        monkeypatch.setenv(f"PROGRPO_{name}", value)
    with open_tracking(place_of(pipeline_run), tmp_path / "out") as tracker:
        tracker.log(1, {"train/reward": 0.5})
    run = runs_of(new_client(team_server.uri), pipeline_run)["grpo-seed0"]
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"train/reward": 0.5})


@pytest.mark.slow
def test_a_candidate_is_registered_through_a_server(server, pipeline_run, tmp_path):
    """A server takes no version from a path of the client's: the checkpoint goes to the artifacts of its run."""
    checkpoint = tmp_path / "training" / "checkpoint"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    gate = GateResult(
        candidate="grpo", outcome="promote", reason="every rule holds", level=0.95, rules=(), obstacles=(),
        model=f"m-{pipeline_run}", fail_on=(), seed=0,
        checkpoint_digest=write_manifest(checkpoint, "checkpoint").digest,
    )  # fmt: skip
    for _ in range(2):  # a step that is tried again
        summary = place_of(pipeline_run, task="promote", own=True)
        registration = register_candidate(summary, gate, (tmp_path / "training").as_uri(), {})
    assert (registration.version, registration.alias) == ("1", "champion")
    client = new_client(server.uri)
    version = client.get_model_version_by_alias(gate.model, "champion")
    assert version.description == "every rule holds"
    assert client.get_run(version.run_id).data.tags["progrpo.arm"] == "grpo"
    (tmp_path / "down").mkdir()
    local = Path(client.download_artifacts(version.run_id, "checkpoint", str(tmp_path / "down")))
    assert (local / "config.json").read_text() == "{}"
