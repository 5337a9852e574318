"""The general-ability guard: real lm-eval on local data where it is installed, and its arithmetic always."""

import json
from importlib import util
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from progrpo.config import AbilityConfig, EvaluateConfig
from progrpo.errors import ComparisonError, ConfigError
from progrpo.evaluation.ability import ABILITY, compare_ability, main, measure_ability
from progrpo.evaluation.evaluate import evaluate
from progrpo.manifest import Manifest, read_manifest, write_manifest

needs_lm_eval = pytest.mark.skipif(
    util.find_spec("lm_eval") is None, reason="needs lm-eval: pip install progrpo[ability]"
)


def _measurement(directory: Path, right: list[int], **changes: object) -> Path:
    """What measure_ability writes of a task with one metric."""
    directory.mkdir()
    rows = [{"task": "t", "metric": "acc", "document": f"{i}:x", "value": float(v)} for i, v in enumerate(right)]
    pq.write_table(pa.Table.from_pylist(rows), directory / "documents.parquet")
    (directory / "ability.json").write_text(json.dumps({"task_versions": {"t": changes.get("version", 1)}}))
    config = AbilityConfig(tasks=("t",), limit=changes.get("limit"))
    write_manifest(directory, "ability", config={"ability": config.model_dump(mode="json")})
    return directory


def test_a_loss_is_told_from_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _measurement(tmp_path / "before", [1] * 60 + [0] * 40)
    worse = _measurement(tmp_path / "worse", [1] * 40 + [0] * 60)
    noise = _measurement(tmp_path / "noise", [1] * 58 + [0] * 40 + [1] * 2)
    (loss,) = compare_ability(before, [worse])
    assert (loss.before, loss.after, loss.outcome) == (0.6, 0.4, "worse")
    assert loss.difference.value == pytest.approx(-0.2)
    assert compare_ability(before, [noise])[0].outcome == "not resolved"
    assert compare_ability(worse, [before])[0].outcome == "better"
    assert main(["--compare", str(before), str(worse)]) == 1
    assert "t acc: 0.6000 -> 0.4000, -0.2000" in capsys.readouterr().out
    assert main(["--compare", str(before), str(noise)]) == 0


def test_other_questions_are_not_compared(tmp_path: Path) -> None:
    before = _measurement(tmp_path / "before", [1, 0])
    for name, other in {
        "documents": _measurement(tmp_path / "a", [1, 0, 1]),
        "task versions differ": _measurement(tmp_path / "b", [1, 0], version=2),
        "settings differ": _measurement(tmp_path / "c", [1, 0], limit=2),
    }.items():
        with pytest.raises(ComparisonError, match=name):
            compare_ability(before, [other])


@pytest.mark.skipif(util.find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_without_lm_eval_it_says_what_to_install(embedded_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"progrpo\[ability\]"):
        measure_ability(AbilityConfig(), embedded_checkpoint, tmp_path / "out")


@pytest.mark.skipif(util.find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_an_evaluation_that_cannot_measure_it_does_not_start(
    embedded_checkpoint: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    config = EvaluateConfig(num_samples=1, max_completion_tokens=4, ability=AbilityConfig())
    with pytest.raises(ConfigError, match=r"progrpo\[ability\].*leave evaluation.ability out"):
        evaluate(config, dataset=tiny_dataset, checkpoint=embedded_checkpoint, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


TASK = """
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["1", "2"]
doc_to_target: label
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""


@pytest.fixture(scope="module")
def local_task(tmp_path_factory: pytest.TempPathFactory) -> AbilityConfig:
    """A task of 12 questions with two choices, whose data lies here."""
    directory = tmp_path_factory.mktemp("tasks")
    data = directory / "data.jsonl"
    data.write_text("".join(json.dumps({"question": f"make {i} from 1 2 3", "label": i % 2}) + "\n" for i in range(12)))
    (directory / "local_choice.yaml").write_text(TASK.format(data=data))
    return AbilityConfig(tasks=("local_choice",), include_path=str(directory), device="cpu", chat_template=False)


@needs_lm_eval
@pytest.mark.slow
def test_the_evaluate_step_measures_it_with_lm_eval(
    local_task: AbilityConfig, embedded_checkpoint: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    config = EvaluateConfig(num_samples=1, max_completion_tokens=4, ability=local_task)

    def run() -> Manifest:
        return evaluate(config, dataset=tiny_dataset, checkpoint=embedded_checkpoint, output=tmp_path / "out")

    manifest = run()
    measured = tmp_path / "out" / ABILITY
    document = json.loads((measured / "ability.json").read_text())
    accuracy = document["tasks"]["local_choice"]["acc"]
    assert accuracy["num_documents"] == 12
    assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
    assert document["higher_is_better"]["local_choice"] == {"acc": True}
    assert read_manifest(measured, "ability").inputs["checkpoint"] == document["checkpoint_digest"]
    assert {"ability/ability.json", "ability/documents.parquet"} <= set(manifest.files)
    assert [d.outcome for d in compare_ability(measured, [measured])] == ["not resolved"]
    before = (measured / "ability.json").stat().st_mtime_ns
    run()  # as after a kill: what is measured is kept
    assert (measured / "ability.json").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="knows no task nonsense"):
        measure_ability(local_task.model_copy(update={"tasks": ("nonsense",)}), embedded_checkpoint, tmp_path / "other")
    evaluate(
        config.model_copy(update={"ability": None}),
        dataset=tiny_dataset,
        checkpoint=embedded_checkpoint,
        output=tmp_path / "out",
    )
    assert not measured.exists()  # an evaluation without it does not keep another's
