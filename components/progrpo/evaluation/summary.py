"""From completions to the numbers of ``evaluation.json``: what is kept of each problem, and every metric's estimator.

P problems, n completions a problem.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from progrpo.evaluation.bootstrap import Interval, bootstrap_mean, bootstrap_ratio
from progrpo.evaluation.pass_at_k import pass_at_k
from progrpo.generation.engine import FinishReason
from progrpo.metrics import pass_at


class _Bootstrap(TypedDict):
    num_resamples: int
    level: float
    seed: int


BOOTSTRAP = _Bootstrap(num_resamples=2000, level=0.95, seed=0)


@dataclass(frozen=True)
class Sample:
    """One completion of one problem: a row of ``samples.parquet``, whose columns these fields are.

    ``logprob_sum`` and ``entropy_sum`` are at temperature 1, in nats, summed over the ``num_tokens`` tokens, EOS
    included.
    """

    problem_id: str
    sample_index: int
    completion: str
    answer: str | None
    correct: bool
    num_tokens: int
    logprob_sum: float
    entropy_sum: float
    finish_reason: FinishReason


class Tally:
    """Sums over the completions of each problem; all that is kept of them in memory."""

    def __init__(self, problem_ids: Iterable[str], num_samples: int) -> None:
        self.num_samples = num_samples
        self._index = {problem_id: p for p, problem_id in enumerate(problem_ids)}
        num_problems = len(self._index)
        self._num_correct, self._num_tokens, self._num_truncated = np.zeros((3, num_problems), np.int64)
        self._logprob_sum, self._entropy_sum = np.zeros((2, num_problems))
        self._answers: list[set[str | None]] = [set() for _ in range(num_problems)]

    def add(self, sample: Sample) -> None:
        """Count one completion."""
        p = self._index[sample.problem_id]
        self._num_correct[p] += sample.correct
        self._num_tokens[p] += sample.num_tokens
        self._num_truncated[p] += sample.finish_reason == "length"
        # as the file keeps them, so that the metrics can be recomputed from it
        self._logprob_sum[p] += np.float32(sample.logprob_sum)
        self._entropy_sum[p] += np.float32(sample.entropy_sum)
        if sample.correct:
            self._answers[p].add(sample.answer)

    @property
    def num_correct(self) -> int:
        """Correct completions so far."""
        return int(self._num_correct.sum())

    def metrics(self, ks: Iterable[int]) -> dict[str, Interval]:
        """Return every metric of :data:`progrpo.metrics.EVAL_METRICS` with its interval over problems."""
        n = self.num_samples
        means = {pass_at(k): pass_at_k(n, self._num_correct, k) for k in ks} | {
            "eval/distinct_correct": np.array([len(answers) for answers in self._answers]),
            "eval/completion_tokens": self._num_tokens / n,
            "eval/truncated_frac": self._num_truncated / n,
        }
        ratios = {"eval/entropy": self._entropy_sum, "eval/sampled_nll": -self._logprob_sum}
        return {name: bootstrap_mean(values, **BOOTSTRAP) for name, values in means.items()} | {
            name: bootstrap_ratio(sums, self._num_tokens, **BOOTSTRAP) for name, sums in ratios.items()
        }
