"""What tracking costs a training, and how fast points reach a server.

    python benchmarks/tracking.py overhead [--steps 150] [--pairs 3]     training of the smoke preset, with and without
    python benchmarks/tracking.py delivery [--points 100000]             points through the spool to a server

``overhead`` trains in this process, on and off in turn after one training that is not counted, and compares the time
of the training loop and of the whole step, which ends when the server has everything. Where a machine's speed drifts by
more than a percent, the ratio says little; what the training's own process spends on tracking is timed by itself, too.
``delivery`` is the time from the first line of the spool to the last point on the server. The server is a real
``mlflow server`` on sqlite, started here, unless ``MLFLOW_TRACKING_URI`` names another.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from progrpo.environment import library_versions
from progrpo.metrics import read_jsonl
from progrpo_components import steps
from progrpo_components.steps import Tracking as StepTracking
from progrpo_components.tracking import Tracker, locate, open_tracking
from progrpo_components.tracking.runs import new_client
from progrpo_components.tracking.sync import sync
from progrpo_pipelines.packaging.presets import resolve

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
METRICS_A_STEP = 25


@contextmanager
def server(root: Path) -> Iterator[None]:
    """Start a server, unless one is given."""
    from mlflow_server import running_mlflow

    if os.environ.get("MLFLOW_TRACKING_URI"):
        yield
        return
    with running_mlflow(f"sqlite:///{root / 'mlflow.db'}", str(root / "artifacts")) as running:
        os.environ["MLFLOW_TRACKING_URI"] = running.uri
        yield


def overhead(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train with and without tracking in turn."""
    sets = [f"train.steps={options.steps}"] if options.steps else []
    parameters = resolve("train-and-evaluate", preset="smoke", settings=sets)
    dataset, checkpoint = root / "dataset", root / "checkpoint"
    steps.prepare_dataset(parameters.dataset.model_dump(), output=dataset)
    steps.import_checkpoint(parameters.checkpoint.model_dump(), output=checkpoint)
    run = {"arm": parameters.arm.model_dump(), "seed": parameters.seed}

    written = 0.0
    write = Tracker._write

    def timed_write(*arguments: Any) -> None:
        nonlocal written
        began = time.perf_counter()
        write(*arguments)
        written += time.perf_counter() - began

    Tracker._write = timed_write  # type: ignore[method-assign]

    def once(name: str, tracked: bool, **changes: Any) -> tuple[float, float]:
        output = root / name
        tracking = StepTracking(experiment="overhead", run_id=name) if tracked else None
        started = time.monotonic()
        config = {**parameters.train.model_dump(), **changes}
        steps.train(run, config, dataset=dataset, checkpoint=checkpoint, output=output, tracking=tracking)
        whole = time.monotonic() - started
        return sum(row["train/step_s"] for row in read_jsonl(output / "metrics.jsonl") if row["step"]), whole

    once("warm", False, steps=5)
    pairs = []
    for pair in range(options.pairs):
        # On first in every second pair: a machine that gets slower must not favour one side.
        order = [True, False] if pair % 2 else [False, True]
        times = {tracked: once(f"{'on' if tracked else 'off'}{pair}", tracked) for tracked in order}
        pairs.append({"off_s": times[False], "on_s": times[True]})
    ratios = {
        part: statistics.median(pair["on_s"][index] / pair["off_s"][index] for pair in pairs)
        for index, part in enumerate(("loop", "step"))
    }
    return {
        "steps": parameters.train.steps,
        "pairs (loop, step)": pairs,
        "median ratio": ratios,
        "in the training's process, fraction of its loop": written / sum(pair["on_s"][0] for pair in pairs),
    }


def delivery(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Send points through a tracker and count them on the server."""
    number = options.points // METRICS_A_STEP
    place = locate(experiment="delivery", pipeline_run_id=f"{time.time_ns():x}", task="train", arm="grpo", seed=0)
    started = time.monotonic()
    with open_tracking(place, root / "out") as tracker:
        for step in range(1, number + 1):
            tracker.log(step, {f"train/metric_{index}": step / 7 for index in range(METRICS_A_STEP)})
        logged = time.monotonic() - started
    left = list(sync(root))
    seconds = time.monotonic() - started
    client = new_client(place.uri)
    keys = [f"train/metric_{index}" for index in range(METRICS_A_STEP)]
    arrived = sum(len(client.get_metric_history(tracker.run_id or left[0].run_id, key)) for key in keys)
    return {
        "points": number * METRICS_A_STEP,
        "arrived": arrived,
        "said_s": round(logged, 2),
        "delivered_s": round(seconds, 2),
        "after the step": [result.num_lines for result in left],
    }


def main() -> None:
    """Run one of the two and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("overhead", "delivery"))
    parser.add_argument("--steps", type=int, help="training steps (default: the preset's)")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--points", type=int, default=100_000)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="progrpo-tracking-"))
    try:
        with server(root):
            result = (overhead if options.what == "overhead" else delivery)(root, options)
    finally:
        shutil.rmtree(root)
    print(json.dumps({**result, "versions": library_versions("torch", "transformers", "trl", "mlflow")}, indent=2))


if __name__ == "__main__":
    main()
