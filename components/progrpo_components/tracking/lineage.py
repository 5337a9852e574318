"""What of a step's output people read in MLflow: completions as tables and traces, an evaluation's files, the model.

Everything here is a copy of what the step has written, so that a tracking server that is away costs a warning. What a
step that is tried again had logged before is not logged twice.
"""

from __future__ import annotations

import itertools
import json
import logging
import random
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progrpo.comparison.sources import iterate_samples, read_prompts
from progrpo.config.merging import flatten
from progrpo.manifest import MANIFEST_NAME, Manifest, read_manifest
from progrpo.metrics import PASS_AT_CURVE
from progrpo.training.rollout_table import kept_steps, read_rollouts
from progrpo_components.tracking.summaries import read_evaluation

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

logger = logging.getLogger(__name__)

EVALUATION_PATH, TRAINING_PATH = "evaluation", "training"
"""Where a summary run keeps what ``progrpo compare-runs`` reads."""
CHECKPOINT_TAG = "progrpo.checkpoint_digest"

_TRACED_PROBLEMS = 4  # of the first and of the last kept step; a group is a trace
_TABLE_ROWS = 200  # MLflow's UI shows a table as a whole
_TABLE_PROBLEMS = 25
_EVALUATION_FILES = (MANIFEST_NAME, "evaluation.json", "samples.parquet", "problems.parquet")
_TRAINING_FILES = (MANIFEST_NAME, "metrics.jsonl", f"checkpoint/{MANIFEST_NAME}")


def find_model(client: MlflowClient, run_id: str, digest: str) -> LoggedModel | None:
    """Return the logged model of a summary run with this checkpoint digest, None if there is none."""
    experiment_id = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([experiment_id], f"tags.`{CHECKPOINT_TAG}` = '{digest}'") if digest else []
    return next((model for model in found if model.source_run_id == run_id), None)


def log_training(client: MlflowClient, run_id: str, training: Path) -> None:
    """Log what a training run made: its record, rollouts as tables and traces, and the model.

    Args:
        client: of the server.
        run_id: of the summary run.
        training: training artifact.
    """
    manifest = read_manifest(training, "training", verify=False)
    _log_files(client, run_id, training, _TRAINING_FILES, TRAINING_PATH)
    steps = list(kept_steps(training)) if (training / "rollouts").is_dir() else []
    with _tracing(str(client.tracking_uri)):
        for step in dict.fromkeys(steps[:1] + steps[-1:]):
            rows = read_rollouts(training, [step])
            _log_traces(client, run_id, rows, step)
            _log_table(client, run_id, rows[:_TABLE_ROWS], f"rollouts/step_{step:05d}.json")
        _log_model(client, run_id, training, manifest)


def log_evaluation(client: MlflowClient, run_id: str, evaluation: Path) -> None:
    """Log an evaluation: its files, from which it can be compared again, some completions, and the model's metrics.

    Args:
        client: of the server.
        run_id: of the summary run, which has the metrics already.
        evaluation: evaluation artifact.
    """
    manifest = read_manifest(evaluation, "evaluation", verify=False)
    _log_files(client, run_id, evaluation, _EVALUATION_FILES, EVALUATION_PATH)
    prompts = read_prompts(evaluation)
    wanted = list(itertools.islice(prompts, _TABLE_PROBLEMS))
    columns = ("problem_id", "sample_index", "completion", "answer", "correct", "finish_reason", "answer_confidence")
    rows = ({**row, "prompt": prompts[row["problem_id"]]} for row in iterate_samples(evaluation, columns, wanted))
    _log_table(client, run_id, list(itertools.islice(rows, _TABLE_ROWS)), "samples.json")
    _log_curve(client, run_id, evaluation)
    model = find_model(client, run_id, manifest.inputs.get("checkpoint", ""))
    if model is not None:
        dataset = _dataset_of(client, run_id)
        known = {metric.key for metric in model.metrics or ()}
        # The very points that the run has, so that it keeps them once.
        points = {metric.key: metric for metric in client.get_run(run_id).data._metric_objs}
        for name in read_evaluation(evaluation).keys() & points.keys() - known:
            point = points[name]
            where = {"timestamp": point.timestamp, "step": point.step, "model_id": model.model_id, **dataset}
            client.log_metric(run_id, name, point.value, **where)


