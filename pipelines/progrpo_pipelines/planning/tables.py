"""A plan as people read it."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from progrpo.training.advice import readable_size
from progrpo.training.estimate import MemoryEstimate
from progrpo_pipelines.planning.plan import Plan

_PARTS = {
    "weights": "weights, float32 masters",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "reference": "reference model",
    "gathered": "weights as computed with",
    "buffers": "DDP buckets",
    "activations": "activations of a micro-batch",
    "head": "LM head and logits",
    "rollouts": "generation: KV cache, logits",
    "vllm": "vLLM",
    "optimizer_step": "optimizer step",
    "runtime": "the process itself",
}


def print_plan(plan: Plan, console: Console) -> None:
    """Print memory, work, what is written, and what was found."""
    model = plan.model
    if model is not None:
        context = f", context {model.context_length:,} tokens" if model.context_length else ""
        _line(console, "Checkpoint", f"{model.name}, {model.num_parameters / 1e6:,.1f}M parameters{context}")
    size = f", {readable_size(plan.device.num_bytes)}" if plan.device.num_bytes is not None else ""
    _line(console, "Device", plan.device.name + size)
    if plan.evaluation or plan.findings.estimates:
        console.print(_memory_table(plan))
    console.print(_work_table(plan))
    for title, texts in (("Note", plan.notes), ("Warning", plan.findings.warnings), ("Error", plan.findings.errors)):
        for text in texts:
            _line(console, title, str(text))


def _memory_table(plan: Plan) -> Table:
    columns = _merged(plan.findings.estimates)
    table = Table(title="Memory on each rank, estimated")
    table.add_column("Part")
    for name in columns:
        table.add_column(escape(name), justify="right")
    if plan.evaluation:
        table.add_column("evaluation", justify="right")
    for part, shown in _PARTS.items():
        sizes = [estimate.parts.get(part, 0) for estimate in columns.values()]
        sizes += [plan.evaluation.get(part, 0)] if plan.evaluation else []
        if any(sizes):
            table.add_row(shown, *(readable_size(size) if size else "" for size in sizes))
    table.add_section()
    totals = {
        "peak while generating": [estimate.generating for estimate in columns.values()],
        "peak while updating": [max(estimate.updating, estimate.stepping) for estimate in columns.values()],
    }
    if columns:
        for shown, sizes in totals.items():
            table.add_row(shown, *map(readable_size, sizes), *([""] if plan.evaluation else []))
    peaks = [estimate.peak for estimate in columns.values()]
    peaks += [sum(plan.evaluation.values())] if plan.evaluation else []
    table.add_row("peak", *map(readable_size, peaks), style="bold")
    return table


def _merged(estimates: Mapping[str, MemoryEstimate]) -> dict[str, MemoryEstimate]:
    """Put arms of equal memory into one column."""
    columns: dict[MemoryEstimate, list[str]] = {}
    for name, estimate in estimates.items():
        columns.setdefault(estimate, []).append(name)
    return {", ".join(names): estimate for estimate, names in columns.items()}


def _work_table(plan: Plan) -> Table:
    table = Table(title="Work and what it leaves behind", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    if work := plan.training:
        table.add_row("training runs (arms x seeds)", f"{plan.num_runs:,}")
        table.add_row("rollouts a step", f"{work['rollouts_per_step']:,}")
        table.add_row("tokens a step, prompts included, at most", f"{work['tokens_per_step']:,}")
        table.add_row("rollouts a training run", f"{work['rollouts']:,}")
        table.add_row("tokens a training run, at most", f"{work['tokens']:,}")
        table.add_row("tokens of all training runs, at most", f"{work['tokens'] * plan.num_runs:,}")
        if work["measured_completions"]:
            table.add_row("held-out completions a training run", f"{work['measured_completions']:,}")
    if plan.evaluation_completions is not None:
        table.add_row("completions of all evaluations", f"{plan.evaluation_completions:,}")
    if plan.gpu_hours is not None:
        table.add_row("GPU-hours of all training runs, at most", f"{plan.gpu_hours:,.1f}")
    if plan.written:
        table.add_section()
    for what, count, size in plan.written:
        each = f"{count:,}" if size is None else f"{count:,} x {readable_size(size)}"
        table.add_row(escape(f"a training run: {what}"), each)
    return table


def _line(console: Console, name: str, value: str) -> None:
    console.print(f"{name + ':':<11} {value}", markup=False, highlight=False, soft_wrap=True)
