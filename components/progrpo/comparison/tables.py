"""Numbers as people read them: one place for the report, the command line and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from progrpo.comparison.result import AbilityResult, ArmDifference, ArmResult, Comparison, Difference
from progrpo.config import START
from progrpo.evaluation.resampling import Interval
from progrpo.metrics import EVAL_METRICS, pass_at

NOT_RESOLVED = "not resolved"
RESOLVED = "resolved"
_OF_K = {"eval/pass_at_": "Pass", "eval/majority_at_": "Majority", "eval/mg_pass_at_": "mG-Pass"}
_PERCENT = (*_OF_K, "eval/truncated_frac", "eval/unscored_frac")
_LABELS = {
    "eval/entropy": "Entropy (nats)",
    "eval/entropy_correct": "Entropy, correct (nats)",
    "eval/entropy_incorrect": "Entropy, wrong (nats)",
    "eval/sampled_nll": "Sampled NLL (nats)",
    "eval/answer_entropy": "Answer entropy (nats)",
    "eval/distinct_correct": "Distinct correct",
    "eval/distinct_paths": "Distinct paths",
    "eval/self_bleu": "Self-BLEU",
    "eval/distinct_ngram_frac": "Distinct 4-grams",
    "eval/completion_tokens": "Completion tokens",
    "eval/truncated_frac": "Truncated (%)",
    "eval/unscored_frac": "Not scored (%)",
    "eval/answer_confidence": "Answer confidence",
}


@dataclass(frozen=True)
class Cell:
    """A value and its interval, as text; ``interval`` is empty where there is none."""

    value: str
    interval: str = ""

    def __str__(self) -> str:
        return f"{self.value} {self.interval}".rstrip()


@dataclass(frozen=True)
class HeadlineRow:
    """One arm of the headline table; ``cells`` follow :func:`headline_columns`."""

    arm: str
    is_baseline: bool
    cells: tuple[Cell, ...]


def headline_columns(comparison: Comparison) -> list[str]:
    """Return the headings of the headline table, after that of the arm."""
    return [*(label(name) for name in headline_metrics(comparison)), "Wall time per seed"]


def headline_table(comparison: Comparison) -> list[HeadlineRow]:
    """Return one row an arm: Pass@k at up to three k, entropy, distinct correct answers and wall time."""
    return [
        HeadlineRow(
            arm=arm.name,
            is_baseline=arm.name == comparison.baseline,
            cells=(
                *(estimate_cell(name, arm.metrics[name]) for name in headline_metrics(comparison)),
                Cell(wall_time_text(arm)),
            ),
        )
        for arm in comparison.arms
    ]


def headline_metrics(comparison: Comparison) -> list[str]:
    """Return the metrics of the headline table."""
    return [*map(pass_at, comparison.headline_ks), "eval/entropy", "eval/distinct_correct"]


def headline_sentences(comparison: Comparison) -> list[str]:
    """Say for every trained arm, in one sentence, how it differs from the baseline.

    The smallest and the largest k and the entropy together: a gain at one end is often paid for at the other.
    """
    names = [*map(pass_at, sorted({comparison.ks[0], comparison.ks[-1]})), "eval/entropy"]
    sentences = []
    alarm = "NOT COMPARABLE, measured in different ways: " if comparison.protocol_differences else ""
    for difference in comparison.differences:
        if difference.arm == START and len(comparison.differences) > 1:
            continue
        parts = [_difference_phrase(name, difference.metrics[name]) for name in names]
        sentences.append(f"{alarm}{difference.arm} minus {comparison.baseline}: {'; '.join(parts)}.")
    worse: dict[str, list[str]] = {}
    for ability in comparison.ability:
        if ability.outcome == "worse":
            worse.setdefault(ability.arm, []).append(f"{ability.task} {ability.metric}")
    if worse:
        listed = "; ".join(f"{arm} in {', '.join(metrics)}" for arm, metrics in worse.items())
        sentences.append(f"General ability got worse, resolved: {listed}.")
    return sentences or [f"{comparison.baseline} is the only arm; there is nothing to compare it with."]


def band_words(difference: ArmDifference, baseline: str) -> str:
    """Say at which k the simultaneous band of a difference excludes 0: "progrpo is above grpo for k from 2 to 8."."""
    parts = []
    for word, resolved in (
        ("above", [p.k for p in difference.curve if p.band_low > 0]),
        ("below", [p.k for p in difference.curve if p.band_high < 0]),
    ):
        if resolved:
            where = f"k from {resolved[0]} to {resolved[-1]}" if len(resolved) > 1 else f"k = {resolved[0]}"
            parts.append(f"{word} {baseline} for {where}")
    return f"{difference.arm} is {' and '.join(parts) or f'not resolved against {baseline} at any k'}."


def power_sentences(difference: ArmDifference, num_problems: int) -> list[str]:
    """Say of the headline's metrics what could have been resolved, and what would resolve the difference seen."""
    sentences = []
    for name, note in difference.power.items():
        size = f"{number(name, note.detectable)} {unit(name)}".rstrip()
        short, seen = label(name).partition(" (")[0], difference.metrics[name]
        text = f"{short}: true differences under {size} are resolved in less than {note.power:.0%}"
        enough = note.problems_needed is not None and note.problems_needed <= num_problems
        if seen.value and not seen.resolved and not enough:
            needed = [
                f"about {count:,} {what}"
                for count, what in ((note.problems_needed, "problems"), (note.seeds_needed, "training seeds an arm"))
                if count is not None
            ]
            text += f"; one as large as seen takes {' or '.join(needed) or 'more problems and more seeds'}"
        sentences.append(f"{text}.")
    return sentences


