"""A completion as ``samples.parquet`` keeps it, and the bins of positions its entropy is summed over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa

from progrpo.generation.engine import FinishReason

MAX_BINS = 32


@dataclass(frozen=True)
class Sample:
    """One completion of one problem: a row of ``samples.parquet``, whose columns these fields are.

    Sums and confidence are at the temperature of the evaluation's ``score_temperature``, in nats, over all
    ``num_tokens`` tokens, EOS included.

    Attributes:
        problem_id: of the problem.
        sample_index: 0 ... n - 1; with the problem it names the completion's random numbers.
        completion: the text, without special tokens.
        answer: the answer after the verifier's normalisation; None: none found.
        correct: false also where it is not scored.
        scored: false: the verifier failed or ran out of time.
        num_tokens: tokens sampled.
        finish_reason: ``length``: cut off.
        logprob_sum: sum of the tokens' log-probabilities.
        entropy_sum: sum of the full softmax's entropies.
        answer_confidence: c(o|q) of ProGRPO, in (0, 1].
        position_entropy: the entropy's sum over each bin of positions that the completion reaches.
        solution_path: equal for completions that go the same way; see :mod:`progrpo.evaluation.diversity`.
    """

    problem_id: str
    sample_index: int
    completion: str
    answer: str | None
    correct: bool
    scored: bool
    num_tokens: int
    finish_reason: FinishReason
    logprob_sum: float
    entropy_sum: float
    answer_confidence: float
    position_entropy: Sequence[float]
    solution_path: str


SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        ("sample_index", pa.int32()),
        ("completion", pa.string()),
        ("answer", pa.string()),
        ("correct", pa.bool_()),
        ("scored", pa.bool_()),
        ("num_tokens", pa.int32()),
        ("finish_reason", pa.string()),
        ("logprob_sum", pa.float32()),
        ("entropy_sum", pa.float32()),
        ("answer_confidence", pa.float32()),
        ("position_entropy", pa.list_(pa.float32())),
        ("solution_path", pa.string()),
    ]
)
assert SCHEMA.names == [field.name for field in fields(Sample)]


def position_edges(max_tokens: int) -> list[int]:
    """Return the edges of the bins of positions: each position alone at first, then growing by a constant factor."""
    edges = np.unique(np.round(np.geomspace(1, max_tokens, MAX_BINS)).astype(int)) if max_tokens > MAX_BINS else None
    return [0, *(range(1, max_tokens + 1) if edges is None else edges.tolist())]
