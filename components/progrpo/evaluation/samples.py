"""Completions as ``samples.parquet`` keeps them, and the bins of positions their entropy is summed over."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pyarrow as pa

from progrpo.generation.engine import Scores

MAX_BINS = 32


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
"""Columns of ``samples.parquet``: a row is one completion of one problem.

Sums and confidence are at the temperature of the evaluation's ``score_temperature``, in nats, over all ``num_tokens``
tokens, EOS included.

- ``problem_id``: of the problem; ``sample_index``: 0 ... n - 1. The two name the completion's random numbers.
- ``completion``: the text, without special tokens; ``num_tokens``: tokens sampled.
- ``finish_reason``: ``stop``, or ``length``: cut off.
- ``answer``: the answer after the verifier's normalisation; null: none found.
- ``correct``: false also where it is not scored; ``scored``: false: the verifier failed or ran out of time.
- ``logprob_sum``, ``entropy_sum``: of the tokens' log-probabilities, of the full softmax's entropies.
- ``answer_confidence``: c(o|q) of ProGRPO, in (0, 1].
- ``position_entropy``: the entropy's sum over each bin of positions that the completion reaches.
- ``solution_path``: equal for completions that go the same way; see :mod:`progrpo.evaluation.diversity`.
"""


def position_edges(max_tokens: int) -> list[int]:
    """Return the edges of the bins of positions: each position alone at first, then growing by a constant factor."""
    edges = np.unique(np.round(np.geomspace(1, max_tokens, MAX_BINS)).astype(int)) if max_tokens > MAX_BINS else None
    return [0, *(range(1, max_tokens + 1) if edges is None else edges.tolist())]


def token_columns(scores: Sequence[Scores], edges: Sequence[int]) -> dict[str, list[float] | list[list[float]]]:
    """Return the four columns of B completions that are taken from their tokens, over the tokens of all in one pass.

    Args:
        scores: of each completion, of one token or more.
        edges: of the bins of positions.

    Raises:
        ValueError: a completion without a token.
    """
    lengths = np.array([len(score.logprobs) for score in scores])
    if not lengths.all():
        raise ValueError(f"completion {int(lengths.argmin())} of {len(lengths)} has no token, not even EOS.")
    firsts = np.cumsum(lengths) - lengths
    # In float64 before reduceat: it would cast in blocks, and a sum would depend on what stands before it.
    logprobs = np.concatenate([score.logprobs for score in scores]).astype(np.float64)
    entropies = np.concatenate([score.entropies for score in scores]).astype(np.float64)

    tails = np.array([_tail_size(length) for length in lengths.tolist()])
    ascending = np.append(logprobs[np.lexsort((logprobs, np.repeat(firsts, lengths)))], 0.0)
    tail_sums = np.add.reduceat(ascending, np.stack([firsts, firsts + tails], axis=1).ravel())[::2]

    starts = np.array(edges[:-1])
    bins = np.searchsorted(starts, lengths)
    ends = np.cumsum(bins).tolist()
    binned = np.add.reduceat(entropies, np.concatenate([f + starts[:b] for f, b in zip(firsts, bins, strict=True)]))
    sums = binned.tolist()
    return {
        "logprob_sum": np.add.reduceat(logprobs, firsts).tolist(),
        "entropy_sum": np.add.reduceat(entropies, firsts).tolist(),
        "answer_confidence": np.exp(tail_sums / tails).tolist(),
        "position_entropy": [sums[start:end] for start, end in zip([0, *ends], ends, strict=False)],
    }


@cache
def _tail_size(num_tokens: int) -> int:
    from progrpo.algorithms.confidence import tail_size

    return tail_size(num_tokens)
