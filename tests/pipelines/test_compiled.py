"""The compiled pipelines: committed, current, and fit for a cluster that installs nothing at run time."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from progrpo import __version__
from progrpo_components.form import FIELDS
from progrpo_components.settings import PIPELINES
from progrpo_pipelines.packaging.compiling import compile_pipeline
from progrpo_pipelines.packaging.placement import CONFIG_MAP, MLFLOW_SECRET, S3_SECRET
from progrpo_pipelines.packaging.presets import form_defaults, preset_names, preset_parameters
from progrpo_pipelines.packaging.reference import fill_tables, parameters_of
from progrpo_pipelines.packaging.target import Target

ROOT = Path(__file__).parents[2]
COMPILED = ROOT / "pipelines" / "compiled"
FILES = {
    f"{pipeline}{'' if preset is None else f'-{preset}'}.yaml": (pipeline, preset)
    for pipeline in PIPELINES
    for preset in (None, *preset_names())
}
CACHED = {"prepare-dataset", "import-checkpoint"}
ON_GPU = {"train", "launch-train", "evaluate"}  # launch-train asks for the GPUs of its nodes, and has none itself


def compile_all(output: Path, *options: str, **environment: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if key != "PROGRPO_IMAGE_REGISTRY"}
    command = [sys.executable, "-m", "progrpo_pipelines.cli", "compile", "--all", "--output", str(output), *options]
    subprocess.run(command, check=True, env={**clean, **environment}, capture_output=True, timeout=240)
    return {path.name: path.read_text() for path in output.iterdir()}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return compile_all(tmp_path_factory.mktemp("compiled"), PYTHONHASHSEED="1")


class Package:
    """A parsed package: the pipeline spec and the Kubernetes configuration of its executors."""

    def __init__(self, text, pipeline, preset):
        self.text, self.pipeline, self.preset = text, pipeline, preset
        self.spec, platform = yaml.load_all(text, Loader=yaml.CSafeLoader)
        kubernetes = platform["platforms"]["kubernetes"]
        self.config = kubernetes.get("pipelineConfig")
        self.parameters = self.spec["root"]["inputDefinitions"]["parameters"]
        self.executors = {}
        for label, executor in self.spec["deploymentSpec"]["executors"].items():
            pod = kubernetes["deploymentSpec"]["executors"][label]
            step = pod["podMetadata"]["labels"]["progrpo.io/step"]
            self.executors[label] = (step, executor["container"], pod)

    def tasks(self):
        for dag in [self.spec["root"]["dag"], *(c["dag"] for c in self.spec["components"].values() if "dag" in c)]:
            yield from dag["tasks"].items()


@pytest.fixture(params=sorted(FILES))
def package(request):
    return Package((COMPILED / request.param).read_text(), *FILES[request.param])


@pytest.fixture(scope="module")
def compare():
    return Package((COMPILED / "compare.yaml").read_text(), "compare", None)


def test_committed_files_are_current(compiled):
    committed = {path.name: path.read_text() for path in COMPILED.iterdir()}
    assert sorted(committed) == sorted(compiled) == sorted(FILES)
    for name, text in compiled.items():
        assert committed[name] == text, f"{name} is not what the pipeline compiles to: run make golden"


def test_compiling_is_deterministic_and_the_registry_is_free(compiled, tmp_path):
    again = compile_all(tmp_path, "--registry", "registry.example/team/", PYTHONHASHSEED="2")
    assert {
        name: text.replace("registry.example/team/", "localhost/progrpo/") for name, text in again.items()
    } == compiled
    assert "registry.example/team/progrpo-cpu:" in again["compare.yaml"]


def test_nothing_is_installed_at_run_time_and_images_are_pinned(package):
    assert "pip install" not in package.text
    assert ":latest" not in package.text
    for step, container, pod in package.executors.values():
        image = "progrpo-gpu" if step in ON_GPU - {"launch-train"} else "progrpo-cpu"
        assert container["image"] == f"localhost/progrpo/{image}:{__version__}"
        assert pod["imagePullPolicy"] == "IfNotPresent"


def test_no_path_of_this_machine_and_no_secret_is_in_a_package(package):
    assert str(ROOT) not in package.text
    assert "/home/" not in package.text
    for step, container, pod in package.executors.values():
        variables = {item["name"]: item["value"] for item in container["env"]}
        # A launcher hands its variables on to the nodes, which run the other image.
        image = container["image"].replace("-cpu:", "-gpu:") if step == "launch-train" else container["image"]
        assert variables.pop("PROGRPO_PIPELINE") == package.spec["pipelineInfo"]["name"]
        assert variables == {"PROGRPO_IMAGE": image}  # the images set HF_HUB_OFFLINE
        for secret in pod["secretAsEnv"]:  # names and keys, never values
            assert set(secret) == {"keyToEnv", "optional", "secretName", "secretNameParameter"}
            assert all(set(key) == {"secretKey", "envVar"} for key in secret["keyToEnv"])


def test_credentials_and_settings_come_by_name_and_are_optional(package):
    for step, _, pod in package.executors.values():
        secrets = {secret["secretName"]: secret["optional"] for secret in pod["secretAsEnv"]}
        needs_mlflow = step not in {*CACHED, "validate-inputs"}
        assert secrets == {S3_SECRET: True, **({MLFLOW_SECRET: True} if needs_mlflow else {})}
        (settings,) = pod["configMapAsEnv"]
        assert (settings["configMapName"], settings["optional"]) == (CONFIG_MAP, True)
        keys = {key["envVar"]: key["configMapKey"] for key in settings["keyToEnv"]}
        assert keys["PROGRPO_MLFLOW_TRACKING_URI"] == "MLFLOW_TRACKING_URI"


def reference(executor_value):
    """The input that a resource is read from."""
    return re.fullmatch(
        r"\{\{\$\.inputs\.parameters\['(?:pipelinechannel--)?(?:validate-inputs-)?(\w+)'\]\}\}", executor_value
    )[1]


def test_gpu_tasks_are_placed_by_the_parameters_of_the_run(package):
    for step, container, pod in package.executors.values():
        resources = container["resources"]
        mounts = {mount["mountPath"]: mount for mount in pod["emptyDirMounts"]}
        assert "/cache" in mounts
        if step not in ON_GPU:
            assert "accelerator" not in resources
            assert not {"nodeSelector", "tolerations", "nodeAffinity"} & set(pod)
            assert resources["resourceMemoryRequest"] == resources["resourceMemoryLimit"]
            assert int(pod["activeDeadlineSeconds"]) <= 6 * 3600
            continue
        assert reference(resources["accelerator"]["resourceType"]) == "gpu_type"
        assert reference(resources["accelerator"]["resourceCount"]) == "gpu_count"
        assert reference(resources["resourceCpuLimit"]) == reference(resources["resourceCpuRequest"]) == "cpu"
        assert reference(resources["resourceMemoryLimit"]) == reference(resources["resourceMemoryRequest"]) == "memory"
        named = json.dumps([pod["nodeSelector"], pod["tolerations"], pod["nodeAffinity"]])
        assert all(name in named for name in ("node_selector", "tolerations", "node_affinity"))
        assert mounts["/dev/shm"]["medium"] == "Memory"


def test_every_placement_that_a_task_refers_to_reaches_it(package):
    """Kubeflow's driver looks a name up among the inputs of the surrounding component, or among its tasks."""
    components, root = package.spec["components"], package.spec["root"]
    for owner in [*components.values(), root]:
        for name, task in owner.get("dag", {}).get("tasks", {}).items():
            label = components[task["componentRef"]["name"]].get("executorLabel")
            if label is None:
                continue
            _, container, pod = package.executors[label]
            given = set(task["inputs"]["parameters"]) | set(
                components[task["componentRef"]["name"]]["inputDefinitions"]["parameters"]
            )
            for used in re.findall(r"parameters\['([\w-]+)'\]", json.dumps(container["resources"])):
                assert used in given, (name, used)
            outer = set(owner["inputDefinitions"]["parameters"])
            for kind, value in re.findall(r'"(componentInputParameter|producerTask)": "([\w-]+)"', json.dumps(pod)):
                assert value in (outer if kind == "componentInputParameter" else owner["dag"]["tasks"]), (name, value)


