"""Diversity against definitions worked by hand, and a quadratic self-BLEU."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from progrpo.evaluation.diversity import distinct_ngram_frac, self_bleu, solution_path, words


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        # the wording does not matter, the expressions and their order do
        ("First 3 + 4 = 7, then 7*2 = 14.", "We get $3+4=7$ and so $7 \\times 2 = 14$", True),
        ("3+4=7 then 7*2=14", "7*2=14 then 3+4=7", False),
        ("\\frac{1}{2} + x = 3", "(1)/(2)+x=3", True),
        ("3+4", "4+3", False),
        ("3+4=7. Again: 3 + 4 = 7", "3+4=7", True),
        # without an expression the words decide
        ("The answer is Paris!", "the answer is paris", True),
        ("Paris", "London", False),
        # names, comments, types and docstrings of code do not matter
        (
            "```python\ndef f(x: int) -> int:\n    '''Add.'''\n    y = x + 1  # one more\n    return y\n```",
            "Here:\n```python\ndef g(a):\n    b = a + 1\n    return b\n```",
            True,
        ),
        ("```python\nfor i in range(3):\n    print(i)\n```", "```python\nfor j in range(3):\n    print(j)\n```", True),
        ("```python\nprint(max(a))\n```", "```python\nprint(min(a))\n```", False),
        ("```python\nprint [\n```", "```python\nprint (\n```", True),  # neither parses; no expression; equal words
    ],
)
def test_solution_paths(one: str, other: str, same: bool) -> None:
    assert (solution_path(one) == solution_path(other)) is same


@pytest.mark.parametrize("text", ["", "```python\n\0\n```", "```python\n" + "(" * 5000 + "\n```", "\ud800", "=" * 9999])
def test_any_text_has_a_path(text: str) -> None:
    assert len(solution_path(text)) == 16


def test_distinct_ngrams_by_hand() -> None:
    # "a b c d e" has abcd, bcde; "a b c d" has abcd again: 2 of 3 differ
    assert distinct_ngram_frac([list("abcde"), list("abcd")]) == pytest.approx(2 / 3)
    assert distinct_ngram_frac([list("abc")]) is None


def _bleu(text: list[str], references: list[list[str]]) -> float:
    """Sentence BLEU-4 by its definition, precisions of 2 ... 4 words smoothed by one."""
    logs = []
    for n in range(1, min(4, len(text)) + 1):
        grams = Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))
        most = Counter()
        for reference in references:
            most |= Counter(tuple(reference[i : i + n]) for i in range(len(reference) - n + 1))
        matched, total = (grams & most).total(), grams.total()
        if n == 1 and matched == 0:
            return 0.0
        logs.append(math.log((matched + (n > 1)) / (total + (n > 1))))
    if not logs:
        return 0.0
    nearest = min((abs(len(r) - len(text)), len(r)) for r in references)[1]
    return math.exp(sum(logs) / len(logs)) * (1.0 if len(text) >= nearest else math.exp(1 - nearest / len(text)))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=9), min_size=2, max_size=7))
def test_self_bleu_is_the_mean_over_all_pairs(texts: list[list[str]]) -> None:
    expected = [_bleu(text, texts[:i] + texts[i + 1 :]) for i, text in enumerate(texts)]
    assert self_bleu(texts) == pytest.approx(sum(expected) / len(texts))


def test_self_bleu_of_equal_and_of_disjoint_texts() -> None:
    assert self_bleu([list("abcde")] * 3) == 1.0
    assert self_bleu([list("abcde"), list("vwxyz")]) == 0.0
    assert self_bleu([list("abcde")]) is None
    assert self_bleu([[], []]) == 1.0


def test_words() -> None:
    assert words("x = 3+4, so 7!") == ["x", "=", "3", "+", "4", ",", "so", "7", "!"]
