"""The general-ability guard: real lm-eval on local data where it is installed, and its arithmetic always."""

import json
from importlib import util
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from progrpo.config import AbilityConfig
from progrpo.errors import ComparisonError, ConfigError
from progrpo.evaluation.ability import compare_ability, main, measure_ability
from progrpo.manifest import read_manifest, write_manifest

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


@needs_lm_eval
@pytest.mark.slow
def test_lm_eval_on_local_data(embedded_checkpoint: Path, tmp_path: Path) -> None:
    tasks, data = tmp_path / "tasks", tmp_path / "data.jsonl"
    tasks.mkdir()
    data.write_text("".join(json.dumps({"question": f"make {i} from 1 2 3", "label": i % 2}) + "\n" for i in range(12)))
    (tasks / "local_choice.yaml").write_text(TASK.format(data=data))
    config = AbilityConfig(tasks=("local_choice",), include_path=str(tasks), device="cpu", chat_template=False)
    measure_ability(config, embedded_checkpoint, tmp_path / "out")
    document = json.loads((tmp_path / "out/ability.json").read_text())
    accuracy = document["tasks"]["local_choice"]["acc"]
    assert accuracy["num_documents"] == 12
    assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
    assert read_manifest(tmp_path / "out", "ability").inputs["checkpoint"] == document["checkpoint_digest"]
    assert [d.outcome for d in compare_ability(tmp_path / "out", [tmp_path / "out"])] == ["not resolved"]
    with pytest.raises(ConfigError, match="knows no task nonsense"):
        measure_ability(config.model_copy(update={"tasks": ("nonsense",)}), embedded_checkpoint, tmp_path / "other")
