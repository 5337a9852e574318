"""What a comparison needs of an evaluation, problem by problem, read off ``samples.parquet`` without its texts.

P problems in the order of ``problems.parquet``, n completions a problem, B bins of positions, G groups of equal
answers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from progrpo.errors import DataError
from progrpo.evaluation.majority import majority_at_k
from progrpo.evaluation.pass_at_k import g_pass_at_k, mg_pass_at_k, pass_at_k
from progrpo.evaluation.resampling import Array, Bounds, Term

Counts = npt.NDArray[np.int64]
RATE: Bounds = (0.0, 1.0)
_COLUMNS = [
    "problem_id", "answer", "correct", "scored", "num_tokens", "finish_reason", "logprob_sum", "entropy_sum",
    "answer_confidence", "position_entropy", "solution_path",
]  # fmt: skip


@dataclass(frozen=True)
class MetricValues:
    """A metric before it is a number: numerators [P] or [P, K], denominators (None: all 1), bounds of a ratio."""

    numerators: Array
    denominators: Array | None = None
    bounds: Bounds | None = None

    @property
    def all_denominators(self) -> Array:
        """The denominators, also where all are 1."""
        return np.ones(self.numerators.shape) if self.denominators is None else self.denominators

    @property
    def value(self) -> npt.NDArray[np.float64]:
        """The ratio of the sums; nan where all denominators are 0."""
        count = len(self.numerators) if self.denominators is None else self.denominators.sum(0)
        with np.errstate(invalid="ignore"):
            return np.asarray(self.numerators.sum(0) / count)


@dataclass(frozen=True)
class ProblemTable:
    """Sums over the completions of each problem, and what of them cannot be summed."""

    problem_ids: tuple[str, ...]
    num_samples: int
    position_edges: tuple[int, ...]
    correct_Pn: npt.NDArray[np.bool_]
    num_correct_P: Counts
    confidence_Pn: npt.NDArray[np.float32]
    tokens_Pn: npt.NDArray[np.int32]
    num_tokens_P: Counts
    truncated_P: Counts
    unscored_P: Counts
    nll_P: Array
    entropy_P: Array
    entropy_correct_P: Array
    position_entropy_PB: Array
    position_entropy_correct_PB: Array
    wrong_PG: Counts
    right_PG: Counts
    no_answer_P: Counts
    distinct_paths_P: Counts
    self_bleu_P: Array
    distinct_ngram_frac_P: Array
    difficulty_P: Array
    _majority: dict[int, Array] = field(default_factory=dict, repr=False, compare=False)  # by k; seconds to compute

    def values(self, name: str) -> MetricValues:
        """Return a metric of :data:`progrpo.metrics.EVAL_METRICS`, with k filled in, problem by problem.

        Raises:
            ConfigError: a k above n.
            DataError: no such metric.
        """
        metric, _, k = name.removeprefix("eval/").rpartition("_at_")
        n, correct_P = self.num_samples, self.num_correct_P
        if k.isdecimal():
            if metric == "pass":
                return MetricValues(pass_at_k(n, correct_P, int(k)), None, RATE)
            if metric == "majority":
                if int(k) not in self._majority:
                    self._majority[int(k)] = majority_at_k(n, self.wrong_PG, self.right_PG, int(k))
                return MetricValues(self._majority[int(k)], None, RATE)
            if metric == "mg_pass":
                return MetricValues(mg_pass_at_k(n, correct_P, int(k)), None, RATE)
        plain = {
            "eval/entropy": lambda: MetricValues(self.entropy_P, _floats(self.num_tokens_P)),
            "eval/entropy_correct": lambda: MetricValues(self.entropy_correct_P, self._tokens(correct=True)),
            "eval/entropy_incorrect": lambda: MetricValues(
                self.entropy_P - self.entropy_correct_P, self._tokens(correct=False)
            ),
            "eval/sampled_nll": lambda: MetricValues(self.nll_P, _floats(self.num_tokens_P)),
            "eval/answer_entropy": lambda: MetricValues(self._answer_entropy()),
            "eval/distinct_correct": lambda: MetricValues(_floats((self.right_PG > 0).sum(1))),
            "eval/distinct_paths": lambda: MetricValues(_floats(self.distinct_paths_P)),
            "eval/self_bleu": lambda: _where_known(self.self_bleu_P),
            "eval/distinct_ngram_frac": lambda: _where_known(self.distinct_ngram_frac_P),
            "eval/completion_tokens": lambda: MetricValues(self.num_tokens_P / n),
            "eval/truncated_frac": lambda: MetricValues(self.truncated_P / n, None, RATE),
            "eval/unscored_frac": lambda: MetricValues(self.unscored_P / n, None, RATE),
            "eval/answer_confidence": lambda: MetricValues(self.confidence_Pn.mean(1, dtype=np.float64)),
        }
        if name not in plain:
            raise DataError(f"there is no metric {name!r}; allowed are {', '.join(plain)} and those with a k.")
        return plain[name]()

    def curve(self, name: str, ks: Sequence[int] | None = None, tau: float = 0.5) -> MetricValues:
        """Return a curve's points, [P, K].

        Args:
            name: ``pass_at_k``, ``majority_at_k``, ``g_pass_at_k``, or ``entropy_by_position`` with nothing,
                ``/correct`` or ``/incorrect`` behind it, whose K are the bins of :attr:`position_edges`.
            ks: of the first three; absent: :func:`curve_ks`.
            tau: of ``g_pass_at_k``.

        Raises:
            DataError: no such curve.
        """
        n = self.num_samples
        ks = curve_ks(n) if ks is None else ks
        if name in ("pass_at_k", "majority_at_k"):
            columns = [self.values(f"eval/{name.removesuffix('k')}{k}").numerators for k in ks]
            return MetricValues(np.stack(columns, axis=1), None, RATE)
        if name == "g_pass_at_k":
            columns = [g_pass_at_k(n, self.num_correct_P, k, tau) for k in ks]
            return MetricValues(np.stack(columns, axis=1), None, RATE)
        which = {"": None, "/correct": True, "/incorrect": False}
        metric, slash, kind = name.partition("/")
        if metric != "entropy_by_position" or slash + kind not in which:
            raise DataError(f"there is no curve {name!r}.")
        correct = which[slash + kind]
        sums = {
            None: self.position_entropy_PB,
            True: self.position_entropy_correct_PB,
            False: self.position_entropy_PB - self.position_entropy_correct_PB,
        }
        return MetricValues(sums[correct], self._tokens_in_bins(correct))

    def _tokens(self, *, correct: bool) -> Array:
        return _floats(np.where(self.correct_Pn == correct, self.tokens_Pn, 0).sum(1))

    def _tokens_in_bins(self, correct: bool | None) -> Array:
        tokens_Pn = self.tokens_Pn if correct is None else np.where(self.correct_Pn == correct, self.tokens_Pn, 0)
        bins = zip(self.position_edges[:-1], self.position_edges[1:], strict=True)
        return np.stack([_floats(np.clip(tokens_Pn - low, 0, high - low).sum(1)) for low, high in bins], axis=1)

    def _answer_entropy(self) -> Array:
        share_PG = np.concatenate([self.wrong_PG, self.right_PG, self.no_answer_P[:, None]], 1) / self.num_samples
        logs_PG = np.log(share_PG, where=share_PG > 0, out=np.zeros_like(share_PG))
        entropy_P: Array = np.maximum(-(share_PG * logs_PG).sum(1), 0.0)
        return entropy_P


def term(tables: Sequence[ProblemTable], names: Sequence[str], sign: float = 1.0) -> Term:
    """Return an arm's part in a statistic of several metrics, from the tables of its seeds."""
    values = [[table.values(name) for name in names] for table in tables]
    num_SPK = np.stack([np.stack([each.numerators for each in row], axis=1) for row in values])
    den_SPK = np.stack([np.stack([each.all_denominators for each in row], axis=1) for row in values])
    return Term(sign, num_SPK, den_SPK)


