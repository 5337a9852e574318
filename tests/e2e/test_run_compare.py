"""The main job, end to end and tiny: ``progrpo run compare`` with the real components in real processes."""

import json
import subprocess
from pathlib import Path

import pytest

from finished_run import COMMAND, finished_run
from progrpo.comparison.result import read_comparison
from progrpo.manifest import read_manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="session")
def finished(python):
    return finished_run(python)


@pytest.fixture
def run(finished):
    """Its directory."""
    return finished.directory


def outputs(run, step):
    for path in sorted((run / "progress").glob(f"{step}-*.jsonl")):
        yield json.loads(path.read_text().splitlines()[-1])["output"]


def test_every_artifact_is_whole(run):
    kinds = {}
    for path in (run / "artifacts").rglob("manifest.json"):
        kind = json.loads(path.read_text())["kind"]
        read_manifest(path.parent, kind)  # checks every digest
        kinds[kind] = kinds.get(kind, 0) + 1
    # 4 training runs (2 arms x 2 seeds) hold a checkpoint each, beside the one that was imported.
    assert kinds == {"dataset": 1, "checkpoint": 5, "training": 4, "evaluation": 5, "comparison": 1, "promotion": 1}


def test_the_comparison_holds_every_arm_and_seed(run):
    (directory,) = {path.parent for path in (run / "artifacts").rglob("comparison.json")}
    comparison = read_comparison(directory)
    assert [arm.name for arm in comparison.arms] == ["start", "grpo", "progrpo"]
    assert {arm.name: arm.seeds for arm in comparison.arms} == {"start": (), "grpo": (0, 1), "progrpo": (0, 1)}
    assert comparison.ks == (1, 2, 4)
    assert (run / "report.html").read_bytes() == (directory / "report.html").read_bytes()


def test_integers_survived_kfp(run):
    for path in (run / "artifacts").rglob("manifest.json"):
        manifest = json.loads(path.read_text())
        if manifest["kind"] == "training":
            assert manifest["config"]["train"]["steps"] == 4
            assert isinstance(manifest["config"]["train"]["steps"], int)
            assert isinstance(manifest["config"]["seed"], int)


def test_the_terminal_shows_progress_table_and_paths(finished, run):
    for part in (
        "train (grpo, seed 0): finished, 4/4, reward ",
        "train (progrpo, seed 1): finished, 4/4, reward ",
        "evaluate (start): finished",
        "(baseline)",
        str(run / "report.html"),
        f"--backend-store-uri {finished.tracking_uri}",
    ):
        assert part in finished.stdout
    assert finished.stderr == ""
    assert "KFP Executor" not in finished.stdout
    assert "KFP Executor" in (run / "pipeline.log").read_text()


def test_mlflow_has_one_summary_run_for_each_arm_and_seed(finished):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=finished.tracking_uri)
    (experiment,) = client.search_experiments(filter_string="name = 'progrpo'")
    runs = {entry.info.run_name: entry for entry in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == ["grpo-seed0", "grpo-seed1", "progrpo-seed0", "progrpo-seed1", "run", "start"]
    assert {entry.info.status for entry in runs.values()} == {"FINISHED"}
    trained = runs["progrpo-seed1"]
    assert {"train/reward", "train/entropy", "eval/pass_at_1", "eval/pass_at_4"} <= set(trained.data.metrics)
    assert len(client.get_metric_history(trained.info.run_id, "train/reward")) == 4
    assert trained.inputs.dataset_inputs
    assert {file.path for file in client.list_artifacts(runs["run"].info.run_id)} >= {"report.html", "comparison.json"}


def test_the_candidate_is_the_champion_in_the_registry(finished):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=finished.tracking_uri, registry_uri=finished.tracking_uri)
    version = client.get_model_version_by_alias("progrpo", "champion")
    assert client.get_run(version.run_id).info.run_name == "progrpo-seed0"
    assert "Pass@1 of progrpo not worse than start by more than 100.0 points" in version.description
    names = {path.name for path in Path(version.source.removeprefix("file://")).iterdir()}  # of the logged model
    assert {"model.safetensors", "manifest.json"} <= names
    (comparison,) = (entry for entry in client.search_runs([client.get_run(version.run_id).info.experiment_id])
                     if entry.info.run_name == "run")  # fmt: skip
    assert comparison.data.tags["progrpo.gate"] == "promote"
    assert "compare/progrpo/pass_at_4_difference_low" in comparison.data.metrics


def test_no_temporary_files_stay(run):
    assert not (run / "tmp").exists()


def test_the_same_seeds_give_the_same_numbers(finished, python, tmp_path):
    command = [python, *COMMAND, "train-and-evaluate", "--preset", "smoke", "--params-file", str(finished.settings)]
    # Its default arm and seed: progrpo, 0. Without a gate nothing is promoted.
    command += ["--output", str(tmp_path / "again"), "--set", "comparison.gate=null"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr

    def metrics(directory):
        (path,) = (
            path
            for path in (directory / "artifacts").rglob("evaluation.json")
            if (content := json.loads(path.read_text()))["arm"] == "progrpo" and content["seed"] == 0
        )
        return json.loads(path.read_text())["metrics"]

    assert metrics(tmp_path / "again") == metrics(finished.directory)
    assert not list((tmp_path / "again" / "artifacts").rglob("promotion.json"))
