"""The gate's candidate in a real MLflow registry on sqlite, read back with mlflow's own client."""

import json

import pytest

from progrpo.comparison.result import GateResult
from progrpo.errors import ConfigError
from progrpo.manifest import read_manifest, write_manifest
from progrpo_components.errors import PromotionError
from progrpo_components.promotion import finish, register_candidate
from progrpo_components.tracking import connect, locate


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return tmp_path_factory.mktemp("store") / "mlflow.db"


@pytest.fixture(scope="module")
def client(database):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{database}", registry_uri=f"sqlite:///{database}")


@pytest.fixture
def summary(monkeypatch, database):
    """The place of the summary run of the candidate's training."""
    monkeypatch.delenv("PROGRPO_TRACKING", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    return locate(experiment="unit", pipeline_run_id="p", task="promote", arm="progrpo", seed=0, own=True)


@pytest.fixture
def training(tmp_path):
    """Return a function that makes a training run with a checkpoint of its own."""

    def make(name: str):
        directory = tmp_path / name
        (directory / "checkpoint").mkdir(parents=True)
        (directory / "checkpoint" / "config.json").write_text(json.dumps({"name": name}))
        write_manifest(directory / "checkpoint", "checkpoint")
        return directory

    return make


@pytest.fixture
def gate(request):
    """Return a function that makes the outcome of a gate for the checkpoint of a training run."""

    def make(outcome, training, **changes):
        values = {
            "candidate": "progrpo", "outcome": outcome, "reason": f"because it is {outcome}", "level": 0.95,
            "rules": (), "obstacles": (), "model": request.node.name[:60].replace("[", "-").replace("]", ""),
            "fail_on": ("reject", "not_resolved"), "seed": 0,
            "checkpoint_digest": read_manifest(training / "checkpoint", "checkpoint").digest,
        }  # fmt: skip
        return GateResult(**values | changes)

    return make


def aliases(client, model):
    return {alias: str(version) for alias, version in client.get_registered_model(model).aliases.items()}


def test_a_promoted_checkpoint_is_the_champion_with_its_reason(client, summary, training, gate):
    run = training("run")
    result = gate("promote", run)
    registration = register_candidate(summary, result, str(run), {"progrpo.pipeline_run_id": "p"})
    assert (registration.model, registration.version, registration.alias) == (result.model, "1", "champion")
    version = client.get_model_version_by_alias(result.model, "champion")
    assert version.description == "because it is promote"
    assert version.run_id == connect(summary)[1]
    assert version.tags == {
        "progrpo.gate": "promote", "progrpo.arm": "progrpo", "progrpo.seed": "0", "progrpo.pipeline_run_id": "p",
        "progrpo.checkpoint_digest": result.checkpoint_digest,
    }  # fmt: skip
    names = {file.path for file in client.list_artifacts(connect(summary)[1], "checkpoint")}
    assert names == {"checkpoint/config.json", "checkpoint/manifest.json"}
    assert version.source == f"{client.get_run(connect(summary)[1]).info.artifact_uri}/checkpoint"
    assert aliases(client, result.model) == {"champion": "1"}


def test_what_is_not_resolved_is_a_candidate_until_more_seeds_resolve_it(client, summary, training, gate):
    run = training("run")
    first = gate("not_resolved", run)
    assert register_candidate(summary, first, str(run), {}).alias == "candidate"
    assert aliases(client, first.model) == {"candidate": "1"}
    again = register_candidate(summary, gate("promote", run), str(run), {})
    assert (again.version, again.alias) == ("1", "champion")  # the same checkpoint, not a second version
    assert aliases(client, first.model) == {"champion": "1"}
    assert client.get_model_version(first.model, "1").tags["progrpo.gate"] == "promote"


def test_another_champion_takes_the_alias_over(client, summary, training, gate):
    old, new = training("old"), training("new")
    result = gate("promote", old)
    register_candidate(summary, result, str(old), {})
    assert register_candidate(summary, gate("promote", new), str(new), {}).version == "2"
    assert aliases(client, result.model) == {"champion": "2"}


def test_a_rejected_checkpoint_is_not_registered(client, summary, training, gate):
    from mlflow.exceptions import MlflowException

    run = training("run")
    result = gate("reject", run)
    assert register_candidate(summary, result, "", {}) is None
    with pytest.raises(MlflowException, match="not found"):
        client.get_registered_model(result.model)


def test_a_candidate_that_is_rejected_later_is_a_candidate_no_more(client, summary, training, gate):
    run = training("run")
    result = gate("not_resolved", run)
    register_candidate(summary, result, str(run), {})
    assert register_candidate(summary, gate("reject", run), str(run), {}) is None
    assert aliases(client, result.model) == {}
    version = client.get_model_version(result.model, "1")
    assert (version.tags["progrpo.gate"], version.description) == ("reject", "because it is reject")


def test_a_checkpoint_in_an_object_store_is_registered_where_it_lies(client, summary, training, gate):
    result = gate("promote", training("run"))
    registration = register_candidate(summary, result, "minio://mlpipeline/v2/artifacts/x/training", {})
    assert registration.source == "s3://mlpipeline/v2/artifacts/x/training/checkpoint"
    assert client.get_model_version(result.model, "1").source == registration.source


def test_another_checkpoint_than_judged_is_refused(summary, training, gate):
    judged, other = training("judged"), training("other")
    with pytest.raises(ConfigError, match=r"but the gate judged .* that was evaluated"):
        register_candidate(summary, gate("promote", judged), str(other), {})
    with pytest.raises(ConfigError, match="was not given to compare"):
        register_candidate(summary, gate("promote", judged), "", {})


def test_a_promotion_that_mlflow_does_not_take_fails(summary, training, gate, monkeypatch):
    run = training("run")
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
        with pytest.raises(PromotionError, match="promote, but MLflow cannot be used, so nothing is registered"):
            register_candidate(summary, gate("promote", run), str(run), {})
    refused = gate("promote", run, model="a/b")
    with pytest.raises(PromotionError, match="progrpo: promote, but MLflow did not take it as 'a/b': MlflowException"):
        register_candidate(summary, refused, str(run), {})


@pytest.mark.parametrize("outcome", ["promote", "reject", "not_resolved"])
@pytest.mark.parametrize("fail_on", [(), ("reject",), ("reject", "not_resolved")])
def test_the_step_fails_on_the_outcomes_that_it_is_told_to(training, gate, tmp_path, outcome, fail_on):
    comparison = tmp_path / "comparison"
    comparison.mkdir()
    write_manifest(comparison, "comparison")
    result = gate(outcome, training("run"), fail_on=fail_on)
    if outcome in fail_on:
        with pytest.raises(PromotionError, match=f"progrpo: {outcome.replace('_', ' ')}. because it is {outcome}. The"):
            finish(comparison, result, None, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    else:
        manifest = finish(comparison, result, None, tmp_path / "out")
        assert manifest.metadata == {"candidate": "progrpo", "outcome": outcome}
        assert read_manifest(tmp_path / "out", "promotion").inputs["comparison"]
        content = json.loads((tmp_path / "out" / "promotion.json").read_text())
        assert (content["gate"]["outcome"], content["registration"]) == (outcome, None)