def curve_ks(num_samples: int) -> list[int]:
    """Return the k of a plotted curve: each up to 64, beyond that enough for a smooth line, and n itself."""
    dense = range(1, min(num_samples, 64) + 1)
    sparse = np.geomspace(64, num_samples, 32) if num_samples > 64 else ()
    return sorted({*dense, *(round(k) for k in sparse)})


def read_table(directory: Path) -> ProblemTable:
    """Read the table of an evaluation.

    Raises:
        DataError: files that cannot be read, lack a column, or disagree with each other.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        document = json.loads((directory / "evaluation.json").read_bytes())
        edges = [int(edge) for edge in document["position_edges"]]
        problems = pq.read_table(
            directory / "problems.parquet", columns=["problem_id", "difficulty", "self_bleu", "distinct_ngram_frac"]
        )
        samples = pq.read_table(directory / "samples.parquet", columns=_COLUMNS)
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise DataError(f"{directory} is not an evaluation of this version: {error}. Evaluate again.") from None
    return build_table(problems, samples, edges, str(directory))


def build_table(problems: Any, samples: Any, edges: Sequence[int], source: str = "the evaluation") -> ProblemTable:
    """Return the table of problems and samples as Arrow tables.

    Args:
        problems: problem_id, difficulty, self_bleu, distinct_ngram_frac.
        samples: the columns of :data:`progrpo.evaluation.samples.SCHEMA` without texts, ordered by problem.
        edges: of the bins of positions.
        source: named in errors.

    Raises:
        DataError: completions that are not n for each problem in the order of the problems.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    ids = problems["problem_id"].to_pylist()
    num_problems = len(ids)
    n = len(samples) // max(num_problems, 1)
    owners = pc.index_in(samples["problem_id"], pa.array(ids)).to_numpy()
    if not num_problems or not np.array_equal(owners, np.repeat(np.arange(num_problems), n)) or n == 0:
        raise DataError(f"{source}: samples.parquet does not have n completions of each problem, in order.")

    def column(name: str, dtype: npt.DTypeLike) -> Any:
        return samples[name].to_numpy().astype(dtype).reshape(num_problems, n)

    correct_Pn, tokens_Pn = column("correct", np.bool_), column("num_tokens", np.int32)
    entropy_Pn = column("entropy_sum", np.float64)
    lists = samples["position_entropy"].combine_chunks()
    position_PB, position_correct_PB = _sum_lists(lists, owners, correct_Pn.ravel(), num_problems, len(edges) - 1)
    wrong_PG, right_PG, no_answer_P = _count_answers(samples, owners, num_problems)
    paths = pa.table({"p": owners, "path": samples["solution_path"]}).filter(samples["correct"])
    distinct = paths.group_by("p").aggregate([("path", "count_distinct")])
    distinct_paths_P = np.zeros(num_problems, np.int64)
    distinct_paths_P[distinct["p"].to_numpy()] = distinct["path_count_distinct"].to_numpy()

    def known(name: str) -> Array:
        return np.array(problems[name].to_numpy(), np.float64)  # null is nan

    return ProblemTable(
        problem_ids=tuple(ids),
        num_samples=n,
        position_edges=tuple(edges),
        correct_Pn=correct_Pn,
        num_correct_P=correct_Pn.sum(1),
        confidence_Pn=column("answer_confidence", np.float32),
        tokens_Pn=tokens_Pn,
        num_tokens_P=tokens_Pn.sum(1, dtype=np.int64),
        truncated_P=pc.equal(samples["finish_reason"], "length").to_numpy().reshape(num_problems, n).sum(1),
        unscored_P=n - column("scored", np.bool_).sum(1),
        nll_P=-column("logprob_sum", np.float64).sum(1),
        entropy_P=entropy_Pn.sum(1),
        entropy_correct_P=np.where(correct_Pn, entropy_Pn, 0.0).sum(1),
        position_entropy_PB=position_PB,
        position_entropy_correct_PB=position_correct_PB,
        wrong_PG=wrong_PG,
        right_PG=right_PG,
        no_answer_P=no_answer_P,
        distinct_paths_P=distinct_paths_P,
        self_bleu_P=known("self_bleu"),
        distinct_ngram_frac_P=known("distinct_ngram_frac"),
        difficulty_P=known("difficulty"),
    )


