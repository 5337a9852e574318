"""What the summary run of each (arm, seed) holds, from the artifacts of a comparison.

Where runs are our own the steps have logged all of it already, and only what a server did not take of them is added.
Where Kubeflow's plugin has a run for each task, these are the only runs that lie side by side.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from progrpo.manifest import Manifest, read_manifest
from progrpo.metrics import TRAIN_WALL_TIME, read_jsonl
from progrpo_components.tracking.place import Place
from progrpo_components.tracking.text import PARAM_LENGTH, flatten, is_legal_name


def summaries_of(place: Place, evaluations: Sequence[Path], trainings: Sequence[Path]) -> list[dict[str, Any]]:
    """Return for each evaluation its place, its params and its points as lines of a spool.

    Args:
        place: of the comparison.
        evaluations: evaluation artifacts.
        trainings: training artifacts; one that belongs to an evaluation gives its settings and curves.
    """
    trained = {identity_of(manifest): (path, manifest) for path, manifest in _manifests(trainings, "training")}
    summaries = []
    for path, manifest in _manifests(evaluations, "evaluation"):
        arm, seed = identity_of(manifest)
        training, of_training = trained.get((arm, seed), (None, None))
        config = {**(of_training.config if of_training else {}), **manifest.config}
        tags = summary_tags(of_training or manifest, config.get("arm"))
        now = int(time.time() * 1000)
        lines: list[dict[str, Any]] = []
        if training is not None and of_training is not None:
            for row in read_jsonl(training / "metrics.jsonl"):
                step = int(row.pop("step"))
                lines.append({"metrics": _loggable(row), "step": step, "time": now})
            wall_time = of_training.metadata.get("train_wall_time_s")
            lines.append({"numbers": {} if wall_time is None else {TRAIN_WALL_TIME: float(wall_time)}, "time": now})
        lines.append({"numbers": _loggable(read_evaluation(path)), "time": now})
        params = {key: text[:PARAM_LENGTH] for key, text in flatten(config) if is_legal_name(key)}
        summaries.append(
            {
                "place": place.summary_of(arm, seed, tags).model_dump(mode="json"),
                "params": params,
                "lines": lines,
            }
        )
    return summaries


def read_evaluation(evaluation: Path) -> dict[str, float]:
    """Read the values of ``evaluation.json`` without their intervals, under names that MLflow and KFP take."""
    metrics = json.loads((evaluation / "evaluation.json").read_text(encoding="utf-8"))["metrics"]
    return {
        name: float(value["value"] if isinstance(value, dict) else value)
        for name, value in metrics.items()
        if value is not None
    }


def summary_tags(manifest: Manifest, arm: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the tags that name the algorithm and the inputs of an artifact."""
    tags = {f"progrpo.{name}_digest": digest for name, digest in manifest.inputs.items()}
    return tags if arm is None else {**tags, "progrpo.algorithm": str(arm["algorithm"]["type"])}


def _manifests(paths: Sequence[Path], kind: Any) -> Iterator[tuple[Path, Manifest]]:
    for path in paths:
        yield path, read_manifest(path, kind, verify=False)


def identity_of(manifest: Manifest) -> tuple[str, int | None]:
    """Return arm and seed of a training run or an evaluation."""
    arm = manifest.config.get("arm")
    return (arm["name"] if arm else str(manifest.metadata["arm"])), manifest.config.get("seed")


def _loggable(metrics: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if is_legal_name(key) and math.isfinite(value)}