def test_every_pod_can_be_selected_and_runs_as_no_root(package):
    for label, (step, _, pod) in package.executors.items():
        assert label.removeprefix("exec-").startswith(step)
        assert pod["podMetadata"]["labels"] == {"app.kubernetes.io/part-of": "progrpo", "progrpo.io/step": step}
        assert pod["securityContext"] == {"runAsNonRoot": True}


def test_only_inputs_are_cached_and_tried_again(package):
    for name, task in package.tasks():
        if "taskInfo" in task and "cachingOptions" in task:
            step = re.sub(r"-\d+$", "", name)
            assert bool(task["cachingOptions"].get("enableCache")) == (step in CACHED), name
            assert ("retryPolicy" in task) == (step in CACHED), name


def test_the_cache_is_keyed_by_the_content_of_the_inputs(package):
    tasks = dict(package.tasks())
    for name, identity in (("prepare-dataset", "dataset_identity"), ("import-checkpoint", "checkpoint_identity")):
        parameters = tasks[name]["inputs"]["parameters"]
        assert parameters["identity"]["taskOutputParameter"] == {
            "outputParameterKey": identity,
            "producerTask": "validate-inputs",
        }


def test_parameters_are_the_form_and_explained(package):
    defaults = form_defaults(package.pipeline, package.preset)
    literals = {field.name: field.literals for field in FIELDS}
    assert len(package.parameters) <= 15
    for name, parameter in package.parameters.items():
        assert len(parameter["description"]) > 10, name
        assert parameter.get("defaultValue") == defaults.get(name), name  # integers are floats in the IR, and equal
        assert tuple(parameter.get("literals", ())) == literals[name]
    assert set(defaults) <= set(package.parameters)
    validate = dict(package.tasks())["validate-inputs"]["inputs"]["parameters"]
    brought = {} if package.preset is None else preset_parameters(package.preset, package.pipeline)
    assert validate["preset"]["runtimeValue"]["constant"] == brought


