"""Compare arms: read, refuse or warn, estimate, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from progrpo.comparison.ability import ability_results, ability_warnings
from progrpo.comparison.checks import (
    check_comparable,
    check_trainings,
    find_warnings,
    protocol_differences,
    shared_protocol,
)
from progrpo.comparison.exports import csv_table, latex_table
from progrpo.comparison.gate import check_gate, judge
from progrpo.comparison.pngs import write_pngs
from progrpo.comparison.report import draw_charts, render_report
from progrpo.comparison.result import COMPARISON_NAME, GATE_NAME, Comparison
from progrpo.comparison.sources import Evaluation, Training, read_evaluation, read_training
from progrpo.comparison.statistics import estimate_arm, subtract
from progrpo.comparison.tables import markdown_summary
from progrpo.config import START, CompareConfig
from progrpo.evaluation.summary import metric_names
from progrpo.manifest import MANIFEST_NAME, Manifest, write_manifest
from progrpo.metrics import Progress, pass_at

REPORT_NAME, SUMMARY_NAME = "report.html", "summary.md"


def compare(
    config: CompareConfig,
    *,
    evaluations: Sequence[Path],
    trainings: Sequence[Path],
    output: Path,
    names: Mapping[Path, str] | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Compare evaluated arms and write a comparison artifact.

    Args:
        config: the baseline, and how intervals are made.
        evaluations: evaluation artifacts, one an arm and seed; one may be of the checkpoint before training.
        trainings: the training runs behind them, for curves and configurations; may be empty or incomplete.
        output: written: comparison.json, report.html, summary.md, table.csv, table.tex, plots/*.png, with a gate
            gate.json and, last, manifest.json.
        names: of the arms of some evaluations and training runs, where their own will not do.
        progress: told how many arms are estimated.

    Raises:
        ComparisonError: evaluations that may not be compared; the message names both sides.
        ManifestError: an unfinished or changed artifact.
    """
    names = names or {}
    read = [read_evaluation(path, arm=names.get(path)) for path in evaluations]
    runs = [read_training(path, arm=names.get(path)) for path in trainings]
    by_run = check_trainings(runs)
    check_comparable(read, config.baseline)
    by_arm = _group(read, config.baseline)
    if config.gate is not None:
        check_gate(config.gate, by_arm)

    comparison = _estimate(config, by_arm, by_run, progress or Progress())

    output.mkdir(parents=True, exist_ok=True)
    (output / MANIFEST_NAME).unlink(missing_ok=True)  # an earlier result is no longer whole from here on
    (output / COMPARISON_NAME).write_text(comparison.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (output / GATE_NAME).unlink(missing_ok=True)
    if comparison.gate is not None:
        (output / GATE_NAME).write_text(comparison.gate.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (output / SUMMARY_NAME).write_text(markdown_summary(comparison), encoding="utf-8")
    (output / "table.csv").write_text(csv_table(comparison), encoding="utf-8")
    (output / "table.tex").write_text(latex_table(comparison), encoding="utf-8")
    charts = draw_charts(comparison, by_arm, runs)
    (output / REPORT_NAME).write_text(render_report(comparison, by_arm, charts), encoding="utf-8")
    for stale in (output / "plots").glob("*.png"):
        stale.unlink()
    write_pngs((chart for section in charts.values() for chart in section), output / "plots")
    inputs = {f"evaluation/{e.arm}" + ("" if e.seed is None else f"/seed-{e.seed}"): e.digest for e in read}
    inputs.update({f"training/{t.arm}/seed-{t.seed}": t.digest for t in runs})
    return write_manifest(
        output,
        "comparison",
        inputs=inputs,
        config={"comparison": config.model_dump(mode="json")},
        metadata={
            "arms": [arm.name for arm in comparison.arms],
            "num_problems": comparison.num_problems,
            "num_warnings": len(comparison.warnings) + len(comparison.protocol_differences),
            "gate": comparison.gate.outcome if comparison.gate is not None else "none",
        },
    )


def _group(evaluations: Sequence[Evaluation], baseline: str) -> dict[str, list[Evaluation]]:
    """Group by arm: start first, then the baseline, then the others by name; seeds in order."""
    order = sorted({e.arm for e in evaluations}, key=lambda arm: (arm != START, arm != baseline, arm))
    return {arm: sorted((e for e in evaluations if e.arm == arm), key=lambda e: e.seed or 0) for arm in order}


def _estimate(
    config: CompareConfig,
    by_arm: dict[str, list[Evaluation]],
    trainings: dict[tuple[str, int], Training],
    progress: Progress,
) -> Comparison:
    everything = [evaluation for of_arm in by_arm.values() for evaluation in of_arm]
    first = everything[0].summary
    # Only the k that every evaluation reports; each could be computed, but a reader asked for these.
    ks = sorted(set.intersection(*(set(e.summary.ks) for e in everything))) or sorted({1, first.num_samples})
    names = _metric_names(everything, ks)
    arms = []
    for of_arm in by_arm.values():
        arms.append(estimate_arm(of_arm, trainings, ks, names, config))
        progress.update(len(arms), len(by_arm))
    baseline = by_arm[config.baseline]
    ability = ability_results(config, by_arm)
    differing = protocol_differences(everything)
    return Comparison(
        baseline=config.baseline,
        level=config.level,
        num_resamples=config.num_resamples,
        bootstrap_seed=config.seed,
        num_problems=len(everything[0].problem_ids),
        num_samples=first.num_samples,
        ks=tuple(ks),
        protocol=shared_protocol(everything),
        protocol_differences=tuple(differing),
        arms=tuple(arms),
        differences=tuple(
            subtract(by_arm[arm], baseline, ks, names, config)
            for arm in sorted(by_arm, key=lambda arm: arm == START)  # stable: start last
            if arm != config.baseline
        ),
        gains=tuple(
            subtract(by_arm[arm], by_arm[START], ks, names, config)
            for arm in by_arm
            if START in by_arm and arm != START
        ),
        ability=tuple(ability),
        warnings=(*find_warnings(everything, trainings), *ability_warnings(by_arm)),
        gate=judge(config, by_arm, ["the arms were measured in different ways"] if differing else [], ability=ability),
    )


def _metric_names(evaluations: Sequence[Evaluation], ks: Sequence[int]) -> list[str]:
    """Return the metrics that every evaluation reports, Pass@k at every k first."""
    defined = set.intersection(*(set(evaluation.summary.metrics) for evaluation in evaluations))
    reported = [name for name in metric_names(ks) if name in defined]
    return list(dict.fromkeys([*map(pass_at, ks), *reported]))
