"""What MLflow is given to read besides numbers, and the comparison made of it again."""

import json
import shutil
from pathlib import Path

import mlflow
import pytest

from progrpo.comparison.result import read_comparison
from progrpo.config import CompareConfig, EvaluateConfig
from progrpo.errors import ComparisonError, ConfigError
from progrpo.metrics import PASS_AT_CURVE
from progrpo_components import compare_runs, steps
from progrpo_components.steps import Tracking
from progrpo_components.tracking import lineage

TRAIN = {"steps": 2, "prompts_per_step": 4, "group_size": 4, "max_prompt_tokens": 64, "max_completion_tokens": 8}
TRAIN |= {"log_rollouts_every": 1, "device": "cpu"}
EVALUATION = {"num_samples": 4, "temperature": 1.0, "top_p": 1.0, "max_completion_tokens": 8}


@pytest.fixture(scope="module")
def client(tmp_path_factory, embedded_checkpoint, tiny_dataset):
    """A store with two pipeline runs: grpo and the start in one, progrpo and the start again in another."""
    from mlflow import MlflowClient

    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PROGRPO_TRACKING", raising=False)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
        for run_id, algorithm in (("monday", "grpo"), ("friday", "progrpo")):
            tracking = Tracking(experiment="lineage", run_id=run_id, run_name=run_id)
            inputs = {"dataset": tiny_dataset, "tracking": tracking}
            arm = {"name": algorithm, "algorithm": {"type": algorithm}}
            training = root / run_id / "training"
            start = {"checkpoint": embedded_checkpoint, "output": training}
            steps.train({"arm": arm, "seed": 0}, TRAIN, **inputs, **start)
            for model, name in ((embedded_checkpoint, "start"), (training, "trained")):
                steps.evaluate(EVALUATION, model=model, output=root / run_id / name, **inputs)
        yield MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")


def find(client, name: str, run_name: str):
    experiment = client.get_experiment_by_name("lineage")
    query = f"attributes.run_name = '{name}' and tags.`progrpo.run_name` = '{run_name}'"
    (run,) = client.search_runs([experiment.experiment_id], query)
    return run


def test_rollouts_are_a_table_and_traces(client, tmp_path):
    run = find(client, "progrpo-seed0", "friday")
    names = sorted(file.path for file in client.list_artifacts(run.info.run_id, "rollouts"))
    assert names == ["rollouts/step_00001.json", "rollouts/step_00002.json"]
    table = json.loads(Path(client.download_artifacts(run.info.run_id, names[0], str(tmp_path))).read_text())
    assert len(table["data"]) == 16
    assert {"prompt", "completion", "reward", "advantage"} <= set(table["columns"])
    traces = client.search_traces(locations=[run.info.experiment_id], run_id=run.info.run_id)
    assert len(traces) == 8
    spans = traces[0].data.spans
    assert len(spans) == 1 + TRAIN["group_size"]
    assert spans[0].inputs["prompt"]
    rewards = [span.attributes["reward"] for span in spans[1:]]
    assert spans[0].outputs["mean reward"] == pytest.approx(sum(rewards) / 4)
    assert traces[0].info.tags["progrpo.arm"] == "progrpo"


def test_the_model_has_a_signature_a_card_and_the_measured_metrics(client):
    from mlflow.models import Model

    run = find(client, "progrpo-seed0", "friday")
    (model,) = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    assert model.name == "progrpo-seed0"
    assert model.status == "READY"
    assert model.params["arm.algorithm.type"] == "progrpo"
    measured = {metric.key: metric for metric in model.metrics}
    assert measured["eval/pass_at_1"].value == run.data.metrics["eval/pass_at_1"]
    assert measured["eval/pass_at_1"].dataset_name == "countdown-eval"
    store = Path(model.artifact_location.removeprefix("file://"))
    assert Model.load(str(store / "MLmodel")).signature.inputs.input_names()[0] == "messages"
    card = (store / "README.md").read_text()
    assert card.startswith("# progrpo seed 0\n")
    assert model.tags[lineage.CHECKPOINT_TAG] in card
    assert run.outputs.model_outputs[0].model_id == model.model_id


def test_pass_at_k_is_a_curve_over_k(client):
    run = find(client, "progrpo-seed0", "friday")
    history = client.get_metric_history(run.info.run_id, PASS_AT_CURVE)
    assert [point.step for point in history] == [1, 2, 3, 4]
    assert history[0].value == run.data.metrics["eval/pass_at_1"]
    assert history[-1].value == run.data.metrics["eval/pass_at_4"]


def test_what_was_logged_is_not_logged_again(client, tmp_path):
    run = find(client, "grpo-seed0", "monday")
    experiment, run_id = run.info.experiment_id, run.info.run_id

    def count():
        traces = len(client.search_traces(locations=[experiment], run_id=run_id))
        models = len(client.search_logged_models([experiment], f"source_run_id = '{run_id}'"))
        table = json.loads(
            Path(client.download_artifacts(run_id, "rollouts/step_00001.json", str(tmp_path))).read_text()
        )
        return traces, models, len(table["data"])

    before = count()
    points = client.get_metric_history(run_id, "eval/pass_at_1")
    for _ in range(2):
        lineage.log_training(client, run_id, _training_of(client, "monday"))
        lineage.log_evaluation(client, run_id, _training_of(client, "monday").with_name("trained"))
    assert len(client.get_metric_history(run_id, "eval/pass_at_1")) == len(points) == 1
    assert count() == before == (8, 1, 16)