def test_a_parameter_means_the_same_everywhere():
    """Except where a pipeline has other use for it, which its description says."""
    descriptions = {}
    for name in ("compare.yaml", "train-and-evaluate.yaml"):
        for parameter, spec in parameters_of(COMPILED / name).items():
            descriptions.setdefault(parameter, set()).add(spec["description"])
    differing = {name for name, texts in descriptions.items() if len(texts) > 1}
    assert differing <= {"train_learning_rate", "train_steps"}


def test_every_task_waits_for_the_check_of_the_inputs(package):
    tasks = dict(package.tasks())
    assert "dependentTasks" not in tasks["validate-inputs"]
    for name in CACHED:
        assert tasks[name]["dependentTasks"] == ["validate-inputs"]


def test_the_settings_of_every_task_are_those_that_were_checked(compare):
    """No task but the first and the last sees a parameter of the form, the experiment's name aside."""
    exempt = {"validate-inputs", "finish", "experiment"}
    (run,) = [
        c["dag"] for c in compare.spec["components"].values() if "validate-inputs" in c.get("dag", {}).get("tasks", {})
    ]
    for name, task in run["tasks"].items():
        for key, source in task["inputs"].get("parameters", {}).items():
            if name not in exempt and key not in exempt:
                assert source["taskOutputParameter"]["producerTask"] == "validate-inputs", (name, key)


def test_the_loop_goes_two_at_a_time(compare):
    (loop,) = [task for _, task in compare.tasks() if "parameterIterator" in task]
    assert loop["iteratorPolicy"]["parallelismLimit"] == 2


def test_finish_comes_last_however_the_run_went(compare):
    finish = compare.spec["root"]["dag"]["tasks"]["finish"]
    assert finish["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert finish["inputs"]["parameters"]["status"] == {
        "taskFinalStatus": {"producerTask": finish["dependentTasks"][0]}
    }


def test_a_run_has_a_deadline_and_its_workflow_an_end(package):
    assert package.config == {"activeDeadlineSeconds": 1209600, "resourceTtlOnCompletion": 604800}


def test_every_task_has_a_name_for_people(package):
    for name, task in package.tasks():
        assert task["taskInfo"]["name"][0].isupper() or "condition" in name or "exit" in name, name


