r"""The answer column of the ``code`` task: how a program is tested, and when its output is right.

Three forms, each a JSON object that may also set ``time_limit_s`` (CPU seconds a case, 6) and ``memory_limit_mb``
(2048):

- standard input: ``{"inputs": ["1 2\n"], "outputs": ["3\n"]}``, as LiveCodeBench, CodeForces, APPS and TACO have
  them; a list ``[{"input": "1 2\n", "output": "3\n"}]`` of the same is read too;
- a function: the same with ``"fn_name"``. A text in ``inputs`` is one JSON value a line, an argument each, and its
  output is JSON (LiveCodeBench); a list in ``inputs`` is the arguments, and its output the value (APPS, TACO);
- a check: ``{"entry_point": "add", "test": "def check(candidate): ..."}``, as HumanEval and HumanEval+ have it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

from progrpo.errors import DataError

TIME_LIMIT_S, MAX_TIME_LIMIT_S = 6, 120  # 6: LiveCodeBench, which measures wall time
MEMORY_LIMIT_MB, MAX_MEMORY_LIMIT_MB = 2048, 16_384


@dataclass(frozen=True)
class ProblemTests:
    """How programs for one problem are tested.

    Attributes:
        time_limit_s: CPU seconds for a case, or for the whole of a check.
        memory_limit_mb: address space.
        inputs: of each case: a text, or the arguments of the function.
        outputs: of each case: a text, or the value of the function.
        function: what is called; None: programs read standard input.
        check: the text of a program that checks the function.
    """

    time_limit_s: int = TIME_LIMIT_S
    memory_limit_mb: int = MEMORY_LIMIT_MB
    inputs: tuple[Any, ...] = ()
    outputs: tuple[Any, ...] = ()
    function: str | None = None
    check: str | None = None


@lru_cache(maxsize=64)
def parse_answer(answer: str) -> ProblemTests:
    """Read an answer column.

    Raises:
        DataError: it has none of the three forms.
    """
    try:
        content = json.loads(answer)
        if isinstance(content, list):
            content = {"inputs": [case["input"] for case in content], "outputs": [case["output"] for case in content]}
        return _tests(dict(content))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"answer {answer[:100]!r} is not one of the code task ({_reason(error)}). Write JSON: "
            '{"inputs": ["1 2"], "outputs": ["3"]}, the same with "fn_name", or {"entry_point": ..., "test": ...}.'
        ) from None


def _reason(error: Exception) -> str:
    return f"no key {error}" if isinstance(error, KeyError) else str(error)[:200]


def _tests(content: dict[str, Any]) -> ProblemTests:
    limits: dict[str, Any] = {
        name: _limit(name, content.pop(name), most)
        for name, most in (("time_limit_s", MAX_TIME_LIMIT_S), ("memory_limit_mb", MAX_MEMORY_LIMIT_MB))
        if content.get(name) is not None
    }
    if "test" in content:
        if set(content) != {"entry_point", "test"}:
            raise ValueError(f"a check has the keys entry_point and test, not {', '.join(sorted(content))}")
        return ProblemTests(function=_name(content["entry_point"]), check=_text(content["test"]), **limits)
    if unknown := set(content) - {"inputs", "outputs", "fn_name"}:
        raise ValueError(f"unknown key {', '.join(sorted(map(str, unknown)))}")
    inputs, outputs = content["inputs"], content["outputs"]
    if not (isinstance(inputs, list) and isinstance(outputs, list) and 0 < len(inputs) == len(outputs)):
        raise ValueError("inputs and outputs must be lists of equal length with at least one case")
    if content.get("fn_name") is None:
        return ProblemTests(inputs=tuple(map(_text, inputs)), outputs=tuple(map(_text, outputs)), **limits)
    calls = [_call(*case) for case in zip(inputs, outputs, strict=True)]
    return ProblemTests(
        inputs=tuple(arguments for arguments, _ in calls),
        outputs=tuple(value for _, value in calls),
        function=_name(content["fn_name"]),
        **limits,
    )


def _call(arguments: Any, value: Any) -> tuple[list[Any], Any]:
    if isinstance(arguments, str):
        return [json.loads(line) for line in arguments.split("\n")], json.loads(value)
    if not isinstance(arguments, list):
        raise ValueError("the input of a function is a list of arguments, or a text with one JSON value a line")
    return arguments, value


def _limit(name: str, value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise ValueError(f"{name} must be a number above 0 and at most {most}, not {value!r}")
    return max(1, -(-int(1000 * value) // 1000))


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value.isidentifier():
        raise ValueError(f"{value!r} is no name of a function")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text is needed, not {type(value).__name__}")
    return value


def same_output(given: str, expected: str) -> bool:
    """Compare what a program printed with what it should have, as LiveCodeBench does.

    Whitespace around the whole and around each line does not count. Lines must be equal, or hold numbers that are
    equal one by one as decimals: ``1.0`` is ``1``, ``0.333`` is not ``0.3333`` (lcb_runner/evaluation/testing_util.py).
    """
    given_lines, expected_lines = given.strip().split("\n"), expected.strip().split("\n")
    return len(given_lines) == len(expected_lines) and all(
        _same_line(*pair) for pair in zip(given_lines, expected_lines, strict=True)
    )


def _same_line(given: str, expected: str) -> bool:
    if given.strip() == expected.strip():
        return True
    try:
        numbers, wanted = ([Decimal(word) for word in line.split()] for line in (given, expected))
        return numbers == wanted
    except (InvalidOperation, ValueError):
        return False


def same_value(given: Any, expected: Any) -> bool:
    """Compare what a function returned, decoded, with what it should have; a tuple may stand for a list."""
    try:
        return bool((list(given) if isinstance(given, tuple) else given) == expected)
    except RecursionError:
        return False
