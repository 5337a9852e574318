"""Without the extra that reads the object store a run keeps its verdict."""

import sys
from types import SimpleNamespace

from progrpo_pipelines.client.artifacts import read_logs


def test_a_store_that_cannot_be_read_costs_a_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    said = []
    run, package = SimpleNamespace(run_id="1", runtime_config=None), SimpleNamespace(name="compare")
    assert read_logs(run, package, "train", "s3://bucket/root", said.append) == []
    assert "pip install 'progrpo[steps]'" in said[0]
