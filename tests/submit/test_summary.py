"""What a GitHub job shows of a run: verdict, tasks, links, and the comparison table out of the object store."""

import pytest

from kfp_recorder import Fault
from s3 import s3_server  # noqa: F401 - a fixture


@pytest.fixture
def summary(tmp_path, monkeypatch):
    path = tmp_path / "summary.md"
    path.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    return path


@pytest.fixture
def bucket(s3_server, monkeypatch):  # noqa: F811
    """A bucket, and the environment that leads to it."""
    for key, value in s3_server.environment.items():
        monkeypatch.setenv(key, value)
    client = s3_server.client()
    client.create_bucket(Bucket="artifacts")
    yield client
    for item in client.list_objects_v2(Bucket="artifacts").get("Contents", ()):
        client.delete_object(Bucket="artifacts", Key=item["Key"])
    client.delete_bucket(Bucket="artifacts")


def test_summary_is_appended(recorder, submit, summary):
    recorder.plugins_output = {
        "mlflow": {
            "entries": {"run_url": {"value": "https://mlflow.example.com/#/experiments/1", "render_type": "URL"}},
            "state": "PLUGIN_SUCCEEDED",
        }
    }
    assert submit().code == 0
    text = summary.read_text()
    assert text.startswith("before\n## ✅ evaluate: SUCCEEDED")
    (run_id,) = recorder.runs
    assert f"[Run]({recorder.url}/#/runs/details/{run_id})" in text
    assert "[mlflow run url](https://mlflow.example.com/#/experiments/1)" in text
    assert "| Evaluate | SUCCEEDED | 1 min 30 s |" in text


def test_summary_of_a_failure(recorder, submit, summary):
    recorder.states, recorder.failing = ["FAILED"], "evaluate"
    submit()
    text = summary.read_text()
    assert "## ❌ evaluate: FAILED" in text
    assert "the run failed: Evaluate" in text


def test_summary_of_a_run_that_could_not_be_started(recorder, submit, summary):
    recorder.faults = [Fault("POST", "/runs$", 400, body='{"message": "<b>bad</b> | `x`"}')]
    submit()
    text = summary.read_text()
    assert "## ❌ evaluate: API" in text
    assert "&lt;b&gt;bad&lt;/b&gt; \\| \\`x\\`" in text


def test_markdown_of_the_run_is_in_the_summary(recorder, submit, summary, bucket):
    """The driver's layout: ROOT/PIPELINE/RUN_ID/TASK/SALT/NAME; a task's other outputs are left alone."""
    seen_run = recorder.seen_run

    def write_and_see(run):
        folder = f"kfp/evaluate/{run['run_id']}/evaluate/salt"
        bucket.put_object(Bucket="artifacts", Key=f"{folder}/summary", Body=b"| arm | pass@8 |\n|---|---|\n")
        bucket.put_object(Bucket="artifacts", Key=f"{folder}/card", Body=b"not this")
        return seen_run(run)

    recorder.seen_run = write_and_see
    done = submit("--pipeline-root", "s3://artifacts/kfp")
    assert done.code == 0, done.err
    assert recorder.posted("/runs")[0]["runtime_config"]["pipeline_root"] == "s3://artifacts/kfp"
    assert "| arm | pass@8 |" in summary.read_text()
    assert "not this" not in summary.read_text()


def test_store_out_of_reach_costs_a_warning(recorder, submit, summary, monkeypatch):
    for key, value in {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a",
                       "AWS_SECRET_ACCESS_KEY": "very-secret", "AWS_REGION": "us-east-1"}.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    done = submit("--pipeline-root", "s3://artifacts/kfp")
    assert done.code == 0
    assert "the run's own summary is left out" in done.err
    assert "very-secret" not in done.err + summary.read_text()


def test_log_that_only_the_store_has_says_why_a_task_failed(recorder, submit, bucket):
    """executor-logs of the second attempt, which the launcher keeps with PUBLISH_LOGS; the pod is gone."""
    seen_run = recorder.seen_run

    def write_and_see(run):
        key = f"kfp/evaluate/{run['run_id']}/evaluate/salt/executor-logs-1"
        bucket.put_object(Bucket="artifacts", Key=key, Body=b"ValueError: from the store\n")
        return seen_run(run)

    recorder.seen_run, recorder.states, recorder.failing = write_and_see, ["FAILED"], "evaluate"
    assert "Evaluate: ValueError: from the store" in submit("--pipeline-root", "s3://artifacts/kfp").err