def test_header_says_what_the_file_is(package):
    assert package.text.startswith(f"# PIPELINE DEFINITION\n# Name: {package.pipeline}\n# Description: ")


def test_every_task_that_tracks_knows_the_run_by_id_and_name(package):
    """The driver puts the values in place of the whole text (``resolve.go``, Kubeflow Pipelines 2.15.0 to 2.17.0)."""
    for name, task in package.tasks():
        given = task.get("inputs", {}).get("parameters", {})
        if "run_id" in given:
            assert given["run_id"]["runtimeValue"]["constant"] == "{{$.pipeline_job_uuid}}", name
            assert given["run_name"]["runtimeValue"]["constant"] == "{{$.pipeline_job_name}}", name


# --- other targets ---------------------------------------------------------------------------------------------------


def test_several_nodes_are_trained_by_a_trainjob_that_gets_the_placement():
    package = Package((COMPILED / "compare-multi-node.yaml").read_text(), "compare", "multi-node")
    tasks = dict(package.tasks())
    assert "train" not in tasks
    assert "trainjob" in json.dumps(tasks["launch-train"]["inputs"]["parameters"]["trainjob"])
    passed_on = package.spec["components"]["comp-launch-train"]["taskConfigPassthroughs"]
    assert {"field": "RESOURCES"} in passed_on  # to the nodes, and not to the pod that waits for them


def test_older_backends_get_nothing_that_they_do_not_know(tmp_path):
    for backend in ("2.15", "2.16"):
        path = compile_pipeline("compare", tmp_path / backend, preset="single-gpu", target=Target(backend=backend))
        package = Package(path.read_text(), "compare", "single-gpu")
        assert package.config is None
        assert ("literals" in package.parameters["dataset_task"]) == (backend == "2.16")
        for _, _, pod in package.executors.values():
            assert ("securityContext" in pod) == (backend == "2.16")


def test_queue_priority_and_retries_are_compiled_in(tmp_path):
    target = Target(queue="research", priority_class="high", train_retries=3)
    package = Package(compile_pipeline("compare", tmp_path, target=target).read_text(), "compare", None)
    for _, _, pod in package.executors.values():
        labels = pod["podMetadata"]["labels"]
        assert labels["kueue.x-k8s.io/queue-name"] == "research"
        assert labels["kueue.x-k8s.io/priority-class"] == "high"
    tasks = dict(package.tasks())
    assert tasks["train"]["retryPolicy"]["maxRetryCount"] == 3
    assert tasks["validate-inputs"]["inputs"]["parameters"]["train_retries"]["runtimeValue"]["constant"] == 3
    assert "retryPolicy" not in tasks["promote"]


def test_manifests_hold_the_same_pipeline(tmp_path):
    path = compile_pipeline("compare", tmp_path, preset="paper-qwen2.5-7b", kubernetes_manifests=True)
    pipeline, version = yaml.safe_load_all(path.read_text())
    assert (pipeline["kind"], pipeline["metadata"]["name"]) == ("Pipeline", "compare-paper-qwen2.5-7b")
    assert (version["kind"], version["spec"]["pipelineName"]) == ("PipelineVersion", "compare-paper-qwen2.5-7b")
    name = version["metadata"]["name"]
    assert re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", name)  # as Kubernetes takes it
    spec, platform = yaml.safe_load_all((COMPILED / "compare-paper-qwen2.5-7b.yaml").read_text())
    assert (version["spec"]["pipelineSpec"], version["spec"]["platformSpec"]) == (spec, platform)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backend", "2.14"], "--backend 2.14 is not known. There are: 2.15, 2.16, 2.17."),
        (["--priority-class", "high"], "Give --queue"),
    ],
)
def test_a_target_that_does_not_exist_is_refused(tmp_path, options, message, capsys):
    from progrpo_pipelines.cli import main

    with pytest.raises(SystemExit) as caught:
        main(["compile", "compare", "--output", str(tmp_path / "out"), *options])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- docs ------------------------------------------------------------------------------------------------------------


def test_the_tables_in_the_docs_are_current():
    text = (ROOT / "docs" / "pipelines.md").read_text()
    assert fill_tables(text, COMPILED) == text, "run make golden"
