"""The general-ability guard: what training for one task cost elsewhere, measured with lm-eval before and after.

    python -m progrpo.evaluation.ability CHECKPOINT OUTPUT --set tasks=[arc_easy]
    python -m progrpo.evaluation.ability --compare BEFORE AFTER

lm-eval (the ``ability`` extra) does the measuring: its tasks, prompts and metrics. Ours are the intervals, and the
difference, which is paired by document: both checkpoints answered the same questions. lm-eval fetches its data sets
from the Hugging Face Hub, unless ``include_path`` names tasks whose data is local.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from progrpo.config import AbilityConfig, parse
from progrpo.environment import describe_hardware, library_versions, resolve_device
from progrpo.errors import ComparisonError, ConfigError, ProGRPOError
from progrpo.evaluation.bootstrap import Interval, bootstrap_difference, bootstrap_mean
from progrpo.evaluation.summary import BOOTSTRAP
from progrpo.evaluation.table import RATE
from progrpo.manifest import MANIFEST_NAME, Manifest, read_manifest, write_atomic, write_manifest

SAMPLES_NAME = "documents.parquet"
_SCHEMA = pa.schema(
    [("task", pa.string()), ("metric", pa.string()), ("document", pa.string()), ("value", pa.float64())]
)

Values = dict[tuple[str, str], dict[str, float]]
"""(task, metric) -> document -> value."""


@dataclass(frozen=True)
class AbilityDifference:
    """One metric of one task, after minus before.

    ``outcome``: ``worse`` or ``better`` where the interval excludes 0, else ``not resolved``.
    """

    task: str
    metric: str
    before: float
    after: float
    difference: Interval
    outcome: str


def measure_ability(config: AbilityConfig, checkpoint: Path, output: Path) -> Manifest:
    """Run lm-eval's tasks on a checkpoint and write every document's result.

    Writes ``ability.json`` (task -> metric -> value with interval over documents), ``documents.parquet`` and the
    manifest. Metrics that are no mean over documents, such as perplexity of a corpus, are left out.

    Args:
        config: tasks and how they are asked.
        checkpoint: a checkpoint artifact.
        output: directory to write to, made if absent.

    Raises:
        ConfigError: lm-eval is not installed, a task it does not know, or data it cannot load.
        ManifestError: no finished checkpoint.
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            f"the general-ability guard needs lm-eval ({error}). Install progrpo[ability], pip install "
            f"'progrpo[train,ability]'."
        ) from None
    from progrpo.checkpoints.preflight import first_line

    source = read_manifest(checkpoint, "checkpoint")
    output.mkdir(parents=True, exist_ok=True)
    (output / MANIFEST_NAME).unlink(missing_ok=True)
    device = resolve_device(config.device)
    manager = TaskManager(include_path=config.include_path)
    if unknown := sorted(set(config.tasks) - set(manager.all_tasks)):
        raise ConfigError(
            f"lm-eval knows no task {', '.join(unknown)}. `lm-eval ls tasks` lists them; tasks of your own need "
            f"ability.include_path."
        )
    try:
        results = lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(checkpoint), "dtype": config.dtype, "trust_remote_code": False},
            tasks=list(config.tasks),
            num_fewshot=config.num_fewshot,
            limit=config.limit,
            apply_chat_template=config.chat_template,
            batch_size=config.batch_size,
            device=str(device),
            bootstrap_iters=0,  # the intervals are ours
            task_manager=manager,
            log_samples=True,
        )
    except (OSError, ValueError, ConnectionError) as error:  # data sets that are not there, first of all
        raise ConfigError(
            f"lm-eval cannot run {', '.join(config.tasks)}: {first_line(error)}. It loads data sets from the Hugging "
            f"Face Hub or its cache; without a network set ability.include_path to tasks with local data."
        ) from error
    values = _by_document(results["samples"])
    rows = [
        {"task": task, "metric": metric, "document": document, "value": value}
        for (task, metric), documents in values.items()
        for document, value in documents.items()
    ]
    pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), output / SAMPLES_NAME)
    tasks: dict[str, dict[str, Any]] = {}
    for (task, metric), documents in values.items():
        numbers = list(documents.values())
        interval = bootstrap_mean(numbers, bounds=_bounds(numbers), **BOOTSTRAP)
        tasks.setdefault(task, {})[metric] = {**asdict(interval), "num_documents": len(numbers)}
    document = {
        "schema_version": 1,
        "tasks": tasks,
        "task_versions": results["versions"],
        "checkpoint_digest": source.digest,
        "hardware": describe_hardware(device),
        "versions": library_versions("torch", "transformers", "lm-eval"),
    }
    write_atomic(output / "ability.json", json.dumps(document, indent=2))
    return write_manifest(
        output,
        "ability",
        inputs={"checkpoint": source.digest},
        config={"ability": config.model_dump(mode="json")},
        metadata={"tasks": sorted(tasks)},
    )


