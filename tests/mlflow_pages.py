"""Pictures of MLflow's pages after a comparison, for docs/mlflow.md.

    python tests/mlflow_pages.py docs/img [--steps 150]

Runs the smoke comparison against a real MLflow server on PostgreSQL and SeaweedFS, and takes the pages with a headless
Chromium. Needs PostgreSQL and Chromium.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).parent))

from chromium import Tab, find_chromium
from mlflow_server import MLflowServer, running_mlflow
from postgres import find_postgres, running_postgres
from s3 import running_s3

GATE = {
    "candidate": "progrpo",
    "rules": [{"relation": "better", "metric": "eval/pass_at_32", "against": "grpo"}],
    "fail_on": [],
}
CHARTS = "curve/pass_at_k|train/entropy$|train/reward$|eval/pass_at_(1|32)$|distinct_correct"
"""Names of the charts that are shown, a regular expression as MLflow's page takes it."""


def main() -> None:
    """Run the comparison and write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=150, help="training steps; fewer for a try")
    options = parser.parse_args()
    chromium, binaries = find_chromium(), find_postgres()
    if chromium is None or binaries is None:
        parser.error("needs chromium and postgresql")
    options.output.mkdir(parents=True, exist_ok=True)
    with running_postgres(binaries) as postgres, running_s3() as s3:
        s3.client().create_bucket(Bucket="mlflow")
        artifacts = {"artifacts": "s3://mlflow/artifacts", "environment": s3.environment}
        with running_mlflow(postgres.uri, options=["--serve-artifacts"], **artifacts) as server:
            _compare(server, options.steps)
            with chromium.open_tab() as tab:
                _pictures(server, tab, options.output)


def _compare(server: MLflowServer, steps: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "progrpo_pipelines.cli", "run", "compare", "--preset", "smoke"]
        command += ["--output", f"{scratch}/demo", "--set", f"train.steps={steps}"]
        command += ["--set", f"comparison.gate={json.dumps(GATE)}"]
        environment = {key: value for key, value in os.environ.items() if key != "PROGRPO_TRACKING"}
        subprocess.run(command, check=True, env={**environment, "MLFLOW_TRACKING_URI": server.uri})


def _pictures(server: MLflowServer, tab: Tab, output: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=server.uri)
    experiment = client.get_experiment_by_name("progrpo").experiment_id
    runs = client.search_runs([experiment], "tags.`progrpo.seed` != ''")
    chosen = sorted((run for run in runs if "eval/pass_at_1" in run.data.metrics), key=lambda run: run.info.run_name)
    (model,) = client.search_logged_models([experiment], f"source_run_id = '{chosen[-1].info.run_id}'")
    trace = client.search_traces(locations=[experiment], run_id=chosen[-1].info.run_id)[0]
    seeds = quote("tags.`progrpo.seed` != ''")
    pages = {
        "runs": f"/experiments/{experiment}/runs",
        "charts": f"/experiments/{experiment}/runs?compareRunsMode=CHART&searchFilter={seeds}",
        "run": f"/experiments/{experiment}/runs/{chosen[-1].info.run_id}",
        "model": f"/experiments/{experiment}/models/{model.model_id}",
        "registry": "/models/progrpo",
        "trace": f"/experiments/{experiment}/traces?selectedEvaluationId={trace.info.trace_id}",
    }
    for name, page in pages.items():
        tab.open(f"{server.uri}/#{page}", width=1400, height=1650 if name == "charts" else 900)
        _settle(tab)
        tab.evaluate("document.querySelectorAll('button[aria-label=Close]').forEach(b => b.click())")  # the assistant
        if name == "charts":
            tab.type("input[placeholder*='metric charts']", CHARTS)
        if name == "run":  # the data sets of the run, in their drawer
            tab.evaluate("[...document.querySelectorAll('button')].find(b => /countdown-/.test(b.innerText))?.click()")
        _settle(tab)
        tab.screenshot(output / f"mlflow-{name}.png")


def _settle(tab: Tab) -> None:
    """Wait until the page has stopped changing: MLflow gives no sign when all its data has come."""
    last, since = "", time.monotonic()
    deadline = time.monotonic() + 90
    while time.monotonic() < min(deadline, since + 6):
        shown = tab.evaluate("document.body.innerText + document.querySelectorAll('svg *, [role=status]').length")
        if shown != last:
            last, since = shown, time.monotonic()
        time.sleep(0.3)


if __name__ == "__main__":
    main()
