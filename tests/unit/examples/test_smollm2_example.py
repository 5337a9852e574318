"""The SmolLM2 example, up to where the model is needed."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from progrpo.config import DatasetConfig, FileSource
from progrpo.data.dataset import load_problems
from progrpo.data.prepare import prepare_dataset
from progrpo_pipelines.packaging.presets import resolve

EXAMPLE = Path(__file__).parents[3] / "examples" / "smollm2"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("arithmetic")
    subprocess.run([sys.executable, str(EXAMPLE / "make_arithmetic.py"), str(output)], check=True)
    return output


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_right_and_within_the_range(data):
    """Read the operation off the question again, by its words."""
    words = {"more": "+", "Tuesday": "+", "left": "-", "each": "*", "bags": "*"}
    seen = set()
    for row in rows(data / "train.jsonl"):
        question = row["prompt"][-1]["content"]
        a, b = map(int, re.findall(r"\d+", question))
        operation = next(sign for word, sign in words.items() if word in question)
        assert int(row["answer"]) == {"+": a + b, "-": a - b, "*": a * b}[operation] > 0
        assert 2 <= b <= 10
        seen.add(operation)
    assert seen == {"+", "-", "*"}


def test_no_problem_appears_twice(data):
    questions = [row["prompt"][-1]["content"] for name in ("train", "eval") for row in rows(data / f"{name}.jsonl")]
    assert len(questions) == 256 + 64
    assert len(set(questions)) == len(questions)


def test_the_seed_decides():
    make = load("make_arithmetic").make_problems
    assert make(20, largest=10, seed=1) == make(20, largest=10, seed=1)
    assert make(20, largest=10, seed=1) != make(20, largest=10, seed=2)


def test_more_problems_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="raise --largest"):
        load("make_arithmetic").make_problems(5000, largest=3, seed=0)


def test_the_dataset_step_takes_the_files(data, tmp_path):
    source = FileSource(train_uri=str(data / "train.jsonl"), eval_uri=str(data / "eval.jsonl"), task="math")
    manifest = prepare_dataset(DatasetConfig(source=source, system_prompt="Write one equation."), tmp_path / "dataset")
    assert (manifest.metadata["num_train"], manifest.metadata["num_eval"]) == (256, 64)
    problem = load_problems(tmp_path / "dataset", "eval")[0]
    assert [message["role"] for message in problem.prompt] == ["system", *["user", "assistant"] * 2, "user"]


@pytest.mark.parametrize("arm", ["grpo", "progrpo"])
def test_the_parameters_fit_both_pipelines(arm):
    setting = f"arm={{name: {arm}, algorithm: {{type: {arm}}}}}"  # as run.sh gives it
    trained = resolve("train-and-evaluate", params_file=EXAMPLE / "params.yaml", settings=[setting])
    assert (trained.arm.name, trained.arm.algorithm.type) == (arm, arm)
    compared = resolve("compare", params_file=EXAMPLE / "params.yaml")
    assert compared.train == trained.train


def test_a_file_that_is_not_the_model_is_not_taken(tmp_path):
    module = load("get_checkpoint")
    path = tmp_path / module.FILE
    path.write_bytes(b"GGUF")
    assert not module.is_right(path)
    with path.open("wb") as file:
        file.truncate(module.SIZE)
    assert not module.is_right(path)