def _training_of(client, run_id: str) -> Path:
    return Path(client.tracking_uri.removeprefix("sqlite:///")).parent / run_id / "training"


def fetch_all(client, tmp_path):
    return [
        compare_runs.fetch(client, run_id, tmp_path) for run_id in sorted(compare_runs.find_runs(client, "lineage", ""))
    ]


def test_runs_of_two_pipeline_runs_are_compared_as_if_of_one(client, tmp_path):
    fetched = fetch_all(client, tmp_path / "fetched")
    assert len(fetched) == 4
    manifest = compare_runs.compare_fetched(CompareConfig(num_resamples=200), fetched, tmp_path / "out")
    assert manifest.metadata["arms"] == ["start", "grpo", "progrpo"]
    root = _training_of(client, "monday").parents[1]
    steps.compare(
        {"num_resamples": 200},
        evaluations=[root / "monday/start", root / "monday/trained", root / "friday/trained"],
        trainings=[root / "monday/training", root / "friday/training"],
        output=tmp_path / "direct",
    )
    mine, direct = read_comparison(tmp_path / "out"), read_comparison(tmp_path / "direct")
    assert mine.differences == direct.differences
    assert [arm.metrics for arm in mine.arms] == [arm.metrics for arm in direct.arms]


def test_another_protocol_is_refused_unless_told(client, tmp_path, embedded_checkpoint, tiny_dataset, monkeypatch):
    fetched = [each for each in fetch_all(client, tmp_path / "fetched") if each.name != "start"]
    hot = EvaluateConfig(**{**EVALUATION, "temperature": 0.5}).model_dump()
    other = tmp_path / "other"
    steps.evaluate(hot, dataset=tiny_dataset, model=_training_of(client, "friday"), output=other)
    mixed = [each for each in fetched if each.name.startswith("grpo")]
    mixed.append(compare_runs.Fetched("abc", "progrpo-seed0", other, None))
    config = CompareConfig(num_resamples=200)
    with pytest.raises(ComparisonError, match=r"different protocols:\n.*temperature"):
        compare_runs.compare_fetched(config, mixed, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    compare_runs.compare_fetched(config, mixed, tmp_path / "told", unlike=True)
    assert read_comparison(tmp_path / "told").protocol_differences


def test_two_runs_of_one_arm_need_another_name(client, tmp_path):
    fetched = fetch_all(client, tmp_path / "fetched")
    twin = next(each for each in fetched if each.name == "grpo-seed0")
    copy = tmp_path / "copy"
    shutil.copytree(twin.evaluation, copy)
    again = compare_runs.Fetched("twin", "grpo-seed0", copy, None)
    config = CompareConfig(num_resamples=200)
    with pytest.raises(ComparisonError, match=r"--name twin=grpo\.2"):
        compare_runs.compare_fetched(config, [*fetched, again], tmp_path / "out")
    with pytest.raises(ConfigError, match="not a name of an arm"):
        compare_runs.compare_fetched(config, [*fetched, again], tmp_path / "out", names={"twin": "start"})
    manifest = compare_runs.compare_fetched(config, [*fetched, again], tmp_path / "out", names={"twin": "grpo.2"})
    assert manifest.metadata["arms"] == ["start", "grpo", "grpo.2", "progrpo"]


def test_what_is_no_evaluation_is_refused(client, tmp_path):
    with pytest.raises(ConfigError, match="MLflow has no run 'missing'"):
        compare_runs.fetch(client, "missing", tmp_path)
    with pytest.raises(ConfigError, match=r"There are: .*lineage"):
        compare_runs.find_runs(client, "linaege", "")
    with pytest.raises(ConfigError, match="An example"):
        compare_runs.find_runs(client, "lineage", "not a query")
    experiment = client.get_experiment_by_name("lineage").experiment_id
    empty = client.create_run(experiment, run_name="empty").info.run_id
    with pytest.raises(ComparisonError, match="so no evaluation ended in it"):
        compare_runs.fetch(client, empty, tmp_path)
    client.delete_run(empty)


def test_a_model_that_was_left_in_the_middle_is_finished(client, monkeypatch):
    run = find(client, "grpo-seed0", "monday")
    experiment = run.info.experiment_id
    twin = client.create_run(experiment, tags={"progrpo.arm": "grpo", "progrpo.seed": "0"}).info.run_id
    training = _training_of(client, "monday")
    with monkeypatch.context() as patch:
        patch.setattr(client, "log_model_artifacts", _full)
        with pytest.raises(OSError, match="full"):
            lineage.log_training(client, twin, training)
    lineage.log_training(client, twin, training)
    (model,) = client.search_logged_models([experiment], f"source_run_id = '{twin}'")
    assert model.status == "READY"
    assert (Path(model.artifact_location.removeprefix("file://")) / "README.md").is_file()
    client.delete_run(twin)


def _full(*args):
    raise OSError("the disk is full")


def test_traces_are_sent_even_if_what_comes_after_them_fails(monkeypatch):
    flushed = []
    monkeypatch.setattr(mlflow, "flush_trace_async_logging", lambda: flushed.append(mlflow.get_tracking_uri()))
    before = mlflow.get_tracking_uri()
    with pytest.raises(OSError, match="the model"), lineage._tracing("http://127.0.0.1:9"):
        raise OSError("the model")
    assert flushed == ["http://127.0.0.1:9"]
    assert mlflow.get_tracking_uri() == before
