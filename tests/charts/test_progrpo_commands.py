"""The commands and variables that charts/progrpo renders, given to the programs they are for, on this machine."""

import os
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from charts.helm import load_values, pods, render, values_files
from kfp_recorder import recording

VALUES = {path.stem: load_values(path) for path in values_files("progrpo")}


def containers(release):
    return {c["name"]: c for each in pods(release.manifests) for c in each.containers}


def environment(container):
    """Return the variables with a plain value, and what this machine's Python needs."""
    given = {v["name"]: v["value"] for v in container.get("env", ()) if "value" in v}
    ours = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return {**ours, **given}


@pytest.mark.parametrize("name", [name for name in VALUES if name != "nothing"])
def test_the_command_line_takes_every_command(name):
    from progrpo_pipelines.cli import app

    commands = typer.main.get_command(app).commands
    found = containers(render("progrpo", VALUES[name]))
    called = {
        container["command"][1]: container["command"][2:]
        for container in found.values()
        if container["command"][0] == "progrpo"
    }
    assert called
    for command, arguments in called.items():
        context = commands[command].make_context(command, list(arguments))  # refuses what it does not know
        if "namespace" in context.params:
            assert context.params["namespace"] in ("team-a", "shared-pipelines")
        if command != "compile" and "endpoint" in context.params:
            assert context.params["endpoint"].startswith("http")


@pytest.fixture(scope="module")
def job(tmp_path_factory, python):
    """The upload job of a site with its own registry, and how to run one of its containers in a folder of ours."""
    found = containers(render("progrpo", {**VALUES["air-gap"], "caBundle": {}}))
    folder = tmp_path_factory.mktemp("job")
    token = folder / "token"
    token.write_text("of the service account")

    def run(name, *more):
        command = [python, "-m", "progrpo_pipelines.cli", *found[name]["command"][1:], *more]
        variables = environment(found[name])
        if "KF_PIPELINES_SA_TOKEN_PATH" in variables:
            variables["KF_PIPELINES_SA_TOKEN_PATH"] = str(token)
        here = [command[0], *(part.replace("/tmp/", f"{folder}/") for part in command[1:])]
        done = subprocess.run(here, env=variables, cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("compile")
    files = [Path(part.replace("/tmp/", f"{folder}/")) for part in found["upload"]["command"] if part.endswith(".yaml")]
    return run, files, token.read_text()


@pytest.mark.slow
def test_the_job_compiles_what_it_uploads_with_the_site_s_digests(job):
    _, files, _ = job
    assert [file.stem for file in files] == ["compare-smoke", "compare", "evaluate", "prepare", "train-and-evaluate"]
    digests = {f"cpu@sha256:{'1' * 64}", f"gpu@sha256:{'2' * 64}"}
    for file in files:
        executors = next(iter(yaml.safe_load_all(file.read_text())))["deploymentSpec"]["executors"].values()
        images = {executor["container"]["image"] for executor in executors}
        assert {image.removeprefix("registry.site.example:5000/mirror/progrpo/progrpo-") for image in images} <= digests


@pytest.mark.slow
def test_the_job_uploads_every_pipeline_once(job):
    """To the recorder, a stand-in of the Kubeflow Pipelines API; of each pipeline the form offers what came last."""
    run, files, token = job
    with recording() as recorder:
        recorder.multi_user, recorder.token = True, token
        first = run("upload", f"--endpoint={recorder.url}")
        second = run("upload", f"--endpoint={recorder.url}")
    assert recorder.problems == []
    assert first.count(": created") == second.count(": unchanged") == len(recorder.versions) == len(files)
    compare = [line.split()[1] for line in first.splitlines() if line.startswith("compare ")]
    assert ["-smoke-" in version for version in compare] == [True, False]


def test_compiled_pipelines_and_the_chart_agree_on_names():
    from progrpo_components import variables
    from progrpo_pipelines.packaging.placement import CONFIG_MAP, SECRETS

    data = {}
    for name in ("train-jobs-always", "mlflow-and-s3"):
        data |= render("progrpo", VALUES[name]).one("ConfigMap", CONFIG_MAP)["data"]
    by_hand = {"KF_PIPELINES_UI_ENDPOINT", "PROGRPO_TRACKING"}  # a link the site may give, a switch
    assert set(variables.CONFIG_MAP.values()) - by_hand <= set(data)
    doctor = containers(render("progrpo", VALUES["defaults"]))["doctor"]
    given = {
        (reference["name"], variable["name"]): reference["key"]
        for variable in doctor["env"]
        for reference in variable.get("valueFrom", {}).values()
    }
    own = {(CONFIG_MAP, "PROGRPO_S3_URI"): "PROGRPO_S3_URI"}  # where the check looks
    names = ("PROGRPO_TRACKING", "PROGRPO_TRAINING_RUNTIME", "PROGRPO_UI_ENDPOINT")
    unused = {(CONFIG_MAP, name) for name in names}
    pods = {
        (name, *item) for name, keys in {CONFIG_MAP: variables.CONFIG_MAP, **SECRETS}.items() for item in keys.items()
    }
    assert given == own | {(name, variable): key for name, variable, key in pods if (name, variable) not in unused}


def test_a_gpu_pool_is_what_the_form_takes():
    from progrpo_components.form import read_form

    pools = render("progrpo", VALUES["gpu-pools"]).one("ConfigMap", "progrpo-gpu-pools")["data"]
    for name, given in VALUES["gpu-pools"]["gpuPools"].items():
        form = {"checkpoint_uri": "s3://a/b", "dataset_train_uri": "s3://a/c.jsonl", **yaml.safe_load(pools[name])}
        placement = read_form("compare", form, {}).placement
        assert (placement.gpu_type, placement.gpu_count) == (given["gpuType"], given["gpuCount"])
        assert placement.node_selector == given.get("nodeSelector", {})
        asked = [toleration.model_dump(exclude_none=True) for toleration in placement.tolerations]
        assert asked == [{"operator": "Equal", **toleration} for toleration in given.get("tolerations", [])]


def test_runs_have_the_rights_that_the_check_asks_for():
    from progrpo_pipelines.doctor.cluster import DEFAULTS, POOLS, RIGHTS, RUNTIME_KEY

    release = render("progrpo", VALUES["gpu-pool-of-runtime"])
    given = {
        (group, resource, verb)
        for rule in release.one("Role", "progrpo-launcher")["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert {(group, resource, verb) for group, resource, verbs in RIGHTS for verb in verbs} <= given
    runtime = release.one("ConfigMap", DEFAULTS)["data"][RUNTIME_KEY]
    assert release.one("TrainingRuntime", runtime)
    assert release.one("ConfigMap", POOLS)
