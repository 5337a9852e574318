"""What ``progrpo run`` prints when a run has ended well."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from progrpo.redaction import redact
from progrpo_pipelines.durations import duration
from progrpo_pipelines.local.running import RunResult


def print_summary(result: RunResult, console: Console) -> None:
    """Print the table of the run, where its report lies and how to open MLflow on it."""
    comparison = result.output_of("compare")
    evaluation = result.output_of("evaluate")
    console.print()
    if comparison is not None:
        _print_comparison(comparison, console)
        for name in ("report.html", "comparison.json"):
            shutil.copyfile(comparison / name, result.directory / name)
        _print_line(console, "Report", str(result.directory / "report.html"))
    elif evaluation is not None:
        _print_evaluation(evaluation, console)
        shutil.copyfile(evaluation / "evaluation.json", result.directory / "evaluation.json")
    _print_line(console, "Artifacts", str(result.directory / "artifacts"))
    _print_line(console, "MLflow", mlflow_command(result.tracking_uri))
    _print_line(console, "Wall time", duration(result.wall_time_s))


def mlflow_command(tracking_uri: str) -> str:
    """Return the command that shows the runs: a server on the local database, or where the server is, no password."""
    if not tracking_uri.startswith("sqlite:///"):
        return redact(tracking_uri)
    artifacts = Path(tracking_uri.removeprefix("sqlite:///")).with_name("mlartifacts")
    return (
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow server --host 127.0.0.1 --workers 1 "
        f"--backend-store-uri {shlex.quote(tracking_uri)} --artifacts-destination {shlex.quote(str(artifacts))}"
    )


def _print_line(console: Console, name: str, value: str) -> None:
    console.print(f"{name + ':':<10} {value}", markup=False, highlight=False, soft_wrap=True)


def _print_comparison(directory: Path, console: Console) -> None:
    from progrpo.comparison.result import read_comparison
    from progrpo.comparison.tables import headline_columns, headline_sentences, headline_table, outcome_words

    comparison = read_comparison(directory)
    table = Table(title=f"Held-out problems: {comparison.num_problems}, completions each: {comparison.num_samples}")
    table.add_column("Arm", no_wrap=True)
    for heading in headline_columns(comparison):
        table.add_column(escape(heading), justify="right", overflow="fold")  # no number is cut off
    for row in headline_table(comparison):
        name = f"{row.arm}\n(baseline)" if row.is_baseline else row.arm
        cells = [f"{cell.value}\n{cell.interval}".rstrip() for cell in row.cells]
        table.add_row(escape(name), *map(escape, cells))
    console.print(table)
    console.print(f"Intervals: {comparison.level:.0%} bootstrap.", highlight=False)
    for text in headline_sentences(comparison):
        console.print(text, markup=False, highlight=False)
    alarms = (f"the arms were measured in different ways: {text}." for text in comparison.protocol_differences)
    for text in (*alarms, *comparison.warnings):
        console.print(f"Warning: {text}", markup=False, highlight=False)
    if (gate := comparison.gate) is not None:
        console.print(
            f"Gate: {outcome_words(gate.outcome)} {gate.candidate}. {gate.reason}.", markup=False, highlight=False
        )
    console.print()


def _print_evaluation(directory: Path, console: Console) -> None:
    content: dict[str, Any] = json.loads((directory / "evaluation.json").read_text(encoding="utf-8"))
    table = Table(title=f"Held-out problems: {content['num_problems']}, completions each: {content['num_samples']}")
    for heading in ("Metric", "Value", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "Metric" else "right")
    for name, estimate in content["metrics"].items():
        table.add_row(escape(name), f"{estimate['value']:.4f}", f"{estimate['low']:.4f} to {estimate['high']:.4f}")
    console.print(table)
