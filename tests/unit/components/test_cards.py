"""Cards of the steps: what they say, and that text of others stays text."""

import json

import pytest
from mlflow import MlflowClient

from progrpo.config import DatasetConfig, FileSource
from progrpo.data.prepare import prepare_dataset
from progrpo.manifest import read_manifest
from progrpo_components import cards, steps
from progrpo_components.ending import Ending

EVIL = "`x` | <img src=x onerror=alert(1)>\n# heading ``` [link](javascript:alert(1))"


def outside_code(card):
    """What is left of a card without its fences and code spans: where Markdown and HTML are read."""
    lines, fence = [], None
    for line in card.splitlines():
        ticks = line[: len(line) - len(line.lstrip("`"))]
        if fence is None and len(ticks) >= 3:
            fence = ticks
        elif fence is not None:
            if line == fence:
                fence = None
        else:
            lines.append("".join(line.split("`")[::2]))
    assert fence is None
    return "\n".join(lines)


def test_text_of_data_and_errors_stays_text():
    settings = {"dataset": {"system_prompt": EVIL}}
    inputs = cards.inputs_card("compare", settings, runs=[], checkpoint={"model": EVIL}, dataset={}, warnings=[EVIL])
    ending = Ending("failed", (EVIL,), (EVIL,))
    ended = cards.run_card("compare", run_id=EVIL, ending=ending, error=EVIL, closed=[EVIL])
    for card in (inputs, ended):
        assert not {"<", "javascript", "heading"} & set(outside_code(card).replace("(", " ").split())
        assert "onerror" not in outside_code(card)
        assert "javascript" not in outside_code(card)


def test_the_card_of_a_dataset_counts_what_was_dropped(tmp_path):
    rows = [{"prompt": f"p{i}", "answer": str(i)} for i in range(30)] + [{"prompt": "", "answer": "1"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DatasetConfig(source=FileSource(train_uri=str(tmp_path / "a.jsonl"), task="exact"))
    manifest = prepare_dataset(config, tmp_path / "dataset")
    card = cards.dataset_card(tmp_path / "dataset", manifest)
    for row in ("| `rows_read` | `31` |", "| `rows_kept` | `30` |", "| `prompt: is empty` | `1` |", manifest.digest):
        assert row in card


def test_the_card_of_a_checkpoint_says_what_it_is(embedded_checkpoint):
    card = cards.checkpoint_card(read_manifest(embedded_checkpoint, "checkpoint"))
    assert "| `architecture` | `LlamaForCausalLM` |" in card
    assert "| `source_uri` | `embedded://countdown-sft` |" in card


def test_the_card_of_an_evaluation_has_intervals(tmp_path, embedded_checkpoint, tiny_dataset):
    config = {"num_samples": 2, "max_completion_tokens": 4, "device": "cpu", "temperature": 1.0, "top_p": 1.0}
    manifest = steps.evaluate(config, dataset=tiny_dataset, model=embedded_checkpoint, output=tmp_path / "evaluation")
    card = cards.evaluation_card(tmp_path / "evaluation", manifest)
    metrics = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["metrics"]
    entropy = metrics["eval/entropy"]
    assert f"| `eval/entropy` | `{entropy['value']:.6g} [{entropy['low']:.6g}, {entropy['high']:.6g}]` |" in card
    assert "eval/pass_at_2" in card


@pytest.mark.parametrize(
    ("state", "ended"),
    [
        *((word, "FINISHED") for word in ("COMPLETE", "CACHED", "SUCCEEDED")),
        ("FAILED", "FAILED"),
        *((word, "KILLED") for word in ("CANCELED", "CANCELLED", "RUNNING", "a new word")),
    ],
)
def test_finish_ends_what_a_killed_task_left_open(tmp_path, monkeypatch, state, ended):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("PROGRPO_TRACKING", "on")
    monkeypatch.delenv("PROGRPO_PIPELINE_RUN_ID", raising=False)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("e", artifact_location=str(tmp_path / "artifacts"))
    tags = {"progrpo.pipeline_run_id": "run-1"}
    left = client.create_run(experiment, tags=tags).info.run_id
    done = client.create_run(experiment, tags=tags).info.run_id
    client.set_terminated(done)
    others = client.create_run(experiment, tags={"progrpo.pipeline_run_id": "run-2"}).info.run_id
    card = steps.finish("compare", experiment="e", run_id="run-1", state=state, error="it broke")
    assert [client.get_run(run).info.status for run in (left, done, others)] == [ended, "FINISHED", "RUNNING"]
    assert left in card
    assert done not in card
    assert "it broke" in card


def test_finish_does_not_fail_where_mlflow_is_away(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("PROGRPO_TRACKING", "on")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert "none was left open" in steps.finish("compare", experiment="e", run_id="run-1", state="SUCCEEDED")
