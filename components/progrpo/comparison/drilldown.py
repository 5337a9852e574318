"""Completions of every problem shown, embedded compactly in the report, to be opened by a click.

Blocks of a few problems are compressed each on their own, so that a click unpacks one block. Where everything would
take more than the budget, fewer completions are kept and long ones are shortened in the middle: their ends hold the
answers. What was left out is counted and shown.

Dimensions: P problems shown.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from progrpo.comparison.sources import Evaluation, iterate_samples, read_prompts

BUDGET_BYTES = 4_000_000
"""Of the embedded text: with Plotly's 4.8 MB and the rest of the page, below 10 MB."""
_BLOCK = 16  # problems
# (completions of a problem and seed, characters of a completion), the most first
_LADDER = ((32, 4000), (32, 2000), (32, 1000), (16, 1000), (16, 500), (8, 500), (8, 250), (4, 250), (2, 250), (2, 120))
_PILOT = 16  # problems that estimate what all would take


@dataclass(frozen=True)
class Drilldown:
    """What the page embeds; ``blocks`` are base64 of gzip of a JSON list of problems."""

    problem_ids: tuple[str, ...]
    block_size: int
    blocks: tuple[str, ...]
    max_completions: int
    max_characters: int


def embed_completions(
    evaluations: Mapping[str, Sequence[Evaluation]], problem_ids: Sequence[str], *, budget: int = BUDGET_BYTES
) -> Drilldown:
    """Embed as much of the completions as the budget allows.

    Args:
        evaluations: by arm, one a seed.
        problem_ids: those shown, in the order of the page.
        budget: bytes of the page, about.
    """
    pilot = [problem_ids[i] for i in _spread(len(problem_ids), _PILOT)]
    read = _read_all(evaluations, pilot, _LADDER[0][0], None)
    first = 0
    while first < len(_LADDER) - 1:
        limit, characters = _LADDER[first]
        if _size(_blocks(read, pilot, {}, limit, characters)) * len(problem_ids) <= budget * len(pilot):
            break
        first += 1
    prompts = read_prompts(next(iter(evaluations.values()))[0].directory, problem_ids)
    for limit, characters in _LADDER[first:]:  # the pilot is an estimate, the whole counts
        read = _read_all(evaluations, problem_ids, limit, characters)
        blocks = _blocks(read, problem_ids, prompts, limit, None)
        if _size(blocks) <= budget:
            break
    return Drilldown(tuple(problem_ids), _BLOCK, tuple(blocks), limit, characters)


def _spread(total: int, count: int) -> Sequence[int]:
    return range(total) if total <= count else [i * total // count for i in range(count)]


def _size(blocks: Sequence[str]) -> int:
    return sum(map(len, blocks))


# One completion: correct, tokens, cut off at the length limit, answer, text.
_Row = tuple[bool, int, bool, str | None, str]
_ByArm = Mapping[str, Sequence[Mapping[str, Sequence[_Row]]]]  # arm -> seeds -> problem id -> completions


def _read_all(
    evaluations: Mapping[str, Sequence[Evaluation]], problem_ids: Sequence[str], limit: int, characters: int | None
) -> _ByArm:
    return {arm: [_read(e, problem_ids, limit, characters) for e in of_arm] for arm, of_arm in evaluations.items()}


def _read(
    evaluation: Evaluation, problem_ids: Sequence[str], limit: int, characters: int | None
) -> dict[str, list[_Row]]:
    """Return the first completions of each problem, among them one correct and one wrong where there are any."""
    kept: dict[str, list[_Row]] = {problem_id: [] for problem_id in problem_ids}
    other: dict[str, _Row] = {}  # the first one that is right, or wrong, where all those kept are not
    columns = ["problem_id", "completion", "answer", "correct", "num_tokens", "finish_reason"]
    for row in iterate_samples(evaluation.directory, columns, problem_ids):
        problem_id, correct = row["problem_id"], row["correct"]
        rows = kept[problem_id]
        if len(rows) >= limit and (problem_id in other or any(each[0] == correct for each in rows)):
            continue
        text = shorten(row["completion"], characters)
        entry = (correct, row["num_tokens"], row["finish_reason"] == "length", row["answer"], text)
        if len(rows) < limit:
            rows.append(entry)
        else:
            other[problem_id] = entry
    for problem_id, entry in other.items():
        kept[problem_id][-1] = entry
    return kept


def shorten(text: str, limit: int | None) -> str:
    """Leave out the middle of a long text: a third of the limit is its beginning, the rest its end."""
    if limit is None or len(text) <= limit:
        return text
    head = limit // 3
    return f"{text[:head]} […{len(text) - limit} characters left out…] {text[len(text) - (limit - head) :]}"


def _blocks(
    read: _ByArm, problem_ids: Sequence[str], prompts: Mapping[str, str], limit: int, characters: int | None
) -> list[str]:
    def problem(problem_id: str) -> dict[str, Any]:
        arms = [[row for seed in seeds for row in seed[problem_id][:limit]] for seeds in read.values()]
        return {"prompt": prompts.get(problem_id), "arms": [list(_count_equal(rows, characters)) for rows in arms]}

    return [
        _pack([problem(problem_id) for problem_id in problem_ids[start : start + _BLOCK]])
        for start in range(0, len(problem_ids), _BLOCK)
    ]


def _count_equal(rows: Sequence[_Row], characters: int | None) -> Iterator[list[Any]]:
    """Yield [times, correct, tokens, cut off, answer, text] for each different completion, in the order they came."""
    times: dict[tuple[Any, ...], int] = {}
    for correct, tokens, cut_off, answer, text in rows:
        key = (int(correct), tokens, int(cut_off), answer, shorten(text, characters))
        times[key] = times.get(key, 0) + 1
    for key, count in times.items():
        yield [count, *key]


def _pack(problems: Sequence[Mapping[str, Any]]) -> str:
    text = json.dumps(problems, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(errors="replace"), 6, mtime=0)).decode()
