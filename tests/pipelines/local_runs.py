"""Run pipelines one after another under kfp.local with its cache on: ``python local_runs.py RUNS.json RESULTS.json``.

A process of its own, as kfp.local sets up logging globally.
"""

import json
import os
import sys
import traceback
from pathlib import Path

from progrpo_components.reporting import PROGRESS_DIR
from progrpo_pipelines.packaging.compiling import load_pipeline


def steps_of(directory):
    """Return step -> the states that its processes ended in; a step from the cache has none."""
    lines = {path.stem: map(json.loads, path.read_text().splitlines()) for path in directory.glob("*.jsonl")}
    return {
        step: [line["state"] for line in found if line.get("state") in ("finished", "failed")]
        for step, found in lines.items()
    }


def errors_of(directory):
    """Return step -> the error that it reported."""
    lines = [(path.stem, json.loads(path.read_text().splitlines()[-1])) for path in directory.glob("*.jsonl")]
    return {step: line["error"] for step, line in lines if line.get("state") == "failed"}


def main(runs_path, results_path):
    from kfp import local

    runs = json.loads(Path(runs_path).read_text())
    root = Path(runs_path).parent
    python, sys.executable = sys.executable, "python3"  # as progrpo_pipelines.local.worker does, and why
    os.environ["PATH"] = f"{Path(python).parent}:{os.environ['PATH']}"
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(root / "artifacts"), enable_caching=True)
    results = []
    for i, run in enumerate(runs):
        progress = root / f"progress{i}"
        progress.mkdir()
        os.environ[PROGRESS_DIR] = str(progress)
        for path, text in run.get("files", {}).items():
            Path(path).write_text(text)
        failed = False
        try:
            load_pipeline(run["pipeline"], run.get("preset"))(**run["form"])
        except Exception:
            failed = True
            traceback.print_exc()
        results.append({"failed": failed, "steps": steps_of(progress), "errors": errors_of(progress)})
    Path(results_path).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
