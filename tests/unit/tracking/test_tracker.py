"""What a step says and what of it reaches the spool, without MLflow."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from progrpo.config import ARM_NAME
from progrpo.metrics import EVAL_METRICS, HELDOUT_METRICS, TRAIN_METRICS, TRAIN_WALL_TIME
from progrpo.redaction import redact
from progrpo_components.tracking import Tracker, is_legal_name, is_off, locate, open_tracking, spool

PLACE = {"experiment": "e", "pipeline_run_id": "p", "task": "train", "arm": "grpo", "seed": 0}
NAMES = [*TRAIN_METRICS, *HELDOUT_METRICS, *EVAL_METRICS, TRAIN_WALL_TIME]


@pytest.fixture(autouse=True)
def _no_sender(monkeypatch):
    for name in ("PROGRPO_TRACKING", "PROGRPO_PIPELINE_RUN_ID", "MLFLOW_RUN_ID", "KFP_MLFLOW_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Tracker, "_start", lambda self: None)


@pytest.fixture
def tracker(tmp_path):
    return open_tracking(locate(**PLACE), tmp_path / "out")


def lines(directory: Path) -> list[dict]:
    (path,) = directory.rglob(spool.PATTERN)
    return [line for line, _ in spool.read(path)][1:]


def mlflow_takes(name: str) -> bool:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_metric_name

    try:
        _validate_metric_name(name)
    except MlflowException:
        return False
    return len(name) <= 250


@settings(deadline=None)  # the first name imports mlflow
@given(st.one_of(st.text(max_size=260), st.from_regex(r"[\w/. :@\\-]{1,40}", fullmatch=True)))
def test_a_name_is_legal_only_if_mlflow_takes_it(name):
    assert not is_legal_name(name) or mlflow_takes(name)


@settings(deadline=None)  # the first name imports mlflow
@given(st.sampled_from(NAMES), st.integers(1, 10**6))
def test_every_name_of_the_registry_is_legal(name, k):
    assert is_legal_name(name.format(k=k))
    assert mlflow_takes(name.format(k=k))


@settings(deadline=None)  # the first name imports mlflow
@given(st.from_regex(ARM_NAME, fullmatch=True), st.sampled_from(sorted(EVAL_METRICS)), st.integers(1, 10**6))
def test_the_headline_of_every_arm_that_may_exist_has_legal_names(arm, metric, k):
    for end in ("", "_difference", "_difference_low"):
        name = f"compare/{arm}/{metric.removeprefix('eval/').format(k=k)}{end}"
        assert is_legal_name(name)
        assert mlflow_takes(name)


@settings(deadline=None)  # the first name imports mlflow
@given(st.dictionaries(st.text(max_size=20), st.floats(), max_size=4))
def test_nothing_that_mlflow_refuses_reaches_the_spool(metrics):
    kept = Tracker()._loggable(metrics)
    assert all(mlflow_takes(key) and math.isfinite(value) for key, value in kept.items())
    assert {key for key, value in metrics.items() if mlflow_takes(key) and math.isfinite(value)} >= set(kept)


@pytest.mark.parametrize("name", ["eval/pass@8", "../up", "/root", "a//b", "", "x" * 251])
def test_a_name_mlflow_refuses_does_not_cost_the_others(tracker, tmp_path, caplog, name):
    tracker.log(1, {name: 1.0, "train/reward": 0.5})
    tracker.log(2, {name: 1.0})
    assert [line["metrics"] for line in lines(tmp_path)] == [{"train/reward": 0.5}]
    assert [record.getMessage().count("not a name that it takes") for record in caplog.records] == [1]


def test_non_finite_values_are_left_out_and_said_once(tracker, tmp_path, caplog):
    for step, loss in enumerate((0.5, float("nan"), float("inf"), 0.25)):
        tracker.log(step, {"train/loss": loss, "train/reward": 1.0})
    assert [line["metrics"].get("train/loss") for line in lines(tmp_path)] == [0.5, None, None, 0.25]
    assert all(line["metrics"]["train/reward"] == 1.0 for line in lines(tmp_path))
    assert len(caplog.records) == 1


def test_tracking_off_writes_nothing_and_never_imports_mlflow(tmp_path):
    code = f"""
import sys
from pathlib import Path
from progrpo_components.tracking import locate, open_tracking
with open_tracking(locate(**{PLACE}), Path({str(tmp_path)!r}) / "out") as tracker:
    tracker.log(1, {{"train/reward": 1.0}})
    tracker.log_params({{"a": 1}})
    tracker.log_dataset(Path("absent"), contexts={{}})
    tracker.log_artifacts(Path("absent"))