def _log_curve(client: MlflowClient, run_id: str, evaluation: Path) -> None:
    from mlflow.entities import Metric

    if PASS_AT_CURVE in client.get_run(run_id).data.metrics:
        return
    points = json.loads((evaluation / "evaluation.json").read_text(encoding="utf-8"))["curves"]["pass_at_k"]
    now = int(time.time() * 1000)
    client.log_batch(run_id, [Metric(PASS_AT_CURVE, point["value"], now, point["k"]) for point in points])


# --- files and tables ------------------------------------------------------------------------------------------------


def _log_files(client: MlflowClient, run_id: str, directory: Path, names: Iterable[str], path: str) -> None:
    for name in names:
        if (file := directory / name).is_file():
            client.log_artifact(run_id, str(file), f"{path}/{Path(name).parent}".removesuffix("/."))


def _log_table(client: MlflowClient, run_id: str, rows: Sequence[Mapping[str, Any]], artifact: str) -> None:
    """Log rows as a table that MLflow's UI shows; one that is there stays, since log_table appends."""
    if not rows or any(
        f.path == artifact for f in client.list_artifacts(run_id, str(Path(artifact).parent).strip("."))
    ):
        return
    columns = list(dict.fromkeys(name for row in rows for name in row))
    client.log_table(run_id, {name: [row.get(name) for row in rows] for name in columns}, artifact)


# --- traces ----------------------------------------------------------------------------------------------------------


