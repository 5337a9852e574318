"""A killed evaluation goes on, and ends with the same file as one that was not."""

import json
import os
import subprocess
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest

from progrpo.config import EvaluateConfig
from progrpo.evaluation.evaluate import evaluate
from progrpo.evaluation.samples import SCHEMA, position_edges
from progrpo.evaluation.shards import ProblemStatistics, Shards

CONFIG = EvaluateConfig(
    num_samples=8, temperature=1.0, top_p=1.0, max_completion_tokens=9, max_problems=16, batch_size=8
)


@pytest.mark.slow
def test_killed_ten_times_it_is_the_file_of_an_uninterrupted_run(
    python: str, tiny_dataset: Path, embedded_checkpoint: Path, tmp_path: Path
) -> None:
    evaluate(CONFIG, dataset=tiny_dataset, checkpoint=embedded_checkpoint, output=tmp_path / "whole")
    script = Path(__file__).with_name("killed_evaluations.py")
    kills = 0
    for seed in range(5):
        output = tmp_path / f"killed{seed}"
        command = [python, script, tiny_dataset, embedded_checkpoint, output, CONFIG.model_dump_json(), seed]
        run = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=os.environ, check=False)
        assert run.returncode == 0, run.stderr
        kills += int(run.stdout)
        assert (output / "samples.parquet").read_bytes() == (tmp_path / "whole/samples.parquet").read_bytes()
        first, second = (json.loads((d / "evaluation.json").read_text()) for d in (output, tmp_path / "whole"))
        assert first["metrics"] == second["metrics"]
        if kills >= 10:
            break
    assert kills >= 10


def _fill(shards: Shards, first: int, last: int) -> None:
    constant = ["text", "1", True, True, 2, "stop", -1.0, 1.5, 0.5, [1.0, 0.5], "ab"]
    rows = [[f"p{p}", i, *constant] for p in range(first, last) for i in range(shards.num_samples)]
    samples = pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], SCHEMA)
    shards.write(first, samples, [ProblemStatistics(0.5, None)] * (last - first))


def test_what_is_missing_is_what_no_shard_holds(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "shards", 10, 4)
    shards.open({})
    assert shards.missing(12) == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert shards.missing(1) == [(p, p + 1) for p in range(10)], "a problem is never split"
    _fill(shards, 3, 6)
    _fill(shards, 9, 10)
    assert shards.num_done() == 4
    assert shards.missing(8) == [(0, 2), (2, 3), (6, 8), (8, 9)]


def test_any_partition_gives_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for name, cuts in (("a", [0, 10]), ("b", [0, 1, 7, 10])):
        shards = Shards(tmp_path / name, 10, 3000)
        shards.open({})
        for first, last in pairwise(cuts):
            _fill(shards, first, last)
        assert shards.merge(tmp_path / f"{name}.parquet") == [ProblemStatistics(0.5, None)] * 10
        files.append((tmp_path / f"{name}.parquet").read_bytes())
    assert files[0] == files[1]


def test_shards_of_another_evaluation_or_cut_off_are_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = Shards(tmp_path / "shards", 4, 2)
    shards.open({"seed": 0})
    _fill(shards, 0, 2)
    _fill(shards, 2, 4)
    shards.open({"seed": 0})
    assert shards.num_done() == 4
    (file,) = shards.directory.glob(".00000002-*")
    file.write_bytes(file.read_bytes()[:100])
    shards.open({"seed": 0})
    assert shards.done() == [(0, 2)]
    assert "is not whole" in caplog.text
    shards.open({"seed": 1})
    assert shards.done() == []
    assert "completions of another evaluation" in caplog.text


@pytest.mark.parametrize("max_tokens", [1, 9, 32, 33, 1000, 8192, 100_000])
def test_position_bins_cover_every_token_once(max_tokens: int) -> None:
    edges = position_edges(max_tokens)
    assert edges[0] == 0
    assert edges[-1] == max_tokens
    assert edges == sorted(set(edges))
    assert len(edges) <= 33
    assert SCHEMA.field("position_entropy").type.value_type == "float"
