"""What a submission came to, as JSON, as JUnit and as a GitHub step summary."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from progrpo.manifest import write_atomic
from progrpo_pipelines.client.errors import ExitCode
from progrpo_pipelines.client.waiting import TaskRow
from progrpo_pipelines.durations import duration

_ILLEGAL_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NUMBERS = 12  # in the headline
_SUMMARY_BYTES = 900_000  # GitHub takes 1 MiB a step


@dataclass(frozen=True)
class Result:
    """The verdict on a submission.

    Attributes:
        exit_code: of the command.
        message: one sentence: what happened, and what to do if it was not well.
        pipeline, experiment, name: what was submitted.
        run_id, url, state: of the run, if there is one.
        adopted: whether the run was there already, started by the same request.
        waited_s: seconds that we waited, by our clock.
        tasks: of the run.
        links: name and address of what else is worth opening.
    """

    exit_code: ExitCode
    message: str
    pipeline: str
    experiment: str
    name: str | None = None
    run_id: str | None = None
    url: str | None = None
    state: str | None = None
    adopted: bool = False
    waited_s: float = 0.0
    tasks: Sequence[TaskRow] = ()
    links: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> str:
        """Return one JSON object; ``verdict`` is the exit code in words."""
        content = asdict(self) | {"exit_code": int(self.exit_code), "verdict": self.exit_code.name.lower()}
        return json.dumps(content | {"waited_s": round(self.waited_s, 1)}, indent=2)


def write_junit(result: Result, path: Path) -> None:
    """Write a JUnit file: one case for the run, one for each of its tasks.

    A run that failed or was skipped is a failure; one whose end is not known (time-out, API, interrupt) an error.
    """
    suite = ET.Element("testsuite", name=_text(f"progrpo.{result.pipeline}"))
    case = ET.SubElement(suite, "testcase", classname=_text(result.pipeline), name="run", time=f"{result.waited_s:.3f}")
    if result.exit_code in (ExitCode.FAILED, ExitCode.CANCELLED):
        ET.SubElement(case, "failure", message=_text(result.message), type=result.state or "")
    elif result.exit_code != ExitCode.SUCCEEDED:
        ET.SubElement(case, "error", message=_text(result.message), type=result.exit_code.name)
    if result.url:
        ET.SubElement(case, "system-out").text = _text(result.url)
    for task in result.tasks:
        case = ET.SubElement(
            suite, "testcase", classname=_text(result.pipeline), name=_text(task.title), time=f"{task.elapsed_s:.3f}"
        )
        if task.state == "FAILED":
            ET.SubElement(case, "failure", message=_text(task.error or "the task failed"), type=task.state)
        elif task.state != "SUCCEEDED":
            ET.SubElement(case, "skipped", message=task.state)
    for count, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(count, str(len(list(suite.iter(tag)))))
    suite.set("time", f"{result.waited_s:.3f}")
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n")


def step_summary(result: Result, cards: Sequence[str] = ()) -> str:
    """Return Markdown for ``$GITHUB_STEP_SUMMARY``.

    Args:
        result: the verdict.
        cards: Markdown that the run itself wrote, such as the comparison table.
    """
    icon = "✅" if result.exit_code == ExitCode.SUCCEEDED else "❌"
    cancelled = result.exit_code == ExitCode.CANCELLED  # which the server calls FAILED in the end
    state = result.exit_code.name if cancelled or not result.state else result.state
    lines = [f"## {icon} {_cell(result.pipeline)}: {_cell(state)}", ""]
    lines += [_cell(result.message), ""]
    links = ({"Run": result.url} if result.url else {}) | result.links
    lines += [" · ".join(f"[{_cell(name)}]({_address(url)})" for name, url in links.items()), ""]
    if result.tasks:
        lines += ["| Task | State | Time |", "|---|---|---|"]
        lines += [
            f"| {_cell(task.title)} | {task.state} | {duration(task.elapsed_s) if task.elapsed_s else ''} |"
            for task in result.tasks
        ]
        lines.append("")
    text = "\n".join(lines)
    for card in cards:
        if len((text + card).encode("utf-8")) <= _SUMMARY_BYTES:
            text += f"\n{card.strip()}\n"
    return text


def headline(metrics: Mapping[str, Any]) -> str:
    """Return the numbers of a metrics artifact in a line, those with _low and _high with their interval."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    shown = []
    for name, value in numbers.items():
        if name.removesuffix("_low").removesuffix("_high") in numbers and name.endswith(("_low", "_high")):
            continue
        low, high = numbers.get(f"{name}_low"), numbers.get(f"{name}_high")
        interval = f" [{low:.4g}, {high:.4g}]" if low is not None and high is not None else ""
        shown.append(f"{name.removeprefix('compare/')} {value:.4g}{interval}")
    more = len(shown) - _NUMBERS
    return ", ".join(shown[:_NUMBERS]) + (f" and {more} more" if more > 0 else "")


def find_links(run: Any) -> dict[str, str]:
    """Return the addresses that the server's plugins, such as MLflow's, left with a run."""
    links: dict[str, str] = {}
    for plugin, output in (run.plugins_output or {}).items():
        for name, entry in (output.entries or {}).items():
            if isinstance(entry.value, str) and entry.value.startswith(("http://", "https://")):
                links[f"{plugin} {name.replace('_', ' ')}"] = entry.value
    return links


def _text(text: str) -> str:
    return _ILLEGAL_XML.sub("�", text)


def _cell(text: str) -> str:
    """Text from outside, which may not become Markdown or HTML of ours."""
    line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#!])", r"\\\1", line)


def _address(url: str) -> str:
    return url.replace(" ", "%20").replace("(", "%28").replace(")", "%29").replace("<", "%3C").replace(">", "%3E")
