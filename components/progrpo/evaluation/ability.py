"""The general-ability guard: what training for one task cost elsewhere, measured with lm-eval before and after.

``evaluation.ability`` makes every evaluation of a pipeline measure it, and the comparison report it. By hand:

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
from typing import Any, Literal

from progrpo.config import AbilityConfig, parse
from progrpo.environment import describe_hardware, library_versions, resolve_device
from progrpo.errors import ComparisonError, ConfigError, ProGRPOError
from progrpo.evaluation.bootstrap import bootstrap_difference, bootstrap_mean
from progrpo.evaluation.resampling import Bootstrap, Interval
from progrpo.evaluation.summary import BOOTSTRAP
from progrpo.evaluation.table import RATE
from progrpo.manifest import MANIFEST_NAME, Manifest, read_manifest, write_atomic, write_manifest

ABILITY = "ability"
"""Directory within an evaluation that holds the measurement, where ``evaluation.ability`` asked for one."""
ABILITY_NAME, SAMPLES_NAME = "ability.json", "documents.parquet"
Values = dict[tuple[str, str], dict[str, float]]
"""(task, metric) -> document -> value."""


@dataclass(frozen=True)
class AbilityDifference:
    """One metric of one task, after minus before.

    ``outcome``: ``worse`` or ``better`` where the interval excludes 0, else ``not resolved``; which way is better, the
    task says.
    """

    task: str
    metric: str
    before: float
    after: float
    difference: Interval
    higher_is_better: bool
    outcome: Literal["worse", "better", "not resolved"]


def check_ability(config: AbilityConfig) -> Any:
    """Return lm-eval's task manager, or say why nothing can be measured, before a checkpoint is loaded.

    Raises:
        ConfigError: lm-eval is not installed, or knows no such task.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            f"the general-ability guard needs lm-eval ({error}). Install progrpo[ability], pip install "
            f"'progrpo[train,ability]', or leave evaluation.ability out."
        ) from None
    manager = TaskManager(include_path=config.include_path)
    if unknown := sorted(set(config.tasks) - set(manager.all_tasks)):
        raise ConfigError(
            f"lm-eval knows no task {', '.join(unknown)}. `lm-eval ls tasks` lists them; tasks of your own need "
            f"ability.include_path."
        )
    return manager


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
    manager = check_ability(config)
    import lm_eval
    import pyarrow as pa
    import pyarrow.parquet as pq

    from progrpo.checkpoints.preflight import first_line

    source = read_manifest(checkpoint, "checkpoint")
    output.mkdir(parents=True, exist_ok=True)
    (output / MANIFEST_NAME).unlink(missing_ok=True)
    device = resolve_device(config.device)
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
    kinds = {"task": pa.string(), "metric": pa.string(), "document": pa.string(), "value": pa.float64()}
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(kinds)), output / SAMPLES_NAME)
    tasks: dict[str, dict[str, Any]] = {}
    for (task, metric), documents in values.items():
        numbers = list(documents.values())
        interval = bootstrap_mean(numbers, bounds=_bounds(numbers), **BOOTSTRAP)
        tasks.setdefault(task, {})[metric] = {**asdict(interval), "num_documents": len(numbers)}
    document = {
        "schema_version": 1,
        "tasks": tasks,
        "task_versions": results["versions"],
        "higher_is_better": results.get("higher_is_better", {}),
        "checkpoint_digest": source.digest,
        "hardware": describe_hardware(device),
        "versions": library_versions("torch", "transformers", "lm-eval"),
    }
    write_atomic(output / ABILITY_NAME, json.dumps(document, indent=2))
    return write_manifest(
        output,
        "ability",
        inputs={"checkpoint": source.digest},
        config={"ability": config.model_dump(mode="json")},
        metadata={"tasks": sorted(tasks)},
    )


def compare_ability(before: Path, after: Sequence[Path], bootstrap: Bootstrap = BOOTSTRAP) -> list[AbilityDifference]:
    """Return what changed from one measurement to others, paired by document.

    Args:
        before: a measurement.
        after: measurements of one arm, one a training seed.
        bootstrap: of the intervals.

    Raises:
        ManifestError: a directory that holds no finished measurement.
        ComparisonError: tasks, their versions, settings or documents differ.
    """
    first, document = _read(before), _document(before)
    others = []
    for directory in after:
        for what, mine, theirs in (
            ("settings", _settings(before), _settings(directory)),
            ("task versions", document["task_versions"], _document(directory)["task_versions"]),
        ):
            if mine != theirs:
                raise ComparisonError(
                    f"{what} differ: {mine} in {before}, {theirs} in {directory}. Measure both alike."
                )
        other = _read(directory)
        if any(first[key].keys() != other.get(key, {}).keys() for key in first) or first.keys() != other.keys():
            raise ComparisonError(f"{before} and {directory} asked other documents. Measure both with the same data.")
        others.append(other)
    differences = []
    for (task, metric), values in first.items():
        a = list(values.values())
        arms = [[other[task, metric][name] for name in values] for other in others]
        bounds = _bounds([*a, *(value for arm in arms for value in arm)])
        interval = bootstrap_difference([(arm, None) for arm in arms], [(a, None)], bounds=bounds, **bootstrap)
        higher_is_better = document.get("higher_is_better", {}).get(task, {}).get(metric.split(",")[0]) is not False
        outcome: Literal["worse", "better", "not resolved"] = "not resolved"
        if interval.excludes(0):
            outcome = "better" if (interval.value > 0) == higher_is_better else "worse"
        mean = sum(map(sum, arms)) / sum(map(len, arms))
        differences.append(AbilityDifference(task, metric, sum(a) / len(a), mean, interval, higher_is_better, outcome))
    return differences


def _document(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / ABILITY_NAME).read_bytes())
    return content


def _settings(directory: Path) -> dict[str, Any]:
    """Return how a measurement was made, without what only changes its speed."""
    return {**read_manifest(directory, "ability").config["ability"], "device": None, "batch_size": None}


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
    import pyarrow.parquet as pq

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
            differences = compare_ability(options.first, [options.second])
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