assert tracker.run_id is None
assert "mlflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PROGRPO_TRACKING": "off"})
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_logs_never_imports_mlflow(tmp_path):
    code = f"""
import sys
from pathlib import Path
from progrpo.redaction import redact
from progrpo_components.tracking import Tracker, locate, open_tracking
Tracker.sender_command = ["true"]
with open_tracking(locate(**{PLACE}), Path({str(tmp_path)!r}) / "out") as tracker:
    tracker.log(1, {{"train/reward": 1.0}})
assert "mlflow" not in sys.modules
"""
    environment = {name: value for name, value in os.environ.items() if name != "PROGRPO_TRACKING"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_a_disk_that_is_full_costs_a_warning(tracker, tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        tracker.log(1, {"train/reward": 1.0})
        tracker.log(2, {"train/reward": 1.0})
    tracker.log(3, {"train/reward": 1.0})
    assert [line["step"] for line in lines(tmp_path)] == [3]
    assert len(caplog.records) == 1
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        assert open_tracking(locate(**PLACE), tmp_path / "other").run_id is None


def test_a_line_that_was_cut_off_costs_only_itself(tracker, tmp_path):
    tracker.log(1, {"train/reward": 1.0})
    with tracker._path.open("ab") as file:
        file.write(b'{"metrics": {"train/rew')
    tracker.log(2, {"train/reward": 2.0})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]
    with tracker._path.open("ab") as file:
        file.write(b'{"metrics": {"train/reward": 3.0}, "st')  # as a kill leaves it
    assert spool.read_state(tracker._path).pending == 2


def test_what_is_left_stays_with_the_output_and_is_named(tmp_path, caplog):
    output = tmp_path / "out"
    with open_tracking(locate(**PLACE), output) as tracker:
        output.mkdir()
        tracker.log(1, {"train/reward": 1.0})
    (path,) = tmp_path.rglob(spool.PATTERN)
    assert path.parent == output
    assert f"It is in {path}; progrpo track sync delivers it" in caplog.text
    state = spool.read_state(path)
    assert (state.pending, state.ended, state.run_id) == (2, True, None)


def test_no_password_reaches_the_spool(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ana:p%40ss-word@mlflow.example:5000/team")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "p@ss-word-2")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    tracker = open_tracking(locate(**PLACE), tmp_path / "out")
    text = tracker._path.read_text()
    assert json.loads(text.strip())["place"]["uri"] == "https://mlflow.example:5000/team"
    assert not any(secret in text for secret in ("ss-word", "t0ken", "ana"))


def test_the_environment_names_where_a_run_comes_from(monkeypatch):
    monkeypatch.setenv("KF_PIPELINES_UI_ENDPOINT", "https://kubeflow.example/pipeline/")
    monkeypatch.setenv("PROGRPO_PIPELINE", "compare")
    monkeypatch.setenv("PROGRPO_GIT_COMMIT", "1045b44")
    monkeypatch.setenv("PROGRPO_IMAGE", "registry.example/progrpo-gpu@sha256:0")
    place = locate(**PLACE, run_name="nightly", tags={"progrpo.algorithm": "grpo"})
    assert place.all_tags == {
        "progrpo.run_name": "nightly",
        "progrpo.pipeline": "compare",
        "progrpo.image": "registry.example/progrpo-gpu@sha256:0",
        "progrpo.run_url": "https://kubeflow.example/pipeline/#/runs/details/p",
        "mlflow.source.git.commit": "1045b44",
        "progrpo.algorithm": "grpo",
        "progrpo.pipeline_run_id": "p",
        "progrpo.role": "summary",
        "progrpo.arm": "grpo",
        "progrpo.seed": "0",
        "mlflow.runColor": "#0072b2",
    }


def test_the_tasks_of_progrpo_run_do_not_all_log_into_one_run_of_the_shell(monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "of the shell")
    assert locate(**PLACE).run_id == "of the shell"
    monkeypatch.setenv("PROGRPO_PIPELINE_RUN_ID", "demo-1")
    assert locate(**PLACE).run_id is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot reach https://ana:s3cret@mlflow/x", "cannot reach https://***@mlflow/x"),
        ("postgresql+psycopg://ana:s3/cret@db", "postgresql+psycopg://***@db"),
    ],
)
def test_passwords_in_messages(text, shown):
    assert redact(text) == shown


def test_a_pod_without_a_server_tracks_nothing(monkeypatch):
    """A database beside the step would die with the pod."""
    for name in ("PROGRPO_TRACKING", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "KFP_MLFLOW_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    assert not is_off()
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert is_off()
    config = {"parentRunId": "r", "experimentId": "1", "endpoint": "http://mlflow:5000"}
    monkeypatch.setenv("KFP_MLFLOW_CONFIG", json.dumps(config))
    assert not is_off()
    monkeypatch.delenv("KFP_MLFLOW_CONFIG")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert not is_off()
