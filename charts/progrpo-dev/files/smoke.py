"""Log a run with a metric and an artifact, read both back, delete it: what helm test runs."""

import tempfile
from pathlib import Path

from mlflow import MlflowClient

client = MlflowClient()
experiment = client.get_experiment_by_name("progrpo-dev-test")
experiment_id = experiment.experiment_id if experiment else client.create_experiment("progrpo-dev-test")
run_id = client.create_run(experiment_id).info.run_id
client.log_metric(run_id, "answer", 42)
client.log_text(run_id, "stored", "note.txt")
with tempfile.TemporaryDirectory() as directory:
    text = Path(client.download_artifacts(run_id, "note.txt", directory)).read_text()
metrics = client.get_run(run_id).data.metrics
client.delete_run(run_id)
if (metrics, text) != ({"answer": 42.0}, "stored"):
    raise SystemExit(f"MLflow gave back {metrics} and {text!r}")
print(f"MLflow stored and gave back run {run_id}")