def _sum_lists(
    lists: Any, owners: Counts, correct: npt.NDArray[np.bool_], num_problems: int, num_bins: int
) -> tuple[Array, Array]:
    """Sum lists of up to B numbers over the completions of each problem: of all, and of correct ones, [P, B]."""
    offsets = lists.offsets.to_numpy()
    lengths = np.diff(offsets)
    values = lists.values.to_numpy()[offsets[0] : offsets[-1]].astype(np.float64)
    bins = np.arange(len(values)) - np.repeat(offsets[:-1] - offsets[0], lengths)
    cells = np.repeat(owners.astype(np.int64) * num_bins, lengths) + bins
    of_correct = np.where(np.repeat(correct, lengths), values, 0.0)

    def total(weights: Array) -> Array:
        return np.bincount(cells, weights, num_problems * num_bins).astype(np.float64).reshape(num_problems, num_bins)

    return total(values), total(of_correct)


def _count_answers(samples: Any, owners: Counts, num_problems: int) -> tuple[Counts, Counts, Counts]:
    """Return how many completions give each wrong answer [P, G], each right one [P, G'], and none [P].

    A right completion without an answer, which a verifier may return, is a right answer all the same.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    answers = pc.if_else(samples["correct"], pc.coalesce(samples["answer"], pa.scalar("")), samples["answer"])
    table = pa.table({"p": owners, "answer": answers, "correct": samples["correct"]})
    groups = table.group_by(["p", "correct", "answer"]).aggregate([("correct", "count")])
    counts = groups["correct_count"].to_numpy()
    place, right = groups["p"].to_numpy(), groups["correct"].to_numpy()
    none = groups["answer"].is_null().to_numpy()
    no_answer_P = np.zeros(num_problems, np.int64)
    no_answer_P[place[none]] = counts[none]
    return (
        _spread(place[~none & ~right], counts[~none & ~right], num_problems),
        _spread(place[right], counts[right], num_problems),
        no_answer_P,
    )


def _spread(place: Counts, counts: Counts, num_problems: int) -> Counts:
    """Lay the counts of each problem side by side, [P, most groups of a problem]."""
    order = np.argsort(place, kind="stable")
    place, counts = place[order], counts[order]
    each = np.bincount(place, minlength=num_problems)
    column = np.arange(len(place)) - np.repeat(np.cumsum(each) - each, each)
    spread_PG = np.zeros((num_problems, max(1, each.max(initial=0))), np.int64)
    spread_PG[place, column] = counts
    return spread_PG


def _floats(values: npt.NDArray[Any]) -> Array:
    return values.astype(np.float64)


def _where_known(values_P: Array) -> MetricValues:
    """The mean over the problems that have a value."""
    known_P = np.isfinite(values_P)
    return MetricValues(np.where(known_P, values_P, 0.0), _floats(known_P))
