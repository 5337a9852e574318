"""Generate word problems with one operation on small numbers, as JSONL with the columns prompt and answer.

A prompt is a conversation: two solved problems, which show the model the form of an answer, then the one to solve.

python make_arithmetic.py OUTPUT_DIRECTORY [--num-train 256] [--num-eval 64] [--largest 10] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

NAMES = ("Ana", "Ben", "Eva", "Jon", "Lea", "Mia", "Sam", "Tom")
THINGS = ("apples", "books", "cards", "coins", "pens", "shells", "stamps", "stones")
TEMPLATES = {
    "+": (
        "{name} has {a} {things} and buys {b} more. How many {things} does {name} have?",
        "{name} finds {a} {things} on Monday and {b} on Tuesday. How many {things} did {name} find?",
    ),
    "-": (
        "{name} has {a} {things} and gives {b} away. How many {things} does {name} have left?",
        "There are {a} {things} on the table. {name} takes {b} of them. How many {things} are left?",
    ),
    "*": (
        "There are {a} boxes with {b} {things} each. How many {things} are there?",
        "{name} buys {a} bags of {things}. Each bag holds {b}. How many {things} does {name} buy?",
    ),
}
SOLVED = (
    ("Kim has 3 pens and buys 4 more. How many pens does Kim have?", "3 + 4 = 7"),
    ("There are 2 boxes with 6 books each. How many books are there?", "2 * 6 = 12"),
)

Problem = dict[str, Any]


def make_problem(rng: random.Random, largest: int) -> Problem:
    """Draw one problem; operands lie between 2 and ``largest``, and no answer is below 1."""
    operation = rng.choice(list(TEMPLATES))
    a, b = rng.randint(2, largest), rng.randint(2, largest)
    if operation == "-":
        a, b = max(a, b) + 1, min(a, b)
    answer = {"+": a + b, "-": a - b, "*": a * b}[operation]
    template = rng.choice(TEMPLATES[operation])
    question = template.format(name=rng.choice(NAMES), things=rng.choice(THINGS), a=a, b=b)
    shown = [
        {"role": role, "content": text}
        for pair in SOLVED
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return {"prompt": [*shown, {"role": "user", "content": question}], "answer": str(answer)}


def make_problems(count: int, *, largest: int, seed: int) -> list[Problem]:
    """Draw ``count`` problems with different questions.

    Raises:
        ValueError: so many that drawing does not find them.
    """
    rng = random.Random(seed)  # noqa: S311  # problems, not secrets
    problems: dict[str, Problem] = {}
    for _ in range(50 * count):
        problem = make_problem(rng, largest)
        problems.setdefault(problem["prompt"][-1]["content"], problem)
        if len(problems) == count:
            return list(problems.values())
    raise ValueError(f"only {len(problems)} different problems found, {count} wanted: raise --largest")


def main() -> None:
    """Write train.jsonl and eval.jsonl, which share no problem."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--num-train", type=int, default=256)
    parser.add_argument("--num-eval", type=int, default=64)
    parser.add_argument("--largest", type=int, default=10, help="largest operand (default 10)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if min(given.num_train, given.num_eval) < 1 or given.largest < 3:
        parser.error("--num-train and --num-eval must be at least 1, --largest at least 3")
    try:
        problems = make_problems(given.num_train + given.num_eval, largest=given.largest, seed=given.seed)
    except ValueError as error:
        parser.error(str(error))
    given.output.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", problems[: given.num_train]), ("eval", problems[given.num_train :])):
        path = given.output / f"{name}.jsonl"
        path.write_text("".join(json.dumps(problem) + "\n" for problem in part), encoding="utf-8")
        print(f"{path}: {len(part)} problems")


if __name__ == "__main__":
    main()
