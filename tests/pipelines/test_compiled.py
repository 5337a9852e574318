"""The compiled pipelines: committed, current, and fit for a cluster that installs nothing at run time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from progrpo import __version__
from progrpo.config import PIPELINES
from progrpo_pipelines.presets import arguments_of, preset_names, resolve

COMPILED = Path(__file__).parents[2] / "pipelines" / "compiled"
FILES = {
    f"{pipeline}{'' if preset is None else f'-{preset}'}.yaml": (pipeline, preset)
    for pipeline in PIPELINES
    for preset in (None, *preset_names())
}
CACHED = {"prepare-dataset", "import-checkpoint"}


def compile_all(output: Path, **environment: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if key != "PROGRPO_IMAGE_REGISTRY"}
    command = [sys.executable, "-m", "progrpo_pipelines.cli", "compile", "--all", "--output", str(output)]
    subprocess.run(command, check=True, env={**clean, **environment}, capture_output=True, timeout=120)
    return {path.name: path.read_text() for path in output.iterdir()}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return compile_all(tmp_path_factory.mktemp("compiled"), PYTHONHASHSEED="1")


@pytest.fixture(params=sorted(FILES))
def spec(request):
    pipeline, preset = FILES[request.param]
    return pipeline, preset, yaml.safe_load((COMPILED / request.param).read_text())


def all_tasks(spec):
    for dag in [spec["root"]["dag"], *(c["dag"] for c in spec["components"].values() if "dag" in c)]:
        yield from dag["tasks"].items()


def test_committed_files_are_current(compiled):
    committed = {path.name: path.read_text() for path in COMPILED.iterdir()}
    assert sorted(committed) == sorted(compiled) == sorted(FILES)
    for name, text in compiled.items():
        assert committed[name] == text, f"{name} is not what the pipeline compiles to: run make golden"


def test_compiling_is_deterministic_and_the_registry_is_free(compiled, tmp_path):
    again = compile_all(tmp_path, PYTHONHASHSEED="2", PROGRPO_IMAGE_REGISTRY="registry.example/team/")
    assert {
        name: text.replace("registry.example/team/", "localhost/progrpo/") for name, text in again.items()
    } == compiled
    assert "registry.example/team/progrpo-cpu:" in again["compare.yaml"]


def test_nothing_is_installed_at_run_time_and_images_are_pinned(spec):
    for executor in spec[2]["deploymentSpec"]["executors"].values():
        container = executor["container"]
        assert "pip install" not in " ".join(container["command"])
        assert container["image"] in {
            f"localhost/progrpo/progrpo-cpu:{__version__}",
            f"localhost/progrpo/progrpo-gpu:{__version__}",
        }


def test_training_and_sampling_run_in_the_gpu_image(spec):
    images = {name: e["container"]["image"] for name, e in spec[2]["deploymentSpec"]["executors"].items()}
    for name, image in images.items():
        assert ("progrpo-gpu" in image) == name.startswith(("exec-train", "exec-evaluate")), name


def test_only_inputs_are_cached(spec):
    for name, task in all_tasks(spec[2]):
        if "cachingOptions" in task:
            assert bool(task["cachingOptions"].get("enableCache")) == (name in CACHED), name


def test_parameters_are_the_configuration_and_explained(spec):
    pipeline, preset, ir = spec
    parameters = ir["root"]["inputDefinitions"]["parameters"]
    assert set(parameters) == set(PIPELINES[pipeline].model_fields)
    arguments = arguments_of(resolve(pipeline, preset=preset))
    for name, parameter in parameters.items():
        assert len(parameter["description"]) > 10, name
        assert parameter["defaultValue"] == arguments[name], name  # integers are floats in the IR, and equal


def test_every_task_waits_for_the_check_of_the_inputs(spec):
    tasks = spec[2]["root"]["dag"]["tasks"]
    assert "dependentTasks" not in tasks["validate-inputs"]
    for name in CACHED:
        assert tasks[name]["dependentTasks"] == ["validate-inputs"]
    for name in set(tasks) - CACHED - {"validate-inputs"}:
        assert tasks[name]["dependentTasks"], name


def test_the_loop_goes_over_the_validated_runs_two_at_a_time():
    for name in ("compare", "train-and-evaluate"):
        tasks = yaml.safe_load((COMPILED / f"{name}.yaml").read_text())["root"]["dag"]["tasks"]
        (loop,) = [task for task in tasks.values() if "parameterIterator" in task]
        assert loop["iteratorPolicy"]["parallelismLimit"] == 2
        assert loop["inputs"]["parameters"][loop["parameterIterator"]["items"]["inputParameter"]] == {
            "taskOutputParameter": {"outputParameterKey": "Output", "producerTask": "validate-inputs"}
        }


def test_every_task_has_a_name_for_people(spec):
    for name, task in all_tasks(spec[2]):
        assert task["taskInfo"]["name"][0].isupper(), name


def test_header_says_what_the_file_is(spec):
    pipeline, preset, _ = spec
    text = (COMPILED / f"{pipeline}{'' if preset is None else f'-{preset}'}.yaml").read_text()
    assert text.startswith(f"# PIPELINE DEFINITION\n# Name: {pipeline}\n# Description: ")
    assert str(Path(__file__).parents[2]) not in text
