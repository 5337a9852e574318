"""The component: what Kubeflow hands over to it, in the compiled form and as its executor calls it."""

import json
import subprocess
import sys

import pytest
import yaml
from kfp import compiler, dsl

from kfp_driver import check_output
from progrpo.errors import ConfigError, ManifestError
from progrpo_components import images, steps
from progrpo_components.launch_train.component import launch_train
from progrpo_components.trainjob.artifacts import publish
from s3 import s3_server  # noqa: F401 - a fixture


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A pipeline of this one task, with GPUs and a node selector."""
    from kfp import kubernetes

    @dsl.pipeline(name="p")
    def pipeline(run: dict, config: dict, trainjob: dict):
        data = dsl.importer(artifact_uri="s3://b/d", artifact_class=dsl.Dataset)
        start = dsl.importer(artifact_uri="s3://b/c", artifact_class=dsl.Model)
        task = launch_train(
            run=run,
            config=config,
            trainjob=trainjob,
            experiment="e",
            run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            run_name=dsl.PIPELINE_JOB_NAME_PLACEHOLDER,
            dataset=data.output,
            checkpoint=start.output,
        )
        task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(8)
        kubernetes.add_node_selector(task, "gpu", "h100")

    path = tmp_path_factory.mktemp("compiled") / "p.yaml"
    compiler.Compiler().compile(pipeline, str(path))
    return next(iter(yaml.safe_load_all(path.read_text())))


def test_resources_and_placement_are_passed_on_and_leave_the_launcher_alone(compiled):
    component = compiled["components"]["comp-launch-train"]
    fields = {item["field"]: item.get("applyToTask", False) for item in component["taskConfigPassthroughs"]}
    assert fields == {
        "RESOURCES": False,
        "KUBERNETES_NODE_SELECTOR": False,
        "KUBERNETES_TOLERATIONS": False,
        "KUBERNETES_AFFINITY": False,
        "ENV": True,
        "KUBERNETES_VOLUMES": True,
    }
    assert component["inputDefinitions"]["parameters"]["tc"]["parameterType"] == "TASK_CONFIG"
    assert component["inputDefinitions"]["parameters"]["tc"]["isOptional"]


def test_it_runs_in_the_light_image_and_installs_nothing(compiled):
    container = compiled["deploymentSpec"]["executors"]["exec-launch-train"]["container"]
    assert container["image"] == images.CPU
    assert "pip install" not in json.dumps(container)


def test_inputs_and_outputs_are_those_of_train(compiled):
    from progrpo_components.train.component import train

    def names(spec):
        return set(spec.inputs or {}), set(spec.outputs or {})

    (inputs, outputs), (own, own_outputs) = names(train.component_spec), names(launch_train.component_spec)
    assert own - inputs == {"trainjob", "tc"}
    assert not inputs - own
    assert own_outputs == outputs


def test_the_step_runs_from_kubeflows_inputs_to_a_training_run(
    api, job, write_output, tiny_dataset, embedded_checkpoint, tmp_path
):
    """The function that Kubeflow's executor calls, with the numbers as floats and a task configuration."""
    api.script = [lambda: (write_output(), api.condition("Complete"))]
    dataset = dsl.Dataset(name="dataset", uri="minio://mlpipeline/d?endpoint=x", metadata={})
    checkpoint = dsl.Model(name="checkpoint", uri="minio://mlpipeline/c", metadata={})
    training = dsl.Model(name="training", uri=str(tmp_path / "training"), metadata={})
    for artifact, path in ((dataset, tiny_dataset), (checkpoint, embedded_checkpoint)):
        artifact.custom_path = str(path)
    launch_train.python_func(
        run={"arm": {"name": "progrpo", "algorithm": {"type": "progrpo"}}, "seed": 3.0},
        config={"device": "cpu", "distributed": {"num_processes": 16.0}},
        trainjob={"num_nodes": 2.0, "deadline_s": 3600.0},
        experiment="e",
        run_id="run-1",
        run_name="nightly",
        dataset=dataset,
        checkpoint=checkpoint,
        training=training,
        tc=dsl.TaskConfig(resources={"limits": {"nvidia.com/gpu": "8"}}, node_selector={"gpu": "h100"}),
    )
    (body,) = api.sent("POST")
    assert body["spec"]["trainer"]["resourcesPerNode"] == {"limits": {"nvidia.com/gpu": "8"}}
    assert body["spec"]["trainer"]["numProcPerNode"] == 8
    told = json.loads(body["spec"]["trainer"]["args"][1])
    assert (told["dataset"], told["checkpoint"]) == ("s3://mlpipeline/d", "s3://mlpipeline/c")
    assert training.uri == str(tmp_path / "training")
    assert training.metadata["steps"] == 2


