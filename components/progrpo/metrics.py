"""Names of every metric, with unit and estimator, and where metrics go.

One name per quantity in ``metrics.jsonl``, ``evaluation.json``, MLflow and the docs. MLflow refuses ``@`` in a name,
hence ``eval/pass_at_8``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from progrpo.algorithms.registry import BUILT_IN

METRICS_NAME = "metrics.jsonl"
"""What a training run's metrics are kept in, beside its checkpoint."""

TRAIN_METRICS: dict[str, str] = {
    "train/reward": "mean reward of the step's rollouts",
    "train/reward_std": "standard deviation of the rewards of the step's rollouts",
    "train/entropy": "mean full-softmax token entropy at the rollout temperature, nats, over completion tokens; "
    "with micro-batches the mean of their means",
    "train/loss": "policy loss",
    "train/grad_norm": "L2 norm of the gradient before clipping",
    "train/learning_rate": "learning rate of the step",
    "train/completion_tokens": "mean completion length, tokens, EOS included",
    "train/truncated_frac": "fraction of completions cut off at the length limit",
    "train/zero_std_frac": "fraction of rollouts in groups whose rewards are all equal",
    "train/clipped_frac": "fraction of completion tokens (loss.ratio sequence: of completions) whose ratio was clipped",
    "train/unscored_frac": "fraction of rollouts that the verifier could not judge; their advantage is 0",
    "train/kl": "mean KL estimate (k3) to the start checkpoint, nats a token; only with kl_beta > 0",
    "train/step_s": "wall time of the step, seconds, rollouts included",
    **{name: meaning for algorithm in BUILT_IN.values() for name, meaning in algorithm.metrics.items()},
    "train/entropy_coef": "coefficient of the entropy bonus; only with entropy_bonus",
    "train/overlong_penalty": "mean length penalty of the rollouts, <= 0; only with overlong_penalty",
    "train/importance_ratio": "mean ratio of the trainer's to vLLM's probability of a rollout; only with vLLM",
    "train/resample/rounds": "times a batch of rollouts sampled again; only with dynamic_sampling, as the next two",
    "train/resample/groups": "groups sampled beyond those of the batch",
    "train/resample/skipped_frac": "fraction of the batch's rollouts left without a signal, which no update sees",
    "perf/logprob_mismatch": "mean absolute difference of the sampler's and the trainer's log-probabilities of the "
    "sampled tokens, under the weights that sampled, nats",
    "perf/tokens_per_s": "prompt and completion tokens of all ranks' rollouts per second of the step",
    "perf/peak_memory_gib": "most memory so far on the first rank, GiB: of the GPU's allocator, else resident",
}

HELDOUT_ENTROPY = "heldout/entropy"
HELDOUT_METRICS: dict[str, str] = {
    "heldout/pass_at_{k}": "Pass@k on held-out problems while training, at the rollout temperature",
    HELDOUT_ENTROPY: "mean full-softmax token entropy at the rollout temperature, nats, over their completion tokens",
}
"""Measured every train.heldout.every steps, and before the first."""

TRAIN_WALL_TIME = "train/wall_time_s"
"""Wall time of the whole train step, seconds, loading and writing included; one value a run."""

PASS_AT_CURVE = "curve/pass_at_k"  # noqa: S105  # no password
"""Pass@k of one evaluation over k, which MLflow shows as a curve: its step is k."""

EVAL_METRICS: dict[str, str] = {
    "eval/pass_at_{k}": "mean over problems of 1 - C(n-c,k)/C(n,k), c correct of n completions; Avg@n is pass_at_1",
    "eval/majority_at_{k}": "probability that the most frequent answer of k completions is right, ties by lot",
    "eval/mg_pass_at_{k}": "mG-Pass@k: mean over tau in (0.5, 1] of the probability that tau k of k are correct",
    "eval/entropy": "mean full-softmax token entropy at the score temperature, nats, over completion tokens",
    "eval/entropy_correct": "eval/entropy over the tokens of correct completions",
    "eval/entropy_incorrect": "eval/entropy over the tokens of incorrect completions",
    "eval/sampled_nll": "minus the mean log-probability of the sampled tokens at the score temperature, nats",
    "eval/answer_entropy": "mean over problems of the entropy of the n answers' empirical distribution, nats",
    "eval/distinct_correct": "mean over problems of the number of distinct correct answers after normalisation",
    "eval/distinct_paths": "mean over problems of the number of distinct solution paths of correct completions",
    "eval/self_bleu": "mean over problems of BLEU-4 of each completion against the others; 1: all equal",
    "eval/distinct_ngram_frac": "mean over problems of distinct over all 4-grams of words of the n completions",
    "eval/completion_tokens": "mean completion length, tokens, EOS included",
    "eval/truncated_frac": "fraction of completions cut off at the length limit",
    "eval/unscored_frac": "fraction of completions the verifier could not judge; they count as incorrect",
    "eval/answer_confidence": "mean c(o|q) over completions: exp of the mean of the 20 % lowest log-probabilities",
}


def pass_at(k: int) -> str:
    """Return the metric key of Pass@k, legal in MLflow: ``eval/pass_at_8``."""
    return f"eval/pass_at_{k}"


def heldout_pass_at(k: int) -> str:
    """Return the metric key of Pass@k while training: ``heldout/pass_at_8``."""
    return f"heldout/pass_at_{k}"


class MetricSink(Protocol):
    """Where a step sends its numbers. Implementations must not raise: metrics never fail training."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of one step."""

    def close(self) -> None:
        """Flush what is buffered."""


class JsonlSink:
    """Append one JSON object a step to a file; flushed each time, so a killed run keeps what it reported."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write ``{"step": step, **metrics}`` as one line."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_jsonl(path: Path) -> list[dict[str, float]]:
    """Read a file written by :class:`JsonlSink`; a last line cut off by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Progress:
    """Report how far a step is to whoever watches: one JSON line an update in ``path``, or nowhere.

    ``progrpo run`` reads these files to draw its display; a step in a pod reports through its log instead.
    """

    def __init__(self, path: Path | None = None, **labels: str | int | None) -> None:
        self._path, self._labels, self._started = path, labels, time.monotonic()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)

    def update(self, done: int, total: int, **numbers: float) -> None:
        """Say that ``done`` of ``total`` units are finished; ``numbers`` are shown beside the bar."""
        if self._path is None:
            return
        line = {**self._labels, "done": done, "total": total, "elapsed_s": time.monotonic() - self._started, **numbers}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class ProgressSink:
    """Tells a :class:`Progress` of each training step, with its reward and entropy."""

    def __init__(self, progress: Progress, num_steps: int) -> None:
        self._progress, self._num_steps = progress, num_steps

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Say that a step is done; measurements before the first are none."""
        if step:
            shown = {name: metrics.get(f"train/{name}", 0.0) for name in ("reward", "entropy")}
            self._progress.update(step, self._num_steps, **shown)

    def close(self) -> None:
        """Nothing is open."""
