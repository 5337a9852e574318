"""What is taken from the tokens of many completions at once is what each one's formula gives."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from progrpo.algorithms.confidence import tail_size
from progrpo.evaluation.samples import position_edges, token_columns
from progrpo.generation.engine import Scores


@given(st.lists(st.integers(1, 70), min_size=1, max_size=12), st.integers(0, 2**32 - 1))
def test_columns_are_those_of_each_completion_alone(lengths: list[int], seed: int) -> None:
    rng, edges = np.random.default_rng(seed), position_edges(70)
    scores = [Scores(*np.float32([-rng.exponential(size=n), rng.exponential(size=n)])) for n in lengths]
    columns = token_columns(scores, edges)
    for i, score in enumerate(scores):
        assert columns["logprob_sum"][i] == pytest.approx(math.fsum(score.logprobs), rel=1e-12)
        assert columns["entropy_sum"][i] == pytest.approx(math.fsum(score.entropies), rel=1e-12)
        tail = sorted(score.logprobs.tolist())[: tail_size(lengths[i])]
        assert columns["answer_confidence"][i] == pytest.approx(math.exp(math.fsum(tail) / len(tail)), rel=1e-12)
        bins = [math.fsum(score.entropies[a:b]) for a, b in pairwise(edges) if a < lengths[i]]
        assert columns["position_entropy"][i] == pytest.approx(bins, rel=1e-12)
        alone = token_columns([score], edges)
        assert {name: column[0] for name, column in alone.items()} == {name: c[i] for name, c in columns.items()}


def test_a_completion_without_a_token_is_refused() -> None:
    empty, one = np.zeros(0, np.float32), np.zeros(1, np.float32)
    with pytest.raises(ValueError, match="completion 1 of 2 has no token"):
        token_columns([Scores(one, one), Scores(empty, empty)], [0, 1])
