"""Kubeflow Trainer's and JobSet's webhooks take what we make, and each of their rules finds what it forbids."""

import copy
from types import SimpleNamespace

import pytest

from charts.helm import load_values, render, values_files
from progrpo_components.settings import TrainJobConfig
from progrpo_components.trainjob.spec import Owner, build_trainjob
from webhooks import RULES, jobset_of, refused_jobset, refused_runtime, refused_trainjob

APIS = ("runtimePatches", "podTemplateOverrides")
VALUES = {path.stem: load_values(path) for path in values_files("progrpo")}
WITH_TRAINJOBS = {name: values for name, values in VALUES.items() if values.get("trainJobs", {}).get("mode") != "never"}
TASK = SimpleNamespace(
    resources={"limits": {"nvidia.com/gpu": "1", "memory": "100Gi"}, "requests": {"cpu": "8"}},
    node_selector={"gpu": "h100"},
    tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    affinity={"nodeAffinity": {}},
    env=[{"name": "HF_HUB_OFFLINE", "value": "1"}, {"name": "PET_NNODES", "value": "9"}],
    volumes=[{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
    volume_mounts=[{"name": "models", "mountPath": "/models"}],
)
CONFIGS = {
    "defaults": ({}, None),
    "task": ({}, TASK),
    "everything": (
        {"queue": "gpus", "priority_class": "high", "image": "r/i@sha256:0", "image_pull_secrets": ["a", "b"]}
        | {"service_account": "training", "deadline_s": None, "runtime_kind": "ClusterTrainingRuntime"}
        | {"resources_per_node": {"limits": {"nvidia.com/gpu": 1}}},
        TASK,
    ),
}


def runtime_of(values):
    settings = {**values.get("trainJobs", {}), "mode": "always", "runtime": {"create": True}}
    return render("progrpo", {**values, "trainJobs": settings}).one("TrainingRuntime")


def build(job, api, values, task):
    config = TrainJobConfig.model_validate(values)
    owner = Owner("compare-x7", "uid-1")
    return build_trainjob(job, config, namespace="team-a", runtime="torch", api=api, task=task, owner=owner)


@pytest.mark.parametrize("values", WITH_TRAINJOBS.values(), ids=WITH_TRAINJOBS)
def test_the_chart_s_runtime_and_our_trainjobs_are_taken(values, make_job):
    runtime = runtime_of(values)
    assert refused_runtime(runtime) == []
    for api in APIS:
        for name, (config, task) in CONFIGS.items():
            trainjob = build(make_job(), api, config, task)
            found = refused_trainjob(trainjob, runtime) + refused_jobset(jobset_of(trainjob, runtime))
            assert found == [], (api, name)


def test_the_longest_names_are_taken(make_job):
    train = {"prompts_per_step": 256, "device": "cpu", "distributed": {"num_processes": 256}}
    job = make_job(run_id="r" * 100, train=train)
    trainjob = build(job, "runtimePatches", {"num_nodes": 256}, None)
    assert refused_trainjob(trainjob, runtime_of({})) + refused_jobset(jobset_of(trainjob, runtime_of({}))) == []


# What each rule refuses: where it stands in the runtime (R), the TrainJob (T) or the JobSet (J), and a wrong value.


def spec(value):
    return value["spec"]["template"]["spec"]


def rule(value):
    return spec(value)["failurePolicy"]["rules"][0]


def jobset_rule(value):
    return value["spec"]["failurePolicy"]["rules"][0]


def patched_job(value):
    return value["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]


def patched_pod(value):
    return patched_job(value)["template"]["spec"]["template"]["spec"]


def codes(value):
    job = value["spec"]["replicatedJobs"][0]["template"]["spec"]
    return job["podFailurePolicy"]["rules"][0]["onExitCodes"]


MANY = [{"name": f"v{number}", "value": ""} for number in range(129)]
WRONG = {
    "TrainingRuntime": {
        "ancestor_has_one_replica": [lambda r: spec(r)["replicatedJobs"][0].update(replicas=2)],
        "ancestor_has_its_container": [
            lambda r: spec(r)["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0].update(
                name="trainer"
            )
        ],
        "one_policy": [lambda r: r["spec"]["mlPolicy"].update(jax={})],
        "failure_actions": [
            lambda r: rule(r).update(action="Restart"),
            lambda r: rule(r).update(onJobFailureReasons=["PodFailurePolicy"] * 2),
        ],
    },
    "TrainJob": {
        "trainjob_name": [
            lambda t: t["metadata"].update(name="1st"),
            lambda t: t["metadata"].update(name="a.b"),
            lambda t: t["metadata"].update(name="a" * 64),
        ],
        "labels": [
            lambda t: t["metadata"]["labels"].update(x="a b"),
            lambda t: t["metadata"]["labels"].update(x="a" * 64),
            lambda t: t["metadata"]["labels"].update({"Progrpo_/x": "a"}),
            lambda t: patched_job(t)["template"]["spec"]["template"]["metadata"]["labels"].update(x="-a"),
        ],
        "lengths": [
            lambda t: t["spec"]["runtimeRef"].update(name="a" * 254),
            lambda t: t["spec"]["trainer"].update(image="a" * 501),
            lambda t: t["spec"]["trainer"].update(env=MANY),
            lambda t: t["spec"]["trainer"].update(args=["a" * 1048577]),
            lambda t: t["spec"]["trainer"]["env"].append(dict(t["spec"]["trainer"]["env"][0])),
        ],
        "numbers": [
            lambda t: t["spec"]["trainer"].update(numNodes=2.0),
            lambda t: t["spec"]["trainer"].update(numProcPerNode="auto"),
            lambda t: t["spec"].update(activeDeadlineSeconds=0),
        ],
        "value_or_source": [lambda t: t["spec"]["trainer"]["env"][0].update(value="both")],
        "reserved_variables": [
            lambda t: t["spec"]["trainer"]["env"].append({"name": "PET_MASTER_ADDR", "value": "x"}),
        ],
        "manager": [
            lambda t: t["spec"]["runtimePatches"][0].update(manager="launcher"),
            lambda t: t["spec"]["runtimePatches"][0].update(manager="Progrpo.io/launcher"),
            lambda t: t["spec"]["runtimePatches"].append(t["spec"]["runtimePatches"][0]),
        ],
        "patched_job_exists": [lambda t: patched_job(t).update(name="worker")],
        "patched_container_exists": [lambda t: patched_pod(t)["containers"].append({"name": "sidecar"})],
        "no_variables_of_node": [lambda t: patched_pod(t)["containers"][0].update(env=[{"name": "A", "value": "b"}])],
        "patch_fields": [
            lambda t: patched_pod(t).update(priorityClassName="high"),
            lambda t: patched_pod(t)["containers"][0].update(command=["sh"]),
        ],
        "patch_lists": [
            lambda t: patched_pod(t)["volumes"].append({"name": "dshm", "emptyDir": {}}),
            lambda t: patched_pod(t)["containers"][0]["volumeMounts"].append({"name": "dshm", "mountPath": "/b"}),
            lambda t: patched_pod(t).update(tolerations=[{"key": str(number)} for number in range(129)]),
        ],
    },
    "JobSet": {
        "job_names": [lambda j: j["metadata"].update(name="a" * 57)],
        "pod_names": [lambda j: j["metadata"].update(name="a" * 50)],
        "group_names": [lambda j: j["spec"]["replicatedJobs"][0].update(groupName="A")],
        "failure_rule_names": [
            lambda j: jobset_rule(j).update(name="user-error"),
            lambda j: jobset_rule(j).update(name="1st"),
            lambda j: jobset_rule(j).update(name="a:"),
            lambda j: jobset_rule(j).update(name="a" * 129),
            lambda j: j["spec"]["failurePolicy"]["rules"].append(jobset_rule(j)),
        ],
        "failure_targets": [lambda j: jobset_rule(j).update(targetReplicatedJobs=["worker"])],
        "failure_reasons": [lambda j: jobset_rule(j).update(onJobFailureReasons=["Evicted"])],
        "pod_failure_policy": [
            lambda j: codes(j).update(values=[0]),
            lambda j: codes(j).update(values=[3, 2]),
            lambda j: codes(j).update(containerName="trainer"),
            lambda j: j["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"].update(
                restartPolicy="OnFailure"
            ),
        ],
    },
}
CASES = [
    pytest.param(kind, name, change, id=f"{kind}-{name}-{number}")
    for kind, rules in WRONG.items()
    for name, changes in rules.items()
    for number, change in enumerate(changes)
]


def test_every_rule_has_something_that_it_refuses_and_a_source():
    for kind, rules in RULES.items():
        names = {found.name for found in rules} - {"runtime_exists"}
        assert names == WRONG[kind].keys()
        assert all(found.program and found.file and found.function for found in rules)


@pytest.mark.parametrize(("kind", "name", "change"), CASES)
def test_a_rule_refuses_what_it_is_for(kind, name, change, training_runtime, make_job):
    runtime = copy.deepcopy(training_runtime)
    trainjob = build(make_job(), "runtimePatches", {}, TASK)
    if kind == "TrainingRuntime":
        change(runtime)
        found = refused_runtime(runtime)
    elif kind == "TrainJob":
        change(trainjob)
        found = refused_trainjob(trainjob, runtime)
    else:
        jobset = jobset_of(trainjob, runtime)
        change(jobset)
        found = refused_jobset(jobset)
    assert any(f" {name}: " in text for text in found), found


def test_overrides_of_2_1_know_no_security_context(training_runtime, make_job):
    trainjob = build(make_job(), "podTemplateOverrides", {}, None)
    trainjob["spec"]["podTemplateOverrides"][0]["spec"]["securityContext"] = {"runAsNonRoot": True}
    (found,) = refused_trainjob(trainjob, training_runtime)
    assert "unknown field securityContext" in found


def test_a_trainjob_needs_its_runtime(make_job):
    (found,) = refused_trainjob(build(make_job(), "runtimePatches", {}, None), None)
    assert "torch: specified trainingRuntime must be created before the TrainJob is created" in found
