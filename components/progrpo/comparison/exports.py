"""The comparison's tables for papers and programs: CSV with every number, LaTeX with the headline."""

from __future__ import annotations

import csv
import io

from progrpo.comparison.result import Comparison
from progrpo.comparison.tables import estimate_cell, headline_metrics, label
from progrpo.config import START

_LATEX = {"%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "$": r"\$"}


def csv_table(comparison: Comparison) -> str:
    """Return one row an arm and metric: the estimate, and its difference to the baseline where there is one.

    Values are in the metric's own unit, fractions as fractions, with all their digits.
    """
    file = io.StringIO()
    columns = ("value", "low", "high")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["arm", "metric", *columns, *(f"difference_{column}" for column in columns), "resolved"])
    differences = {difference.arm: difference.metrics for difference in comparison.differences}
    for arm in comparison.arms:
        for name, estimate in arm.metrics.items():
            difference = differences.get(arm.name, {}).get(name)
            to_baseline = (
                [""] * 4
                if difference is None
                else [*(getattr(difference, column) for column in columns), str(difference.resolved).lower()]
            )
            writer.writerow([arm.name, name, *(getattr(estimate, column) for column in columns), *to_baseline])
    return file.getvalue()


def flat_metrics(comparison: Comparison) -> dict[str, float]:
    """Return the headline as numbers under names that KFP and MLflow take.

    ``compare/ARM/pass_at_8`` is the arm's estimate, ``compare/ARM/pass_at_8_difference`` with ``_low`` and ``_high``
    its difference to the baseline.
    """
    names = headline_metrics(comparison)
    flat = {f"compare/{arm.name}/{_short(name)}": arm.metrics[name].value for arm in comparison.arms for name in names}
    for difference in comparison.differences:
        for name in names:
            value, key = difference.metrics[name], f"compare/{difference.arm}/{_short(name)}_difference"
            flat |= {key: value.value, f"{key}_low": value.low, f"{key}_high": value.high}
    return flat


def _short(metric: str) -> str:
    return metric.removeprefix("eval/")


def latex_table(comparison: Comparison) -> str:
    r"""Return the headline as a booktabs table; an asterisk marks a resolved difference to the baseline.

    Needs ``\usepackage{booktabs}``.
    """
    names = headline_metrics(comparison)
    differences = {difference.arm: difference.metrics for difference in comparison.differences}
    lines = [r"\begin{tabular}{l" + "c" * len(names) + "}", r"\toprule"]
    lines += [" & ".join(["Arm", *(_escape(label(name)) for name in names)]) + r" \\", r"\midrule"]
    for arm in comparison.arms:
        cells = []
        for name in names:
            cell = estimate_cell(name, arm.metrics[name])
            difference = differences.get(arm.name, {}).get(name)
            mark = "^{*}" if difference is not None and difference.resolved and arm.name != START else ""
            cells.append(f"${cell.value}{mark}$ {{\\scriptsize {cell.interval}}}")
        lines.append(" & ".join([_escape(arm.name), *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    notes = [
        f"{comparison.num_problems} problems, {comparison.num_samples} completions each; in brackets "
        f"{100 * comparison.level:g} % intervals over training seeds and problems.",
        f"*: the interval of the difference to {comparison.baseline}, paired by problem, excludes 0.",
    ]
    if comparison.protocol_differences:
        notes.append("NOT COMPARABLE: the arms were measured in different ways.")
    return "\n".join([*(f"% {note}" for note in notes), *lines]) + "\n"


def _escape(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
