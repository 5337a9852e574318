"""The protocol record: all that must be equal for two evaluations to be comparable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from progrpo.config import EvaluateConfig
from progrpo.rewards import task_of

if TYPE_CHECKING:
    from progrpo.data.dataset import Problem

FREE_KEYS = frozenset({"seed", "max_problems", "dtype", "engine", "digest"})
"""May differ between comparable evaluations: which completions are drawn, and with what arithmetic; that the problems
agree, however they were chosen, is checked one by one; the digest sums up the other keys."""


def protocol_record(
    config: EvaluateConfig,
    *,
    problems: Sequence[Problem],
    prompts: Sequence[Sequence[int]],
    dataset_digest: str,
    chat_template_digest: str | None,
) -> dict[str, Any]:
    """Return the record of an evaluation.

    Args:
        config: of the evaluation.
        problems: that are evaluated.
        prompts: their token ids, as the model gets them: template, system prompt and tokenizer in one.
        dataset_digest: of the dataset artifact.
        chat_template_digest: of the checkpoint's template.
    """
    keys = {
        "temperature", "top_p", "top_k", "max_completion_tokens", "num_samples", "max_problems", "score_temperature",
        "benchmark", "seed", "dtype",
    }  # fmt: skip
    record: dict[str, Any] = config.model_dump(mode="json", include=keys) | {
        "sampler": "keyed",  # random numbers named by seed, problem and sample
        "engine": config.engine.type,
        "dataset_digest": dataset_digest,
        "chat_template_digest": chat_template_digest,
        "prompts_digest": _digest([list(prompt) for prompt in prompts]),
        "verifier": {task: task_of(task).version for task in sorted({problem.task for problem in problems})},
    }
    return record | {"digest": _digest({key: value for key, value in record.items() if key not in FREE_KEYS})}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