def _difference_phrase(name: str, difference: Difference) -> str:
    cell = difference_cell(name, difference)
    outcome = RESOLVED if difference.resolved else f"{NOT_RESOLVED} (the interval includes 0)"
    short = name.removeprefix("eval/").replace("pass_at_", "pass@")
    return f"{short} {cell.value} {unit(name)} {cell.interval}, {outcome}"


def markdown_summary(comparison: Comparison) -> str:
    """Return headline, warnings and both tables in Markdown, for a README or a model card."""
    lines = [line for sentence in headline_sentences(comparison) for line in (f"**{sentence}**", "")]
    alarms = [f"The arms were measured in different ways: {text}." for text in comparison.protocol_differences]
    for text in (*alarms, *comparison.warnings):
        lines += [f"> Warning: {_escape(text)}", ""]
    if comparison.gate is not None:
        lines += [f"Gate: **{outcome_words(comparison.gate.outcome)}** {comparison.gate.candidate}", ""]
        lines += [f"- {_escape(obstacle)}" for obstacle in comparison.gate.obstacles]
        lines += [f"- {outcome_words(rule.outcome)}: {_escape(rule.reason)}" for rule in comparison.gate.rules]
        lines += [""]
    columns = ["Arm", *headline_columns(comparison)]
    rows = [[row.arm, *map(str, row.cells)] for row in headline_table(comparison)]
    lines += _markdown_table(columns, rows)
    if comparison.differences:
        rows = [
            [d.arm, label(name), str(difference_cell(name, value)), verdict(value)]
            for d in comparison.differences
            for name, value in d.metrics.items()
        ]
        lines += ["", *_markdown_table(["Arm", "Metric", f"Arm minus {comparison.baseline}", "Verdict"], rows)]
        for difference in comparison.differences:
            if difference.arm != START:
                note = " ".join(power_sentences(difference, comparison.num_problems))
                lines += ["", f"{difference.arm} minus {comparison.baseline}, of studies like this one. {note}"]
    if comparison.ability:
        rows = [
            [a.arm, a.task, a.metric, f"{a.before:.4f}", f"{a.after:.4f}", str(ability_cell(a)), a.outcome]
            for a in comparison.ability
        ]
        columns = ["Arm", "Task", "Metric", START, "Arm", f"Arm minus {START}", "Verdict"]
        lines += ["", "General ability (lm-eval):", "", *_markdown_table(columns, rows)]
    lines += ["", f"{_basis(comparison)}"]
    return "\n".join(lines) + "\n"


