"""The benchmark configurations: each is read, and one is run on problems of a file of its own."""

import json
from pathlib import Path

import pytest

from progrpo.config import DatasetConfig, FileSource
from progrpo.data.dataset import load_problems
from progrpo.data.prepare import prepare_dataset
from progrpo.errors import DataError
from progrpo.evaluation.evaluate import evaluate
from progrpo.manifest import read_manifest
from progrpo_pipelines.packaging.presets import resolve

FILES = sorted((Path(__file__).parents[3] / "examples/benchmarks").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_benchmark_is_a_set_of_parameters(file: Path) -> None:
    parameters = resolve("evaluate", params_file=file)
    source = parameters.dataset.source
    assert isinstance(source, FileSource)
    assert source.train_uri is None
    assert source.task in ("math", "exact", "code")
    assert source.task != "code" or parameters.evaluation.num_samples == 16
    assert parameters.evaluation.benchmark
    assert parameters.dataset.system_prompt
    assert f"`{file.name}`" in (file.parent / "README.md").read_text()


def test_there_are_the_papers_six_two_out_of_domain_and_three_of_code() -> None:
    assert len(FILES) == 11


def _write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_benchmark_runs_on_problems_that_are_only_evaluated(embedded_checkpoint: Path, tmp_path: Path) -> None:
    file = next(file for file in FILES if file.stem == "aime24")
    rows = [{"problem": f"make {20 + i} from 2 3 {i}", "answer": str(i)} for i in range(5)]
    uri = _write(tmp_path / "aime24.jsonl", rows)
    settings = [f"dataset.source.eval_uri={uri}", "evaluation.num_samples=2", "evaluation.max_completion_tokens=8"]
    parameters = resolve("evaluate", params_file=file, settings=[*settings, "dataset.system_prompt=null"])
    prepare_dataset(parameters.dataset, tmp_path / "dataset")
    assert load_problems(tmp_path / "dataset", "train") == []
    evaluate(
        parameters.evaluation, dataset=tmp_path / "dataset", checkpoint=embedded_checkpoint, output=tmp_path / "out"
    )
    result = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert result["num_problems"] == 5
    assert result["protocol"]["benchmark"] == "AIME 2024"
    assert result["protocol"]["dataset_digest"] == read_manifest(tmp_path / "dataset", "dataset").digest
    assert set(result["protocol"]["verifier"]) == {"math"}


def test_a_source_names_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither train_uri nor eval_uri"):
        FileSource()
    uri = _write(tmp_path / "empty.jsonl", [{"problem": " ", "answer": "1"}])
    source = FileSource(eval_uri=str(uri), prompt_column="problem")
    with pytest.raises(DataError):
        prepare_dataset(DatasetConfig(source=source, max_dropped_frac=1), tmp_path / "dataset")
