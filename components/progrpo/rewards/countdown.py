"""Verifier of the ``countdown`` task: an expression that uses each number once and reaches the target.

Grammar (nothing else is accepted, and nothing is ever executed)::

    sum     = product (("+" | "-") product)*
    product = factor ("*" factor)*
    factor  = digits | "(" sum ")"
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import ClassVar, Literal, NamedTuple

from progrpo.errors import DataError
from progrpo.rewards.task import Task
from progrpo.rewards.verdict import Verdict, final_answer

MAX_LENGTH = 200
"""Longer texts are no answer. Bounds the recursion and the size of the values."""

_TOKEN = re.compile(r"[0-9]+|[-+*()]|\S")


class Expression(NamedTuple):
    """A parsed expression.

    Attributes:
        value: what it evaluates to.
        text: the expression without whitespace and without parentheses that change no value, whatever the numbers:
            ``3+(5-(2))`` is ``3+5-2``, but ``3-(5-2)`` stays.
        numbers: the numbers used, in order of appearance.
        is_sum: the outermost operator is + or -.
    """

    value: int
    text: str
    numbers: tuple[int, ...]
    is_sum: bool = False

    def guarded(self) -> str:
        """The text as it must stand beside ``*`` or after ``-``."""
        return f"({self.text})" if self.is_sum else self.text


def parse_expression(text: str) -> Expression | None:
    """Parse ``text``; None if it is not an expression of the grammar or is longer than :data:`MAX_LENGTH`."""
    if len(text) > MAX_LENGTH:
        return None
    tokens = _TOKEN.findall(text)
    parser = _Parser(tokens)
    expression = parser.sum()
    return expression if parser.position == len(tokens) else None


class _Parser:
    """Recursive descent; each rule returns None where the text departs from the grammar."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.position = [*tokens, ""], 0

    def take(self, wanted: str) -> str:
        """Consume and return the next token if it is one of the characters of ``wanted``, else return ''."""
        token = self.tokens[self.position]
        if token and token in wanted:
            self.position += 1
            return token
        return ""

    def sum(self) -> Expression | None:
        left = self.product()
        while left and (operator := self.take("+-")):
            right = self.product()
            if right is None:
                return None
            value = left.value + right.value if operator == "+" else left.value - right.value
            text = left.text + operator + (right.text if operator == "+" else right.guarded())
            left = Expression(value, text, left.numbers + right.numbers, is_sum=True)
        return left

    def product(self) -> Expression | None:
        left = self.factor()
        while left and self.take("*"):
            right = self.factor()
            if right is None:
                return None
            text = f"{left.guarded()}*{right.guarded()}"
            left = Expression(left.value * right.value, text, left.numbers + right.numbers)
        return left

    def factor(self) -> Expression | None:
        token = self.tokens[self.position]
        if "0" <= token[:1] <= "9":  # str.isdigit also accepts digits that int() does not
            self.position += 1
            return Expression(int(token), str(int(token)), (int(token),))
        if self.take("("):
            inner = self.sum()
            return inner if self.take(")") else None
        return None


@lru_cache(maxsize=65536)
def parse_answer(answer: str) -> tuple[tuple[int, ...], int]:
    """Read an answer column: ``{"numbers": [3, 5, 7], "target": 22}``.

    Returns:
        The numbers in ascending order, and the target.

    Raises:
        DataError: anything else.
    """
    try:
        content = json.loads(answer)
        numbers, target = content["numbers"], content["target"]
        if set(content) == {"numbers", "target"} and all(type(n) is int for n in [*numbers, target]) and numbers:
            return tuple(sorted(numbers)), target
    except (ValueError, KeyError, TypeError):
        pass
    raise DataError(
        f"answer {answer[:100]!r} is not one of the countdown task. "
        'Write JSON with whole numbers: {"numbers": [3, 5, 7], "target": 22}.'
    )


class Countdown(Task):
    """An expression that uses each number once and reaches the target."""

    type: Literal["countdown"] = "countdown"
    version: ClassVar[str] = "1"
    answers: ClassVar[str] = 'JSON: {"numbers": [3, 5, 7], "target": 22}'

    def verify(self, answer: str, completion: str) -> Verdict:
        """Check that the completion's final answer uses exactly the numbers of ``answer`` and reaches its target."""
        numbers, target = parse_answer(answer)
        expression = parse_expression(final_answer(completion))
        if expression is None:
            return Verdict(correct=False, answer=None)
        correct = expression.value == target and tuple(sorted(expression.numbers)) == numbers
        return Verdict(correct=correct, answer=expression.text)

    def check_answer(self, answer: str) -> None:
        """It must be of the form that :func:`parse_answer` reads."""
        parse_answer(answer)
