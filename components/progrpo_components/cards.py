"""Markdown cards: what a step made, as the Kubeflow UI shows it beside the step.

Text of models, data and errors goes into code spans and fences, where no Markdown and no HTML is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from progrpo.manifest import Manifest
from progrpo_components.ending import Ending

NO_PROMOTION = "# Promotion\n\nThe comparison has no gate (`comparison.gate`), so nothing is promoted.\n"


def inputs_card(
    pipeline: str,
    settings: Mapping[str, Any],
    *,
    runs: Sequence[Mapping[str, Any]],
    checkpoint: Mapping[str, Any],
    dataset: Mapping[str, Any],
    warnings: Sequence[str],
) -> str:
    """Return the card of validate-inputs.

    Args:
        pipeline: its name.
        settings: of the run, as JSON values.
        runs: the training runs, {arm, seed}.
        checkpoint: what is known of it.
        dataset: likewise.
        warnings: what works, but hardly as meant.
    """
    trained = [f"{run['arm']['name']} with seed {run['seed']}" for run in runs]
    parts = [f"# {pipeline}: inputs", _table({"training runs": ", ".join(trained) or "none", **checkpoint, **dataset})]
    if warnings:
        parts += ["## Warnings", *(f"- {_code(text)}" for text in warnings)]
    return (
        "\n\n".join([*parts, "## Settings", _fence(json.dumps(settings, indent=2, ensure_ascii=False), "json")]) + "\n"
    )


def dataset_card(directory: Path, manifest: Manifest) -> str:
    """Return the card of a dataset artifact: counts, and what was dropped and why."""
    report = json.loads((directory / "report.json").read_text(encoding="utf-8"))
    counts = {name: report[name] for name in ("rows_read", "rows_kept", "num_train", "num_eval")}
    parts = ["# Dataset", _table({"digest": manifest.digest, "tasks": ", ".join(manifest.metadata["tasks"]), **counts})]
    if report["dropped"]:
        parts += ["## Dropped", _table(report["dropped"])]
    if report["examples"]:
        parts += [
            "## Examples",
            _table({row["place"]: f"{row['column']}: {row['reason']}" for row in report["examples"]}),
        ]
    return "\n\n".join(parts) + "\n"


def checkpoint_card(manifest: Manifest) -> str:
    """Return the card of a checkpoint artifact: what its manifest says of it."""
    return "\n\n".join(["# Checkpoint", _table({"digest": manifest.digest, **manifest.metadata})]) + "\n"


def evaluation_card(directory: Path, manifest: Manifest) -> str:
    """Return the card of an evaluation: every metric, with its interval where it has one."""
    metrics = json.loads((directory / "evaluation.json").read_text(encoding="utf-8"))["metrics"]
    rows = {name: _metric(value) for name, value in metrics.items() if value is not None}
    return "\n\n".join(["# Evaluation", _table({"digest": manifest.digest}), _table(rows)]) + "\n"


def promotion_card(directory: Path) -> str:
    """Return the card of a promotion: what the gate decided and what came of it."""
    promotion = json.loads((directory / "promotion.json").read_text(encoding="utf-8"))
    return "\n\n".join(["# Promotion", _fence(json.dumps(promotion, indent=2, ensure_ascii=False), "json")]) + "\n"


def run_card(pipeline: str, *, run_id: str, ending: Ending, error: str, closed: Sequence[str]) -> str:
    """Return the card of finish: how a pipeline run ended, and what is known of why."""
    said = "not known, see the run's page" if ending.outcome == "unknown" else ending.outcome
    rows = {
        "pipeline run": run_id,
        "failed": ", ".join(ending.failed),
        "stopped in the middle": ", ".join(ending.stopped),
        "MLflow runs closed": ", ".join(closed) or "none was left open",
    }
    return "\n\n".join([f"# {pipeline}: {said}", _table(rows), *([_fence(error)] if error else [])]) + "\n"


def _metric(value: Any) -> str:
    if not isinstance(value, Mapping):
        return f"{value:.6g}"
    interval = [value[key] for key in ("low", "high") if isinstance(value.get(key), int | float)]
    shown = f" [{interval[0]:.6g}, {interval[1]:.6g}]" if len(interval) == 2 else ""
    return f"{value['value']:.6g}{shown}"


def _table(rows: Mapping[str, Any]) -> str:
    lines = [f"| {_code(name)} | {_code(value)} |" for name, value in rows.items() if value not in (None, "")]
    return "\n".join(["| | |", "|---|---|", *lines])


def _code(value: Any) -> str:
    """Return a code span for a table cell: one line, without the characters that would end either."""
    text = re.sub(r"\s+", " ", str(value)).replace("`", "'").replace("|", "¦")
    return f"`{text}`" if text else ""


def _fence(text: str, language: str = "") -> str:
    """Return a code block that nothing in the text can end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