def compare_ability(before: Path, after: Path) -> list[AbilityDifference]:
    """Return what changed from one measurement to another, paired by document.

    Raises:
        ManifestError: a directory that holds no finished measurement.
        ComparisonError: tasks, their versions, settings or documents differ.
    """
    manifests = [read_manifest(directory, "ability") for directory in (before, after)]
    documents = [json.loads((directory / "ability.json").read_bytes()) for directory in (before, after)]
    settings = [{**manifest.config["ability"], "device": None, "batch_size": None} for manifest in manifests]
    for what, (first, second) in {
        "settings": settings,
        "task versions": [document["task_versions"] for document in documents],
    }.items():
        if first != second:
            raise ComparisonError(f"{what} differ: {first} in {before}, {second} in {after}. Measure both alike.")
    first, second = _read(before), _read(after)
    if any(first[key].keys() != second.get(key, {}).keys() for key in first) or first.keys() != second.keys():
        raise ComparisonError(f"{before} and {after} asked other documents. Measure both with the same data.")
    differences = []
    for (task, metric), values in first.items():
        a, b = list(values.values()), [second[task, metric][document] for document in values]
        interval = bootstrap_difference([(b, None)], [(a, None)], bounds=_bounds([*a, *b]), **BOOTSTRAP)
        outcome = "not resolved" if not interval.excludes(0) else "worse" if interval.value < 0 else "better"
        differences.append(AbilityDifference(task, metric, sum(a) / len(a), sum(b) / len(b), interval, outcome))
    return differences


def _by_document(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> Values:
    """Collect the metrics of each document that are numbers; a filter's name stands beside its metric's."""
    values: Values = {}
    for task, of_task in samples.items():
        for sample in of_task:
            for metric in sample["metrics"]:
                value = sample[metric]
                if isinstance(value, bool | int | float):
                    name = metric if sample["filter"] == "none" else f"{metric},{sample['filter']}"
                    key = f"{sample['doc_id']}:{sample['doc_hash'][:16]}"
                    values.setdefault((task, name), {})[key] = float(value)
    return values


def _read(directory: Path) -> Values:
    values: Values = {}
    for row in pq.read_table(directory / SAMPLES_NAME).to_pylist():
        values.setdefault((row["task"], row["metric"]), {})[row["document"]] = row["value"]
    return values


def _bounds(values: Sequence[float]) -> tuple[float, float] | None:
    """Accuracies have bounds; what exceeds them is no accuracy."""
    return RATE if min(values) >= 0 and max(values) <= 1 else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure a checkpoint, or compare two measurements; exit with 1 where an ability got worse, 2 on an error."""
    import yaml

    parser = argparse.ArgumentParser(prog="python -m progrpo.evaluation.ability", description=__doc__.splitlines()[0])
    parser.add_argument("--compare", action="store_true", help="compare two measurements instead")
    parser.add_argument("first", type=Path, metavar="CHECKPOINT|BEFORE")
    parser.add_argument("second", type=Path, metavar="OUTPUT|AFTER")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, its value as YAML")
    options = parser.parse_args(arguments)
    try:
        if options.compare:
            differences = compare_ability(options.first, options.second)
            for d in differences:
                low, high = d.difference.low, d.difference.high
                change = f"{d.before:.4f} -> {d.after:.4f}, {d.difference.value:+.4f} ({low:+.4f} to {high:+.4f})"
                print(f"{d.task} {d.metric}: {change}, {d.outcome}")
            return int(any(d.outcome == "worse" for d in differences))
        settings = {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in options.set)}
        measure_ability(parse(AbilityConfig, settings, source="--set"), options.first, options.second)
    except ProGRPOError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
