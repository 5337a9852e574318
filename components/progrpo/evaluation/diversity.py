"""How different the completions of one problem are: solution paths, n-grams, self-BLEU.

All of it is read off the text, so it can be computed again from ``samples.parquet`` and does not depend on a tokenizer.
"""

from __future__ import annotations

import hashlib
import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice

from progrpo.rewards.code.program import python_blocks, syntax_tree

NGRAM = 4
_WORD = re.compile(r"\w+|[^\w\s]")
_LATEX = (
    (re.compile(r"\\(?:left|right|displaystyle|,|;|!|quad|text\w*|mathrm|boxed)\b|\\[,;!]|\$"), " "),
    (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"(\1)/(\2)"),
    (re.compile(r"\\(?:times|cdot)\b|[×·]"), "*"),
    (re.compile(r"\\div\b|÷"), "/"),
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"\*\*"), "^"),
)
_OPERAND = r"[\\\w.(){}\[\]]+"
_EXPRESSION = re.compile(rf"{_OPERAND}(?:\s*[-+*/^=<>]+\s*{_OPERAND})+")


def solution_path(completion: str) -> str:
    """Return a digest, 16 hexadecimal characters, that is equal for completions which go the same way.

    - A fenced Python block that parses: its syntax tree, without comments, docstrings and the choice of names.
    - Else the expressions in the order they appear, without spaces, LaTeX layout, and repetitions.
    - Else the words, in lower case, without punctuation.

    Ours: there is no agreed definition. Two derivations that differ in wording only are one path; two that differ in
    the order of their steps are two.
    """
    return hashlib.sha256(_path(completion).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _path(completion: str) -> str:
    for block in reversed(python_blocks(completion)):
        if (tree := syntax_tree(block)) is not None:
            return "code:" + tree
    text = completion
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    if expressions := dict.fromkeys(re.sub(r"\s+", "", found).rstrip(".") for found in _EXPRESSION.findall(text)):
        return "math:" + ";".join(expressions)
    return "words:" + " ".join(re.findall(r"\w+", completion.lower()))


def words(text: str) -> list[str]:
    """Split a text into words and punctuation marks, the units of n-grams here."""
    return _WORD.findall(text)


def distinct_ngram_frac(texts: Sequence[Sequence[str]]) -> float | None:
    """Return distinct over all 4-grams of the texts together ("distinct-n", Li et al. 2016, arXiv:1510.03055).

    Args:
        texts: the words of each completion of a problem.

    Returns:
        a fraction; None: no text has 4 words.
    """
    grams = Counter(gram for text in texts for gram in _ngrams(text, NGRAM))
    return len(grams) / grams.total() if grams else None


def self_bleu(texts: Sequence[Sequence[str]]) -> float | None:
    """Return the mean over the texts of BLEU-4 with all others as references: 1 where all are equal (arXiv:1802.01886).

    Precisions of 2 ... 4 words are smoothed by one (Lin and Och 2004), since short texts share none; orders longer
    than a text are left out. What is clipped against is the most that any one other text has of an n-gram.

    Args:
        texts: the words of each completion of a problem.

    Returns:
        between 0 and 1; None: fewer than two texts.
    """
    if len(texts) < 2:
        return None
    copies = Counter(map(tuple, texts))
    # A text with a copy is its own reference: BLEU 1. Only those that occur once need counting.
    single = [text for text, count in copies.items() if count == 1]
    score = float(len(texts) - len(single))
    lengths = sorted(len(text) for text in texts)
    counts = [[Counter(_ngrams(text, n)) for n in range(1, NGRAM + 1)] for text in copies]
    most = [_two_most(of_order) for of_order in zip(*counts, strict=True)]
    for index, text in enumerate(copies):
        if copies[text] > 1:
            continue
        logs = []
        for n in range(1, min(NGRAM, len(text)) + 1):
            matched = 0
            for gram, count in counts[index][n - 1].items():
                first, owner, second = most[n - 1][gram]
                matched += min(count, second if owner == index else first)
            smooth = int(n > 1)
            total = len(text) - n + 1 + smooth
            logs.append(math.log((matched + smooth) / total) if matched + smooth else -math.inf)
        if logs:
            score += math.exp(sum(logs) / len(logs)) * _brevity(len(text), lengths)
    return score / len(texts)


def _ngrams(text: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(islice(text, start, None) for start in range(n)), strict=False)


def _two_most(counters: Iterable[Counter[tuple[str, ...]]]) -> dict[tuple[str, ...], tuple[int, int, int]]:
    """Return for each n-gram the most any text has, which text that is, and the most any other has."""
    most: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for index, counter in enumerate(counters):
        for gram, count in counter.items():
            first, owner, second = most.get(gram, (0, -1, 0))
            most[gram] = (count, index, first) if count > first else (first, owner, max(second, count))
    return most


def _brevity(length: int, lengths: Sequence[int]) -> float:
    """BLEU's penalty of a text shorter than the reference nearest in length; ``lengths`` sorted, its own included."""
    place = bisect_left(lengths, length)
    others = [lengths[i] for i in (place - 1, place + 1) if 0 <= i < len(lengths)]
    nearest = min(others, key=lambda other: (abs(other - length), other))
    return 1.0 if length >= nearest else math.exp(1 - nearest / length)