def test_the_training_run_stays_under_the_root_that_kubeflow_gave(
    api,
    write_output,
    tiny_dataset,
    embedded_checkpoint,
    tmp_path,
    s3_server,  # noqa: F811
    monkeypatch,
):
    """Its root is minio:// by default, and Kubeflow takes no output that begins otherwise."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3_server.client().create_bucket(Bucket="kubeflow")
    root = "minio://kubeflow/v2/artifacts"
    uri = f"{root}/launch-train/5e1f/training"

    def train():
        write_output()
        told = json.loads(api.only["spec"]["trainer"]["args"][1])["output"]
        publish(tmp_path / "training", told)
        api.condition("Complete")

    api.script = [train]
    training = dsl.Model(name="training", uri=uri, metadata={})
    values = {
        "run": {"arm": {"name": "progrpo", "algorithm": {"type": "progrpo"}}, "seed": 3.0},
        "run_id": "run-1",
        "run_name": "run",
    }
    values |= {"config": {"device": "cpu", "distributed": {"num_processes": 16.0}}, "trainjob": {"num_nodes": 2.0}}
    for name, path, kind in (("dataset", tiny_dataset, dsl.Dataset), ("checkpoint", embedded_checkpoint, dsl.Model)):
        values[name] = kind(name=name, uri=f"{root}/{name}", metadata={})
        values[name].custom_path = str(path)
    launch_train.python_func(**values, experiment="e", training=training, tc=dsl.TaskConfig())
    assert training.uri == uri
    check_output(training.uri, root)
    listed = s3_server.client().list_objects_v2(Bucket="kubeflow")["Contents"]
    assert "v2/artifacts/launch-train/5e1f/training/manifest.json" in {item["Key"] for item in listed}


def test_wrong_settings_and_inputs_fail_before_anything_is_created(api, tiny_dataset, embedded_checkpoint):
    run = {"arm": {"name": "progrpo", "algorithm": {"type": "progrpo"}}, "seed": 0}
    uris = dict.fromkeys(("dataset", "checkpoint", "training"), "s3://b/x")
    tracking = steps.Tracking(run_id="r")
    values = {"dataset": tiny_dataset, "checkpoint": embedded_checkpoint, "uris": uris, "tracking": tracking}
    with pytest.raises(ConfigError, match=r"trainjob: node: unknown key.*num_nodes"):
        steps.launch_train(run, {}, {"node": 2}, **values)
    with pytest.raises(ConfigError, match=r"does not divide among trainjob.num_nodes 2"):
        steps.launch_train(run, {}, {}, **values)
    with pytest.raises(ManifestError, match="a dataset artifact is needed"):
        steps.launch_train(run, {}, {}, **values | {"dataset": embedded_checkpoint})
    assert not api.sent("POST")


def test_the_launcher_needs_no_torch():
    program = (
        "import sys\nimport progrpo_components.trainjob.launcher, progrpo_components.trainjob.reaper\n"
        "assert not {'torch', 'transformers', 'mlflow', 'pyarrow', 'kfp'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
