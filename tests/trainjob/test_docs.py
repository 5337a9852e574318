"""docs/trainjob.md names the rights that are used; the chart's runtime fits the TrainJob."""

import re
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from kubernetes_api import NAMESPACE
from progrpo_components.settings import TrainJobConfig
from progrpo_components.trainjob.cluster import Cluster
from progrpo_components.trainjob.reaper import reap, reap_runtimes
from progrpo_components.trainjob.spec import Owner, build_trainjob

DOCUMENT = (Path(__file__).parents[2] / "docs" / "trainjob.md").read_text(encoding="utf-8")


def block(marker):
    """The YAML block that holds a line."""
    (found,) = [text for text in re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL) if marker in text]
    return yaml.safe_load(found)


def rights(document):
    return {
        (group, resource, verb)
        for rule in document["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def used(api):
    """The rights that the requests so far needed, as the API server would look them up."""
    verbs = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}
    found = set()
    for method, path, _, _ in api.requests:
        if path.startswith("/openapi"):
            continue
        match = re.fullmatch(rf"/apis?(?:/([^/]+))?/v[^/]+/namespaces/{NAMESPACE}/([^/]+)(/[^/]+)?(?:/([^/]+))?", path)
        group, resource, name, part = match.groups()
        verb = verbs.get(method) or ("get" if name else "list")
        found.add((group or "", f"{resource}/{part}" if part else resource, verb))
    return found


def test_the_launchers_rights_are_those_it_uses(api, launched, write_output, job):
    (runtime,) = api.runtimes
    api.add(build_trainjob(job, TrainJobConfig(), namespace=NAMESPACE, runtime=runtime, api="runtimePatches"))
    api.condition("Failed")
    running = {"running": {}}
    api.script = [
        lambda: None,
        lambda: None,
        lambda: api.pod(0, "Running", running),
        lambda: (write_output(), api.condition("Complete")),
    ]
    launched()
    assert used(api) == rights(block("# launcher"))


def test_the_reapers_rights_are_those_it_uses(api, job):
    owner, (runtime,) = Owner("gone", "u"), api.runtimes
    config = TrainJobConfig()
    api.add(build_trainjob(job, config, namespace=NAMESPACE, runtime=runtime, api="runtimePatches", owner=owner))
    reap(Cluster.connect(), max_heartbeat_age=timedelta(minutes=15))
    api.trainjobs.clear()
    reap_runtimes(Cluster.connect(), "another")
    assert used(api) == rights(block("# reaper"))


@pytest.fixture
def pod(training_runtime):
    (replicated,) = training_runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert replicated["name"] == "node"
    return replicated["template"]["spec"]["template"]["spec"]


def test_the_runtime_has_what_a_trainjob_patches(pod, make_job):
    body = build_trainjob(make_job(), TrainJobConfig(), namespace=NAMESPACE, runtime="r", api="runtimePatches")
    (container,) = pod["containers"]
    assert container["name"] == "node"
    assert container["command"] == body["spec"]["trainer"]["command"]
    config = TrainJobConfig()
    (shm,) = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "dshm"]
    assert shm == {"medium": "Memory", "sizeLimit": config.shm_size}, "one volume of that name, not two"


def test_the_runtime_passes_the_restricted_standard(pod):
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    written = {entry["value"] for entry in container["env"] if entry["name"] in ("HOME", "TMPDIR")}
    assert written <= mounted, "the root file system is read-only"
