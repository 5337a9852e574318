"""How different the completions of one problem are: solution paths, n-grams, self-BLEU.

All of it is read off the text, so it can be computed again from ``samples.parquet`` and does not depend on a tokenizer.
"""

from __future__ import annotations

import hashlib
import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

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
_LAYOUT = re.compile(r"[\\$×·÷−–]|\*\*")  # without any of these nothing of _LATEX is found
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
    for pattern, replacement in _LATEX if _LAYOUT.search(text) else ():
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
    grams = {gram for text in set(map(tuple, texts)) for gram in zip(*(text[i:] for i in range(NGRAM)), strict=False)}
    total = sum(max(0, len(text) - NGRAM + 1) for text in texts)
    return len(grams) / total if total else None


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
    lengths = np.array([len(text) for text in copies])
    orders = np.arange(1, NGRAM + 1)
    total = lengths - orders[:, None] + 1  # n-grams of each order and text, [4, U]
    smooth = (orders > 1).astype(int)[:, None]
    with np.errstate(divide="ignore"):  # no word in common: log 0, BLEU 0
        logs = np.log((_matched(list(copies), lengths) + smooth) / np.maximum(total + smooth, 1))
    scores = np.exp(np.where(total > 0, logs, 0.0).sum(axis=0) / np.clip(lengths, 1, NGRAM)).tolist()
    sorted_lengths, score = sorted(len(text) for text in texts), 0.0
    for of_text, (text, count) in zip(scores, copies.items(), strict=True):
        if count > 1:
            score += count
        elif text:
            score += of_text * _brevity(len(text), sorted_lengths)
    return score / len(texts)


def _matched(texts: Sequence[Sequence[str]], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.number]:
    """Return how many n-grams of 1 ... 4 words each of the U distinct texts shares, clipped, with any other: [4, U]."""
    numbers: dict[str, int] = {}
    word = np.array([numbers.setdefault(word, len(numbers)) for text in texts for word in text], dtype=np.int64)
    text = np.repeat(np.arange(len(texts)), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(word))  # words to the end of the text, this included
    gram, start, found, num_grams = word, np.arange(len(word)), [], 0
    for order in range(1, NGRAM + 1):
        if order > 1:
            going_on = left[start] >= order
            start = start[going_on]
            gram = np.unique(gram[going_on] * len(numbers) + word[start + order - 1], return_inverse=True)[1]
        found.append((gram + num_grams) * len(texts) + text[start])
        num_grams += len(word)
    # The occurrences of each n-gram in each text, n-gram by n-gram.
    pair, count = np.unique(np.concatenate(found), return_counts=True)
    of_gram, of_text = np.divmod(pair, len(texts))
    # The most that any other text has: that of the text with the most is the second most.
    ranked = np.append(np.lexsort((-count, of_gram)), -1)
    first = np.searchsorted(of_gram, of_gram)  # where each n-gram begins, in either order
    second = ranked[first + 1]
    others = np.where((second >= 0) & (of_gram[second] == of_gram), count[second], 0)
    most = np.where(ranked[first] == np.arange(len(pair)), others, count[ranked[first]])
    order_and_text = of_gram // max(len(word), 1) * len(texts) + of_text
    return np.bincount(order_and_text, np.minimum(count, most), NGRAM * len(texts)).reshape(NGRAM, len(texts))


def _brevity(length: int, lengths: Sequence[int]) -> float:
    """BLEU's penalty of a text shorter than the reference nearest in length; ``lengths`` sorted, its own included."""
    place = bisect_left(lengths, length)
    others = [lengths[i] for i in (place - 1, place + 1) if 0 <= i < len(lengths)]
    nearest = min(others, key=lambda other: (abs(other - length), other))
    return 1.0 if length >= nearest else math.exp(1 - nearest / length)