def _basis(comparison: Comparison) -> str:
    seeds = ", ".join(f"{arm.name} {len(arm.seeds)}" for arm in comparison.arms if arm.seeds)
    return (
        f"{comparison.num_problems} problems, {comparison.num_samples} completions each; training seeds: "
        f"{seeds or 'none'}. In brackets: {100 * comparison.level:g} % bootstrap intervals over seeds and problems."
    )


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    head = "| " + " | ".join(columns) + " |"
    body = ["| " + " | ".join(_escape(cell) for cell in row) + " |" for row in rows]
    return [head, "|" + " --- |" * len(columns), *body]


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def outcome_words(outcome: str) -> str:
    """Return the outcome of a gate or of a rule as people read it: "not resolved"."""
    return outcome.replace("_", " ")


def verdict(difference: Difference) -> str:
    """Return "resolved" or "not resolved"."""
    return RESOLVED if difference.resolved else NOT_RESOLVED


def label(name: str) -> str:
    """Return a metric's heading, with its unit."""
    for prefix, text in _OF_K.items():
        if name.startswith(prefix):
            return f"{text}@{name.removeprefix(prefix)} (%)"
    return _LABELS.get(name) or name.removeprefix("eval/").replace("_", " ").capitalize()


def meaning(name: str) -> str:
    """Return a metric's definition; empty for one that this version does not know."""
    numbered = f"{name.rpartition('_')[0]}_{{k}}"
    return EVAL_METRICS.get(name) or EVAL_METRICS.get(numbered, "")


def number(name: str, value: float) -> str:
    """Format a metric's value alone."""
    scale, digits = _scale(name)
    return f"{value * scale:.{digits}f}"


def estimate_cell(name: str, estimate: Interval) -> Cell:
    """Format an arm's estimate; fractions as percentages."""
    return Cell(number(name, estimate.value), f"[{number(name, estimate.low)}, {number(name, estimate.high)}]")


def difference_cell(name: str, difference: Difference) -> Cell:
    """Format a difference with its sign; of fractions, in percentage points."""
    scale, digits = _scale(name)
    return _signed_cell(difference, scale, digits)


def _signed_cell(difference: Difference, scale: float, digits: int) -> Cell:
    """Format with as many more digits, three at most, as it takes for no end of a resolved interval to round to 0."""
    ends = (scale * difference.low, scale * difference.high)
    if difference.resolved:
        digits = next((d for d in range(digits, digits + 3) if all(float(f"{end:.{d}f}") for end in ends)), digits + 3)
    low, high = (signed(end, digits) for end in ends)
    if difference.low > 0 and float(f"{ends[0]:.{digits}f}") == 0:
        low = "> 0"
    if difference.high < 0 and float(f"{ends[1]:.{digits}f}") == 0:
        high = "< 0"
    return Cell(signed(scale * difference.value, digits), f"[{low}, {high}]")


def ability_cell(ability: AbilityResult) -> Cell:
    """Format what became of a metric of lm-eval, in the metric's own unit."""
    return _signed_cell(ability.difference, 1.0, 4)


def signed_number(name: str, value: float, *, extra_digits: int = 0) -> str:
    """Format a difference of a metric alone, with its sign."""
    scale, digits = _scale(name)
    return signed(scale * value, digits + extra_digits)


def unit(name: str) -> str:
    """Return the unit of a difference of a metric; empty for a count."""
    if name.startswith(_PERCENT):
        return "points"
    return "nats" if "(nats)" in label(name) else ""


def signed(value: float, digits: int) -> str:
    """Format with an explicit sign, a true minus, and none on what rounds to zero."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def _scale(name: str) -> tuple[float, int]:
    if name.startswith(_PERCENT):
        return 100.0, 1
    return 1.0, 1 if name == "eval/completion_tokens" else 3


def wall_time_text(arm: ArmResult) -> str:
    """Return training plus evaluation time, mean over seeds."""
    if arm.wall_time.train_s is None:
        return f"{duration(arm.wall_time.eval_s)} (evaluation)"
    return duration(arm.wall_time.train_s + arm.wall_time.eval_s)


def duration(seconds: float) -> str:
    """Format seconds as people say them: 43 s, 12 min, 3 h 05 min."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
