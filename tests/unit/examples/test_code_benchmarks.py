"""Benchmarks of code from rows to numbers, and the converter of LiveCodeBench's files."""

import base64
import importlib.util
import json
import zlib
from pathlib import Path

import pytest

from progrpo.config import GRPO, Arm, DatasetConfig, FileSource, TrainConfig
from progrpo.data.dataset import load_problems
from progrpo.data.prepare import prepare_dataset
from progrpo.errors import ConfigError, DataError
from progrpo.evaluation.evaluate import evaluate
from progrpo.rewards import code, task_of, verify_batch
from progrpo.training.train import train
from progrpo_pipelines.packaging.presets import resolve

EXAMPLES = Path(__file__).parents[3] / "examples/benchmarks"
ROWS = {
    "codeforces": [{"problem": "make 4 from 2", "answer": {"inputs": ["2\n"], "outputs": ["4\n"], "time_limit_s": 2}}],
    "livecodebench": [{"problem": "make 9 from 3", "answer": {"fn_name": "square", "inputs": ["3"], "outputs": ["9"]}}],
    "humaneval_plus": [
        {
            "problem": "make 5 from 2 3",
            "answer": json.dumps(
                {"entry_point": "add", "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n"}
            ),
        }
    ],
}
PROGRAMS = {
    "codeforces": ("print(int(input()) ** 2)", "print(2)"),
    "livecodebench": ("class Solution:\n    def square(self, n): return n * n", "def square(n): return n"),
    "humaneval_plus": ("def add(a, b): return a + b", "def add(a, b): return a"),
}


def _prepare(name: str, tmp_path: Path):
    uri = tmp_path / f"{name}.jsonl"
    uri.write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]))
    settings = [f"dataset.source.eval_uri={uri}", "dataset.system_prompt=null", "evaluation.num_samples=2"]
    settings += ["evaluation.max_completion_tokens=8"]
    parameters = resolve("evaluate", params_file=EXAMPLES / f"{name}.yaml", settings=settings)
    prepare_dataset(parameters.dataset, tmp_path / "dataset")
    return parameters, load_problems(tmp_path / "dataset", "eval")


@pytest.mark.parametrize("name", ROWS)
def test_from_rows_to_numbers(name: str, embedded_checkpoint: Path, tmp_path: Path, require_all: bool) -> None:
    try:
        code.check_ready()
    except ConfigError as error:
        pytest.fail(str(error)) if require_all else pytest.skip(str(error))
    parameters, (problem,) = _prepare(name, tmp_path)
    right, wrong = (f"```python\n{program}\n```" for program in PROGRAMS[name])
    verdicts = verify_batch([("code", problem.answer, right), ("code", problem.answer, wrong)])
    assert [(verdict.correct, verdict.scored) for verdict in verdicts] == [(True, True), (False, True)]
    evaluate(
        parameters.evaluation, dataset=tmp_path / "dataset", checkpoint=embedded_checkpoint, output=tmp_path / "out"
    )
    result = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert result["metrics"]["eval/pass_at_1"]["value"] == 0  # it was made for other problems
    assert result["unscored"] == 0
    assert result["protocol"]["verifier"] == {"code": task_of("code").version}


def test_nothing_is_sampled_where_programs_cannot_run(
    embedded_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters, _ = _prepare("codeforces", tmp_path)
    monkeypatch.setenv("PROGRPO_CODE_ISOLATION", "none")
    with pytest.raises(ConfigError, match="Allowed: full, pod"):
        evaluate(
            parameters.evaluation, dataset=tmp_path / "dataset", checkpoint=embedded_checkpoint, output=tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def test_rows_without_tests_are_dropped_with_a_reason(tmp_path: Path) -> None:
    rows = [*ROWS["codeforces"], {"problem": "no tests", "answer": {"inputs": []}}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = FileSource(eval_uri=str(tmp_path / "rows.jsonl"), prompt_column="problem", task="code")
    prepare_dataset(DatasetConfig(source=source, max_dropped_frac=0.5), tmp_path / "dataset")
    report = json.loads((tmp_path / "dataset/report.json").read_text())
    assert report["dropped"] == {"answer: is not an answer of the code task": 1}
    assert "no key 'outputs'" in report["examples"][0]["reason"]
    with pytest.raises(DataError, match="line 2"):
        prepare_dataset(DatasetConfig(source=source, max_dropped_frac=0), tmp_path / "other")


def _converter():
    spec = importlib.util.spec_from_file_location("livecodebench", EXAMPLES / "livecodebench.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _pickle_of_text(text: str) -> bytes:
    """Protocol 4, as written by hand: PROTO, BINUNICODE, MEMOIZE, STOP."""
    data = text.encode()
    return b"\x80\x04X" + len(data).to_bytes(4, "little") + data + b"\x94."


def _row(hidden: bytes, **changes) -> dict[str, str]:
    return {
        "question_content": "Add the two numbers.",
        "contest_date": "2024-09-01T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "metadata": "{}",
        "public_test_cases": json.dumps([{"input": "1 2", "output": "3", "testtype": "stdin"}]),
        "private_test_cases": base64.b64encode(zlib.compress(hidden)).decode(),
        **changes,
    }


def test_livecodebench_files_become_rows(tmp_path: Path) -> None:
    hidden = _pickle_of_text(json.dumps([{"input": "5 6", "output": "11", "testtype": "stdin"}]))
    call = _row(
        hidden, metadata='{"func_name": "add"}', starter_code="class Solution:\n    def add(self, a, b):",
        public_test_cases="[]", private_test_cases=json.dumps([{"input": "1\n2", "output": "3"}]),
    )  # fmt: skip
    file = tmp_path / "test.jsonl"
    late = _row(hidden, contest_date="2025-03-01T00:00:00")
    file.write_text("".join(json.dumps(row) + "\n" for row in (_row(hidden), call, late)))
    first, second = _converter().rows([file], "2024-08-01", "2025-02-01")
    assert first["answer"] == {"inputs": ["1 2", "5 6"], "outputs": ["3", "11"]}
    assert first["difficulty"] == 1
    assert second["answer"] == {"inputs": ["1\n2"], "outputs": ["3"], "fn_name": "add"}
    assert "class Solution" in second["problem"]
    for row in (first, second):
        code.parse_answer(json.dumps(row["answer"]))


def test_a_pickle_that_does_more_than_hold_a_text_is_refused() -> None:
    hostile = b"cos\nsystem\n(S'touch /tmp/progrpo-escaped'\ntR."
    with pytest.raises(ValueError, match="opcode GLOBAL"):
        _converter().convert(_row(hostile))
    assert not Path("/tmp/progrpo-escaped").exists()


def test_training_does_not_start_either(
    embedded_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{**row, "problem": f"{row['problem']} {i}"} for i in range(4) for row in ROWS["codeforces"]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = FileSource(train_uri=str(tmp_path / "rows.jsonl"), prompt_column="problem", task="code")
    prepare_dataset(DatasetConfig(source=source), tmp_path / "dataset")
    monkeypatch.setenv("PROGRPO_CODE_ISOLATION", "none")
    config = TrainConfig(steps=1, prompts_per_step=1, group_size=2, max_completion_tokens=4)
    with pytest.raises(ConfigError, match="Allowed: full, pod"):
        train(
            Arm(name="grpo", algorithm=GRPO()), 0, config,
            dataset=tmp_path / "dataset", checkpoint=embedded_checkpoint, output=tmp_path / "run", run_id="run",
        )  # fmt: skip
    assert not (tmp_path / "run").exists()
