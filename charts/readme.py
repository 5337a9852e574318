"""Make the table of values in each chart's README from the comments of its values.yaml.

    python charts/readme.py [--check]

A comment that starts with ``# --`` explains the key below it. Every key without keys of its own must have one; a
mapping that has one is a single row. The table stands between the two markers of the README.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

BEGIN, END = "<!-- values: made by charts/readme.py -->", "<!-- end of values -->"


class CommentError(ValueError):
    """A value without an explanation, or a README without its markers."""


@dataclass(frozen=True)
class Row:
    """One value: its dotted key, its default, what its comment says."""

    key: str
    default: Any
    text: str


def rows(values: Path) -> list[Row]:
    """Return the values of a file in its order.

    Raises:
        CommentError: a value has no comment.
    """
    text = values.read_text(encoding="utf-8")
    lines = text.splitlines()
    return list(_walk(yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text), lines, ()))


def _walk(node: Any, value: Any, lines: list[str], path: tuple[str, ...]) -> Iterator[Row]:
    for key_node, child in node.value:
        key = (*path, key_node.value)
        comment = _comment(lines, key_node.start_mark.line)
        below = value[key_node.value]
        if comment is None and isinstance(below, dict) and below:
            yield from _walk(child, below, lines, key)
        elif comment is None:
            raise CommentError(f"{'.'.join(key)} has no comment that starts with '# --' above it.")
        else:
            yield Row(".".join(key), below, comment)


def _comment(lines: list[str], line: int) -> str | None:
    """Return the text from the last ``# --`` line of the comment right above a line."""
    found: list[str] = []
    for text in reversed(lines[:line]):
        stripped = text.strip()
        if not stripped.startswith("#"):
            break
        found.insert(0, stripped.removeprefix("# --").removeprefix("#").strip())
        if stripped.startswith("# --"):
            return " ".join(found)
    return None


def table(found: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| value | default | what |", "|---|---|---|"]
    for row in found:
        default = json.dumps(row.default, ensure_ascii=False)
        lines.append(f"| `{row.key}` | `{_escaped(default)}` | {_escaped(row.text)} |")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def readme(chart: Path) -> str:
    """Return what the chart's README should be.

    Raises:
        CommentError: a value has no comment, or the README no markers.
    """
    path = chart / "README.md"
    head, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise CommentError(f"{path} has no {BEGIN} and {END}.")
    return f"{head}{BEGIN}\n\n{table(rows(chart / 'values.yaml'))}\n\n{END}{tail}"


def main(arguments: list[str]) -> int:
    """Write the READMEs, or with ``--check`` only say which are out of date."""
    stale = 0
    for chart in sorted(path.parent for path in Path(__file__).parent.glob("*/Chart.yaml")):
        path, wanted = chart / "README.md", readme(chart)
        if path.read_text(encoding="utf-8") == wanted:
            continue
        if "--check" in arguments:
            print(f"{path} is not what values.yaml says: run python charts/readme.py", file=sys.stderr)
            stale += 1
        else:
            path.write_text(wanted, encoding="utf-8")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
