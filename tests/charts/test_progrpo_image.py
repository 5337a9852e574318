"""The chart's containers in the real image, with the user, walls, volumes and limits that the manifest gives them.

Docker stands in for the kubelet, and a directory for each emptyDir.
"""

import json
import time

import pytest

from charts.helm import pods, render
from docker_engine import docker_engine, images  # noqa: F401 - fixtures
from kfp_recorder import recording

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
START_S = 120
USER = "12345:0"  # as OpenShift gives: the manifest names none


@pytest.fixture(scope="module")
def release():
    return render(
        "progrpo", {"trainJobs": {"mode": "always", "runtime": {"create": True}}, "kfp": {"tokenAudience": ""}}
    )


@pytest.fixture
def docker(docker_engine, images, release, tmp_path):  # noqa: F811
    """Return a function that gives the arguments of ``docker run`` for a container, and the engine."""

    def arguments(owner, name, network):
        (pod,) = (p for p in pods(release.manifests) if p.name == owner)
        (container,) = (c for c in pod.containers if c["name"] == name)
        security, limits = container["securityContext"], container["resources"]["limits"]
        assert pod.spec["securityContext"]["runAsNonRoot"]
        found = ["--user", USER, "--network", network]
        found += ["--read-only"] * security["readOnlyRootFilesystem"]
        found += ["--security-opt", "no-new-privileges"] * (not security["allowPrivilegeEscalation"])
        found += [part for capability in security["capabilities"]["drop"] for part in ("--cap-drop", capability)]
        found += ["--cpus", str(limits["cpu"]).replace("500m", "0.5"), "--memory", limits["memory"].rstrip("i").lower()]
        for mount in container["volumeMounts"]:
            folder = tmp_path / mount["name"]  # the containers of a pod share it
            folder.mkdir(exist_ok=True)
            folder.chmod(0o1777)
            found += ["--volume", f"{folder}:{mount['mountPath']}"]
        for variable in container["env"]:
            if "value" in variable:  # the others are of a config map and secrets, all of them optional
                found += ["--env", f"{variable['name']}={variable['value']}"]
        return [*found, images["progrpo-cpu"], *container["command"]]

    return docker_engine.docker, arguments


def test_the_job_compiles_and_uploads(docker):
    run, arguments = docker
    done = run("run", "--rm", *arguments("Job/progrpo-upload", "compile", "none"), check=False)
    assert done.returncode == 0, done.stderr
    with recording() as recorder:  # a stand-in of the Kubeflow Pipelines API
        command = arguments("Job/progrpo-upload", "upload", "host")
        done = run("run", "--rm", *command, f"--endpoint={recorder.url}", check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert recorder.problems == []
    assert done.stdout.count(": created") == len(recorder.versions) == 5


# Run inside the container, which has no network but its own loopback.
_ASK = r"""
import json, urllib.request

def ask(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    return json.load(urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:8080" + path, data), timeout=60))

answer = json.dumps({"inputs": ["2\n"], "outputs": ["4\n"]})
programs = ["print(2 * int(input()))", "print(3 * int(input()))", "import socket; socket.socket(); print(4)"]
health = ask("/healthz")
print(json.dumps([health, ask("/v1/verify", {"answers": [answer], "items": [[0, text] for text in programs]})]))
"""


def test_the_sandbox_judges_behind_its_walls(docker):
    run, arguments = docker
    name = run("run", "--detach", *arguments("Deployment/progrpo-sandbox", "sandbox", "none")).stdout.strip()
    try:
        deadline = time.monotonic() + START_S
        while (done := run("exec", name, "python", "-c", _ASK, check=False)).returncode != 0:
            assert time.monotonic() < deadline, done.stderr + run("logs", name).stderr
            time.sleep(0.5)
        health, verdict = json.loads(done.stdout)
        assert health["isolation"] == "full"
        assert verdict["passed"] == [True, False, False]
        run("stop", "--time", "60", name)  # SIGTERM, as the kubelet sends
        assert run("inspect", "--format", "{{.State.ExitCode}}", name).stdout.strip() == "0"
    finally:
        run("rm", "--force", name, check=False)


@pytest.mark.parametrize(
    ("owner", "name", "says"),
    [
        ("CronJob/progrpo-reaper", "reaper", "error: no way to a Kubernetes API"),
        ("Job/progrpo-doctor", "doctor", "Kubernetes"),
    ],
)
def test_jobs_without_a_cluster_say_so(docker, owner, name, says):
    run, arguments = docker
    done = run("run", "--rm", *arguments(owner, name, "none"), check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert says in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "read-only file system" not in (done.stdout + done.stderr).lower()
