"""A training run whose tracking server fails many times: it has all the numbers in the end, and each once."""

import math

import pytest

from fault_proxy import FAULTS, running_proxy
from progrpo.metrics import read_jsonl
from progrpo_components import steps
from progrpo_components.steps import Tracking
from progrpo_components.tracking.sync import sync
from repetitions import repetitions

from .conftest import PREFIX, history, runs_of, spools

TRAIN = {"steps": 40, "prompts_per_step": 2, "group_size": 4, "max_completion_tokens": 8, "device": "cpu"}
ARM = {"name": "progrpo", "algorithm": {"type": "progrpo"}}


@pytest.mark.slow
@pytest.mark.usefixtures("fast_sender")
def test_many_faults_in_one_training_run(
    sqlite_server, use, pipeline_run, monkeypatch, tmp_path, tiny_dataset, embedded_checkpoint
):
    from mlflow import MlflowClient

    faults = repetitions("faults of a tracking server")
    with running_proxy(sqlite_server.port) as proxy:
        use(f"{proxy.uri}{PREFIX}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
        proxy.inject(faults)
        tracking = Tracking(experiment="tracking", run_id=pipeline_run, run_name="faulty")
        output = tmp_path / "training"
        inputs = {"dataset": tiny_dataset, "checkpoint": embedded_checkpoint, "output": output}
        steps.train({"arm": ARM, "seed": 0}, TRAIN, **inputs, tracking=tracking)
        # What is left, if the faults outlasted the training, arrives now, and a second time nothing does.
        for _ in range(10):
            if not spools(tmp_path):
                break
            list(sync(tmp_path))
    assert not spools(tmp_path)
    assert sum(proxy.injected.values()) == faults
    assert set(proxy.injected) == set(FAULTS)
    assert min(proxy.injected.values()) >= faults // 25

    client = MlflowClient(tracking_uri=sqlite_server.uri)
    runs = runs_of(client, pipeline_run)
    assert sorted(runs) == ["faulty", "progrpo-seed0"]
    summary = runs["progrpo-seed0"]
    assert summary.info.status == "FINISHED"
    expected: dict[str, list[tuple[int, float]]] = {}
    for row in read_jsonl(output / "metrics.jsonl"):
        for key, value in row.items():
            if key != "step" and math.isfinite(value):
                expected.setdefault(key, []).append((row["step"], value))
    arrived = history(client, summary.info.run_id)
    assert arrived.pop("train/wall_time_s")
    arrived = {key: points for key, points in arrived.items() if not key.startswith("system/")}
    assert len(expected["train/reward"]) == 40
    assert arrived == expected  # all of them, and none twice
    assert summary.data.params["train.steps"] == "40"
    assert len(summary.inputs.dataset_inputs) == 2
