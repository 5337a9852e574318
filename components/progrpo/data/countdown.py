"""The phrased three-number task: reach a target with three numbers, each used exactly once.

Small enough for a tiny model, yet every problem has several right answers, so it shows whether training keeps them.
Prompts are phrased in words, so that a model trained on them finds them about as predictable as its answers.

Which problems are held out is fixed, whatever the seed: the embedded checkpoint was fitted to the others only.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from progrpo.errors import DataError

MAX_NUMBER = 9
MAX_TARGET = 60
NUM_HELD_OUT = 384
"""Problems never used for training. Evaluation draws from these."""

PHRASINGS = (
    "use the numbers {numbers} to make {target} :",
    "make {target} from the numbers {numbers} :",
    "with {numbers} given reach the target {target} :",
    "the target is {target} and the numbers {numbers} :",
)

_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
}


@dataclass(frozen=True, order=True)
class CountdownProblem:
    """Three numbers in ascending order and the target; order and phrasing of a prompt do not make another problem."""

    numbers: tuple[int, int, int]
    target: int

    @property
    def answer(self) -> str:
        """The answer column: all the verifier needs, as JSON."""
        return json.dumps({"numbers": list(self.numbers), "target": self.target}, separators=(",", ":"))

    def prompts(self) -> tuple[str, ...]:
        """Every prompt of this problem: each phrasing with each order of the numbers."""
        orders = sorted(set(itertools.permutations(self.numbers)))
        return tuple(
            phrasing.format(numbers=" ".join(map(str, order)), target=self.target)
            for phrasing in PHRASINGS
            for order in orders
        )


def expressions(numbers: tuple[int, int, int]) -> Iterator[tuple[str, int]]:
    """Yield every expression of at most seven tokens that uses each number once, and its value.

    Bare, or with one pair of parentheses around two neighbours, needed or not.
    """
    for a, b, c in sorted(set(itertools.permutations(numbers))):
        for (first, f), (second, g) in itertools.product(_OPERATORS.items(), repeat=2):
            left, right = g(f(a, b), c), f(a, g(b, c))
            yield f"{a}{first}{b}{second}{c}", right if second == "*" else left
            yield f"({a}{first}{b}){second}{c}", left
            yield f"{a}{first}({b}{second}{c})", right


def right_answers(problem: CountdownProblem) -> tuple[str, ...]:
    """Return every right answer of at most seven tokens, sorted, without whitespace."""
    return tuple(sorted({text for text, value in expressions(problem.numbers) if value == problem.target}))


@lru_cache(maxsize=1)
def all_problems() -> tuple[CountdownProblem, ...]:
    """Return every problem that has an answer, sorted."""
    digits = range(1, MAX_NUMBER + 1)
    return tuple(
        CountdownProblem((a, b, c), target)
        for a, b, c in itertools.combinations_with_replacement(digits, 3)
        for target in sorted({value for _, value in expressions((a, b, c)) if 1 <= value <= MAX_TARGET})
    )


@lru_cache(maxsize=1)
def split_problems() -> tuple[tuple[CountdownProblem, ...], tuple[CountdownProblem, ...]]:
    """Return the problems for training and those held out: the same for every seed, version and machine."""
    by_digest = sorted(all_problems(), key=lambda problem: hashlib.sha256(problem.answer.encode()).digest())
    return tuple(sorted(by_digest[NUM_HELD_OUT:])), tuple(sorted(by_digest[:NUM_HELD_OUT]))


def generate(num_train: int, num_eval: int, seed: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Draw prompts and answers for both splits.

    Args:
        num_train: prompts for training, all different; a problem may come back in another phrasing or order.
        num_eval: held-out problems, each in one phrasing and order.
        seed: of the draw. It does not move a problem from one split to the other.

    Returns:
        (prompt, answer) pairs of the training split and of the held-out split.

    Raises:
        DataError: more asked for than there is.
    """
    training, held_out = split_problems()
    prompts = [(prompt, problem.answer) for problem in training for prompt in problem.prompts()]
    for name, asked, available in (("num_train", num_train, len(prompts)), ("num_eval", num_eval, len(held_out))):
        if asked > available:
            raise DataError(f"countdown: {name} is {asked}, but the task has {available}. Ask for at most {available}.")
    rng = random.Random(seed)
    evaluation = [(rng.choice(problem.prompts()), problem.answer) for problem in rng.sample(held_out, num_eval)]
    return rng.sample(prompts, num_train), evaluation
