"""Variables of a step's container beside those that Kubeflow Pipelines 2.17.0 puts there, by its rules and Kubernetes'.

The order and the merging are those of kubeflow/pipelines 2.17.0: the executor's template has ``commonEnvs``
(backend/src/v2/compiler/argocompiler/common.go) and what ``UpsertRuntimeEnvVars`` adds
(backend/src/common/util/workflow.go); the driver's patch has the task's own variables, then those of the plugin, the
proxy, secrets and config maps (``initPodSpecPatch`` in backend/src/v2/driver/driver.go, ``extendPodSpecPatch`` in
k8s.go). Argo applies the patch as a strategic merge, in which entries of one name become one. Kubernetes refuses one
with value and valueFrom: "may not be specified when `value` is not empty" (``validateEnvVarValueFrom``,
pkg/apis/core/validation/validation.go; seen on 1.36).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from progrpo.storage import take_own_variables
from progrpo_components import variables
from progrpo_components.tracking.server import server_uri

COMPILED = sorted((Path(__file__).parents[2] / "pipelines" / "compiled").glob("*.yaml"))

SECRET = {"valueFrom": {"secretKeyRef": {"name": "kfp-mlflow-credentials", "key": "k"}}}
CREDENTIALS = {
    "none": {},
    "kubernetes": {},
    "bearer": {"MLFLOW_TRACKING_TOKEN": SECRET},
    "basic-auth": {"MLFLOW_TRACKING_USERNAME": SECRET, "MLFLOW_TRACKING_PASSWORD": SECRET},
}
"""BuildCredentialEnvVars, backend/src/common/plugins/mlflow/config.go."""
CONFIG = json.dumps({"endpoint": "http://theirs", "parentRunId": "p", "experimentId": "1", "authType": "none"})
LAUNCHER = ("KFP_POD_NAME", "KFP_POD_UID", "KFP_RETRY_INDEX", "KFP_MLFLOW_CONFIG")
PROXY = [name for word in ("http", "https", "no") for name in (f"{word}_proxy", f"{word.upper()}_PROXY")]


def handed_out(auth):
    """RetrieveUserContainerEnvVars, backend/src/v2/common/plugins/mlflow/handler.go."""
    names = ["MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_WORKSPACE"]
    names += ["MLFLOW_TRACKING_AUTH"] if auth == "kubernetes" else []
    return {**{name: {"value": "x"} for name in names}, **CREDENTIALS[auth]}


def own_variables(package):
    """Yield (executor, its variables with a value, those from secrets and config maps)."""
    spec, platform = yaml.load_all(package.read_text(), Loader=yaml.CSafeLoader)
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for label, executor in spec["deploymentSpec"]["executors"].items():
        values = {item["name"]: {"value": item["value"]} for item in executor["container"].get("env", ())}
        references = [
            (key["envVar"], {"valueFrom": {kind: {}}})
            for kind in ("secretAsEnv", "configMapAsEnv")
            for source in pods[label].get(kind, ())
            for key in source["keyToEnv"]
        ]
        yield label, values, references


def merged(entries):
    """A strategic merge of a list whose key is the name."""
    found = {}
    for name, entry in entries:
        found[name] = found.get(name, {}) | entry
    return found


@pytest.mark.parametrize("auth", CREDENTIALS)
@pytest.mark.parametrize("package", COMPILED, ids=lambda path: path.stem)
def test_no_pod_is_refused_for_what_the_plugin_hands_out(package, auth):
    for label, values, references in own_variables(package):
        template = [(name, {"value": "x"}) for name in LAUNCHER] + list(CREDENTIALS[auth].items())
        patch = [*values.items(), *handed_out(auth).items(), *((name, {"value": "x"}) for name in PROXY), *references]
        both = [name for name, entry in merged([*template, *patch]).items() if {"value", "valueFrom"} <= entry.keys()]
        assert both == [], label
        names = [name for name, _ in (*values.items(), *references)]
        assert len(set(names)) == len(names), label


@pytest.mark.parametrize("package", COMPILED, ids=lambda path: path.stem)
def test_a_container_sets_nothing_that_a_platform_has_a_name_for(package):
    """Not ``AWS_*``, with which Kubeflow's launcher uploads, nor anything else that is not ours."""
    for label, values, references in own_variables(package):
        names = {name for name, _ in (*values.items(), *references)}
        assert names, label
        assert {name for name in names if not name.startswith("PROGRPO_")} == set(), label


def test_every_variable_is_one_that_the_code_takes(monkeypatch):
    taken = {**variables.CONFIG_MAP, **variables.S3_SECRET, **variables.MLFLOW_SECRET}
    for key in taken.values():
        monkeypatch.setenv(key, "the platform's")  # so that it is as before after the test
    for key in ("AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_AUTH"):
        monkeypatch.setenv(key, "the platform's")
    for variable in taken:
        monkeypatch.setenv(variable, f"ours, {variable}")
    take_own_variables()
    assert server_uri() == "ours, PROGRPO_MLFLOW_TRACKING_URI"
    for variable, key in taken.items():
        if variable.startswith(("PROGRPO_S3_", "PROGRPO_MLFLOW_")):
            assert os.environ[key] == f"ours, {variable}"
    assert not {"AWS_SESSION_TOKEN", "MLFLOW_TRACKING_AUTH"} & os.environ.keys(), "of another identity than ours"


@pytest.mark.parametrize("given", [{"MLFLOW_TRACKING_URI": "http://theirs"}, {"KFP_MLFLOW_CONFIG": CONFIG}, {}])
def test_our_password_goes_to_no_server_but_ours(monkeypatch, given):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD", "KFP_MLFLOW_CONFIG", "PROGRPO_PIPELINE_RUN_ID"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in {**given, "PROGRPO_MLFLOW_TRACKING_PASSWORD": "of ours"}.items():
        monkeypatch.setenv(name, value)
    assert server_uri() == ("http://theirs" if given else None)
    assert "MLFLOW_TRACKING_PASSWORD" not in os.environ