def _log_traces(client: MlflowClient, run_id: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
    """Log the first groups of a step as traces: the prompt, and a span for each completion with its reward."""
    run = client.get_run(run_id)
    experiment_id = run.info.experiment_id
    known = {
        trace.info.tags.get("progrpo.rollouts")
        for trace in client.search_traces(locations=[experiment_id], run_id=run_id, include_spans=False)
    }
    for problem, group in itertools.islice(_groups(rows), _TRACED_PROBLEMS):
        name = f"step {step}, {problem}"
        if name in known:
            continue
        prompt = group[0]["prompt"]
        tags = {
            "progrpo.rollouts": name,
            "progrpo.step": str(step),
            **{key: value for key, value in run.data.tags.items() if key in ("progrpo.arm", "progrpo.seed")},
        }
        root = client.start_trace(
            name, "CHAIN", inputs={"prompt": prompt}, tags=tags, experiment_id=experiment_id, run_id=run_id
        )
        for index, row in enumerate(group):
            shown = {key: row[key] for key in _SPAN_ATTRIBUTES if row.get(key) is not None}
            span = client.start_span(
                f"completion {index}", root.trace_id, root.span_id, "LLM", inputs={"prompt": prompt}
            )
            client.end_span(root.trace_id, span.span_id, outputs=row["completion"], attributes=shown)
        rewards = [row["reward"] for row in group]
        summary = {"mean reward": sum(rewards) / len(rewards), "completions": len(rewards)}
        client.end_trace(root.trace_id, outputs=summary)


_SPAN_ATTRIBUTES = ("reward", "correct", "answer", "advantage", "prompt_confidence", "answer_confidence", "num_tokens")


def _groups(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    for _, group in itertools.groupby(rows, key=lambda row: row.get("group", row["problem_id"])):
        of_problem = list(group)
        yield str(of_problem[0]["problem_id"]), of_problem


@contextmanager
def _tracing(uri: str) -> Iterator[None]:
    """Send the traces that are made within to ``uri``, all of them before it ends.

    Traces go to mlflow's own tracking URI, whatever the client says, and their ids come from ``random``, which training
    seeded: two runs' were equal. They are sent by threads in the background; the end waits for them once, since each
    time takes up to a second.
    """
    import mlflow

    before, state = mlflow.get_tracking_uri(), random.getstate()
    mlflow.set_tracking_uri(uri)
    random.seed()
    try:
        yield
    finally:
        mlflow.flush_trace_async_logging()  # after an error, too: another attempt must see what this one has sent
        random.setstate(state)
        mlflow.set_tracking_uri(before)


# --- the model -------------------------------------------------------------------------------------------------------


def _log_model(client: MlflowClient, run_id: str, training: Path, manifest: Manifest) -> None:
    """Make the logged model of a training run: its signature and card. The weights stay in the training artifact."""
    checkpoint = read_manifest(training / "checkpoint", "checkpoint", verify=False)
    model = find_model(client, run_id, checkpoint.digest)
    if model is not None and model.status == "READY":  # else an earlier attempt ended in the middle
        return
    from mlflow.entities import LoggedModelOutput

    run = client.get_run(run_id)
    arm, seed = run.data.tags.get("progrpo.arm", "model"), run.data.tags.get("progrpo.seed", "")
    model = model or client.create_logged_model(
        run.info.experiment_id,
        name=f"{arm}-seed{seed}" if seed else arm,
        source_run_id=run_id,
        tags={CHECKPOINT_TAG: checkpoint.digest, "progrpo.arm": arm, "progrpo.seed": seed},
        params={key: str(value)[:500] for key, value in flatten(manifest.config).items()},
        model_type="causal language model",
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "MLmodel").write_text(_mlmodel(run_id, str(model.model_id), checkpoint), encoding="utf-8")
        (Path(folder) / "README.md").write_text(model_card(arm, seed, manifest, checkpoint), encoding="utf-8")
        client.log_model_artifacts(model.model_id, folder)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    client.finalize_logged_model(model.model_id, "READY")


def _mlmodel(run_id: str, model_id: str, checkpoint: Manifest) -> str:
    """Return MLflow's description of the model: chat in, chat out; a Hugging Face directory, no Python to load."""
    from mlflow.models import Model, ModelSignature
    from mlflow.types.llm import CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA

    model = Model(
        artifact_path="model",
        run_id=run_id,
        model_id=model_id,
        signature=ModelSignature(CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA),
        metadata={CHECKPOINT_TAG: checkpoint.digest, **_scalars(checkpoint.metadata)},
    )
    model.add_flavor("progrpo", format="safetensors", architecture=checkpoint.metadata.get("architecture"))
    return str(model.to_yaml())


def model_card(arm: str, seed: str, training: Manifest, checkpoint: Manifest) -> str:
    """Return the model's card in Markdown: from what, by what and how it was made."""
    import yaml

    facts = {
        "Trained with": f"{arm}, seed {seed}" if seed else arm,
        "Made by": training.created_by,
        "Checkpoint digest": checkpoint.digest,
        **{f"Digest of the {name} it was made from": digest for name, digest in sorted(training.inputs.items())},
        **{key.replace("_", " ").capitalize(): value for key, value in sorted(_scalars(training.metadata).items())},
    }
    title = f"{arm} seed {seed}" if seed else arm
    rows = "\n".join(f"| {name} | `{value}` |" for name, value in facts.items())
    settings = {"arm": training.config.get("arm"), "train": training.config.get("train")}
    return f"# {title}\n\n| | |\n|---|---|\n{rows}\n\n```yaml\n{yaml.safe_dump(settings, sort_keys=False)}```\n"


def _scalars(metadata: Mapping[str, Any]) -> dict[str, str | int | float]:
    return {key: value for key, value in metadata.items() if isinstance(value, str | int | float)}


def _dataset_of(client: MlflowClient, run_id: str) -> dict[str, str]:
    """Return the run's evaluation dataset, as a metric names it."""
    for of_run in client.get_run(run_id).inputs.dataset_inputs:
        if any(tag.key == "mlflow.data.context" and tag.value == "evaluation" for tag in of_run.tags):
            return {"dataset_name": of_run.dataset.name, "dataset_digest": of_run.dataset.digest}
    return {}
