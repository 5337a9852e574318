"""``progrpo run compare`` with an algorithm and a task of another installed package, and nothing else told."""

import json
import os
import subprocess
import sys

import pytest

import plugins
from progrpo.data.countdown import generate
from progrpo.metrics import read_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TINY = """
arms:
- {name: grpo, algorithm: {type: grpo}}
- {name: rloo, algorithm: {type: rloo}}
seeds: [0]
dataset:
  source: {type: file, train_uri: FOLDER/train.jsonl, eval_uri: FOLDER/eval.jsonl, task: {type: within, tolerance: 0.2}}
train: {steps: 2, prompts_per_step: 2, group_size: 4, log_rollouts_every: 1}
evaluation: {num_samples: 2, ks: [1, 2]}
comparison: {num_resamples: 100}
"""


def test_a_comparison_with_an_algorithm_and_a_task_of_another_package(tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    plugins.install(site)
    for split, problems in zip(("train", "eval"), generate(32, 8, 0), strict=True):
        rows = [{"prompt": prompt, "answer": json.loads(answer)["target"]} for prompt, answer in problems]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tiny.yaml").write_text(TINY.replace("FOLDER", str(tmp_path)))
    command = [sys.executable, "-m", "progrpo_pipelines.cli", "run", "compare", "--preset", "smoke"]
    command += ["--params-file", str(tmp_path / "tiny.yaml"), "--output", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(site), "PROGRPO_TRACKING": "off"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr + done.stdout

    artifacts = tmp_path / "run" / "artifacts"
    trained = {}
    for path in artifacts.rglob("manifest.json"):
        manifest = json.loads(path.read_text())
        if manifest["kind"] == "training":
            trained[manifest["config"]["arm"]["algorithm"]["type"]] = read_jsonl(path.parent / "metrics.jsonl")
    assert {name: len([row for row in rows if "train/loss" in row]) for name, rows in trained.items()} == {
        "grpo": 2,
        "rloo": 2,
    }
    (evaluation,) = {
        json.dumps(json.loads(path.read_text())["protocol"]["verifier"]) for path in artifacts.rglob("evaluation.json")
    }
    assert json.loads(evaluation) == {'{"type": "within", "tolerance": 0.2}': "1"}
