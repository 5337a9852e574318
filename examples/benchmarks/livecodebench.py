"""Turn the files of LiveCodeBench's code_generation_lite (test.jsonl, test2.jsonl, ...) into rows of ours.

    python examples/benchmarks/livecodebench.py test*.jsonl --since 2024-08-01 --until 2025-02-01 > livecodebench.jsonl

Its hidden tests are compressed pickles of one text. Loading a pickle runs whatever is in it; this reads the text out
of the pickle's opcodes instead, and refuses one that holds anything else.
"""

from __future__ import annotations

import argparse
import base64
import json
import pickletools
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ALLOWED = {"PROTO", "FRAME", "BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE", "UNICODE", "MEMOIZE", "BINPUT",
            "LONG_BINPUT", "STOP"}  # fmt: skip

READS_INPUT = "Read the input from standard input and write the answer to standard output."
COMPLETES = "Use this starter code:\n```python\n{starter}\n```"


def text_of_pickle(data: bytes) -> str:
    """Return the one text that a pickle holds.

    Raises:
        ValueError: it holds something else.
    """
    texts = []
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in _ALLOWED:
            raise ValueError(f"a pickle of hidden tests has the opcode {opcode.name}; only one text is expected")
        if "UNICODE" in opcode.name:
            texts.append(str(argument))
    if len(texts) != 1:
        raise ValueError(f"a pickle of hidden tests holds {len(texts)} texts; one is expected")
    return texts[0]


def hidden_tests(text: str) -> list[dict[str, str]]:
    """Read ``private_test_cases``: JSON, or a compressed pickle of it."""
    try:
        cases: list[dict[str, str]] = json.loads(text)
    except ValueError:
        cases = json.loads(text_of_pickle(zlib.decompress(base64.b64decode(text))))
    return cases


def convert(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the columns ``problem``, ``answer`` and ``difficulty``."""
    cases = json.loads(row["public_test_cases"]) + hidden_tests(row["private_test_cases"])
    answer = {"inputs": [case["input"] for case in cases], "outputs": [case["output"] for case in cases]}
    if function := json.loads(row["metadata"] or "{}").get("func_name"):
        answer["fn_name"] = function
    starter = row["starter_code"].strip()
    task = COMPLETES.format(starter=starter) if starter else READS_INPUT
    difficulty = {"easy": 1, "medium": 2, "hard": 3}.get(row.get("difficulty", ""))
    return {"problem": f"{row['question_content']}\n\n{task}", "answer": answer, "difficulty": difficulty}


def rows(paths: list[Path], since: str, until: str) -> Iterator[dict[str, Any]]:
    """Yield the converted problems of contests from ``since`` on and before ``until``, ISO dates."""
    for path in paths:
        with path.open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                if since <= row["contest_date"][:10] < until:
                    yield convert(row)


def main() -> None:
    """Write the rows to standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--since", default="0000-00-00", metavar="YYYY-MM-DD")
    parser.add_argument("--until", default="9999-99-99", metavar="YYYY-MM-DD")
    options = parser.parse_args()
    for row in rows(options.files, options.since, options.until):
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
