"""The launcher against a stand-in of the Kubernetes API: no cluster was used."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from kubernetes_api import Fault, at
from progrpo.errors import CheckpointError, ConfigError, ManifestError, TrainingError
from progrpo.manifest import read_manifest
from progrpo_components.errors import ClusterError
from progrpo_components.settings import TrainJobConfig
from progrpo_components.trainjob import launcher, status
from progrpo_components.trainjob.job import termination_message
from progrpo_components.trainjob.logs import LogFollower
from progrpo_components.trainjob.spec import HEARTBEAT, OUTPUT, build_trainjob

RUNNING = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}


def ended(code, message="", reason="Error"):
    return {"terminated": {"exitCode": code, "message": message, "reason": reason}}


def build(job):
    runtime = os.environ["PROGRPO_TRAINING_RUNTIME"]
    return build_trainjob(job, TrainJobConfig(), namespace="team-a", runtime=runtime, api="runtimePatches")


def run_two_nodes(api):
    for index in (0, 1):
        api.pod(index, "Running", RUNNING)


def test_created_followed_and_complete(api, launched, write_output, job, lines, tmp_path):
    first = f"{job.name}-node-0-0-x1"
    api.logs[first] = [(f"2026-01-01T00:00:0{i}.5Z", f"step {i}") for i in range(4)]

    def complete():
        api.pod(0, "Succeeded", ended(0, reason="Completed"))
        write_output()
        api.condition("Complete")

    api.script = [lambda: None, lambda: run_two_nodes(api), lambda: None, complete]
    manifest, uri = launched()
    assert manifest == read_manifest(tmp_path / "training", "training")
    assert uri == job.output
    assert lines == [f"step {i}" for i in range(4)]
    (body,) = api.sent("POST")
    assert body["metadata"]["name"] == job.name
    (owner,) = body["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("Workflow", "compare-x7", "uid-workflow")
    assert api.sent("PATCH")[0]["metadata"]["annotations"].keys() == {HEARTBEAT}
    assert not api.sent("DELETE")


def test_trainer_2_1_gets_overrides_and_no_deadline(api, launched, write_output):
    api.version = "2.1"
    api.script = [lambda: (write_output(), api.condition("Complete"))]
    launched()
    (body,) = api.sent("POST")
    assert "podTemplateOverrides" in body["spec"]
    assert not {"runtimePatches", "activeDeadlineSeconds"} & body["spec"].keys()


@pytest.mark.parametrize("values", [{}, {"runtime": "own"}])
def test_the_runtime_is_the_run_s_else_the_chart_s(api, launched, write_output, values):
    ours = os.environ["PROGRPO_TRAINING_RUNTIME"]
    api.runtimes["own"] = api.runtimes[ours]
    api.script = [lambda: (write_output(), api.condition("Complete"))]
    launched(**values)
    (body,) = api.sent("POST")
    assert body["spec"]["runtimeRef"]["name"] == values.get("runtime", ours)


def test_without_the_name_of_a_runtime_it_says_what_gives_it(api, launched, monkeypatch):
    monkeypatch.delenv("PROGRPO_TRAINING_RUNTIME")
    with pytest.raises(
        ConfigError, match=r"no training runtime is named. Set trainjob.runtime, or have charts/progrpo"
    ):
        launched()


def test_a_runtime_that_is_not_there_is_said_at_once(api, launched):
    api.runtimes.clear()
    with pytest.raises(ConfigError, match=r"trainingRuntime must be created before the TrainJob is created. Check tr"):
        launched()
    assert not api.trainjobs


def test_a_jobset_that_its_webhook_refuses_ends_the_step(api, launched):
    (runtime,) = api.runtimes.values()
    changed = json.loads(json.dumps(runtime))
    changed["spec"]["template"]["spec"]["failurePolicy"]["rules"][0]["name"] = "user-error"
    api.runtimes[runtime["metadata"]["name"]] = changed
    with pytest.raises(
        ClusterError, match=r"refused: .*invalid failure policy rule name 'user-error'.* Ask the cluster"
    ):
        launched()


def test_without_trainer_it_says_what_to_install(api, launched):
    api.faults = [Fault("GET", "/openapi", 404)]
    with pytest.raises(ClusterError, match=r"no API trainer.kubeflow.org/v1alpha1. Install Kubeflow Trainer"):
        launched()


def test_a_retried_step_adopts_what_runs(api, launched, write_output, job):
    """The earlier attempt wrote elsewhere, as Kubeflow gives a retried run's task another URI."""
    body = build(job)
    api.add(body)
    api.script = [lambda: None, lambda: run_two_nodes(api), lambda: (write_output(), api.condition("Complete"))]
    second = job.model_copy(update={"output": "s3://bucket/of-the-second-attempt"})
    _, uri = launched(other_job=second)
    assert uri == body["metadata"]["annotations"][OUTPUT] == job.output
    assert len(api.sent("POST")) == 1  # which was answered by 409
    assert not api.sent("DELETE")


def test_a_retried_step_takes_what_is_complete(api, launched, write_output, job):
    api.add(build(job))
    api.condition("Complete")
    write_output()
    launched()
    assert len(api.trainjobs) == 1
    assert not api.sent("DELETE")


@pytest.mark.parametrize("condition", ["Failed", "Complete"])
def test_a_retried_step_replaces_what_left_nothing(api, launched, write_output, job, condition):
    old = api.add(build(job))
    api.condition(condition)
    api.deletion_polls = 2

    def complete():
        if old["metadata"]["uid"] != api.only["metadata"]["uid"]:
            write_output()
            api.condition("Complete")
        else:
            api.script.append(complete)

    api.script = [lambda: None, complete]
    launched()
    assert api.only["metadata"]["uid"] != old["metadata"]["uid"]
    (options,) = api.sent("DELETE")
    assert options == {"propagationPolicy": "Foreground", "preconditions": {"uid": old["metadata"]["uid"]}}


def test_an_old_one_that_does_not_go_is_an_error(api, launched, job, monkeypatch):
    monkeypatch.setattr(launcher, "GONE_S", 0.2)
    api.add(build(job))
    api.condition("Failed")
    api.deletion_polls = 10**6
    with pytest.raises(ClusterError, match="was deleted, but is there after"):
        launched()


def test_anothers_trainjob_of_that_name_is_left_alone(api, launched, job):
    api.add({"metadata": {"name": job.name, "labels": {}}, "spec": {}})
    with pytest.raises(ClusterError, match="not of this run"):
        launched()
    assert not api.sent("DELETE")


def test_a_users_error_comes_back_with_its_type(api, launched):
    told = termination_message(CheckpointError("config.json is missing. Copy it."))

    def fail():
        # The other node only saw the first go away; its pod is listed first.
        api.pod(0, "Failed", ended(1, termination_message(RuntimeError("rank 0 ended with exit code 1."))))
        api.pod(1, "Failed", ended(2, told))
        api.condition("Failed", "FailedJobs", "jobset failed")

    api.script = [lambda: run_two_nodes(api), fail]
    with pytest.raises(CheckpointError, match=r"node 1 of the TrainJob progrpo-\w+: config.json is missing"):
        launched()
    assert not api.sent("DELETE"), "its pods and logs are kept"


def test_memory_that_ran_out_is_said(api, launched):
    api.script = [
        lambda: run_two_nodes(api),
        lambda: (api.pod(1, "Failed", ended(137, reason="OOMKilled")), api.condition("Failed")),
    ]
    with pytest.raises(TrainingError, match=r"node 1 .* killed for want of memory"):
        launched()


def test_pods_that_went_with_their_job_are_remembered(api, launched):
    def vanish():
        api.pods.clear()
        api.condition("Failed", "FailedJobs", "jobset failed")

    api.script = [lambda: run_two_nodes(api), lambda: api.pod(1, "Failed", ended(17)), vanish]
    with pytest.raises(TrainingError, match=r"jobset failed\. Node 1 ended with exit code 17\. See `kubectl"):
        launched()


def test_trainers_deadline_is_named(api, launched):
    api.script = [lambda: api.condition("Failed", "DeadlineExceeded")]
    with pytest.raises(TrainingError, match=r"not done within 120 s \(trainjob.deadline_s\)"):
        launched(deadline_s=120)


def test_under_trainer_2_1_the_launcher_keeps_the_deadline(api, launched):
    api.version = "2.1"
    api.script = [lambda: api.only["metadata"].update(creationTimestamp=at(-121))]
    with pytest.raises(TrainingError, match="not done within 120 s"):
        launched(deadline_s=120)
    assert len(api.sent("DELETE")) == 1


def waiting(reason, message=""):
    return {"waiting": {"reason": reason, "message": message}}


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("ImagePullBackOff", "the image progrpo-gpu of the pod .* cannot be pulled"),
        ("CreateContainerConfigError", "the container node of the pod .* secrets and config maps"),
    ],
)
def test_containers_that_do_not_start_end_the_step(api, launched, monkeypatch, reason, message):
    monkeypatch.setattr(status, "STUCK_S", 0.1)
    api.script = [lambda: api.pod(0, "Pending", waiting(reason, "detail of the kubelet"))]
    with pytest.raises(ClusterError, match=rf"cannot start: {message}.*{reason}: detail of the kubelet"):
        launched()
    assert len(api.sent("DELETE")) == 1, "GPUs are not held for nothing"


def test_a_registry_that_comes_back_in_time_is_no_error(api, launched, write_output):
    api.script = [
        lambda: api.pod(0, "Pending", waiting("ErrImagePull")),
        lambda: api.pod(0, "Pending", waiting("ImagePullBackOff")),
        lambda: run_two_nodes(api),
        lambda: (write_output(), api.condition("Complete")),
    ]
    launched()


def test_no_node_for_too_long(api, launched):
    unschedulable = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/5 nodes are available: 5 Insufficient nvidia.com/gpu",
        "lastTransitionTime": at(),
    }
    api.script = [lambda: api.pod(0, "Pending", conditions=[unschedulable])]
    config = TrainJobConfig().model_copy(update={"pending_timeout_s": 0.2})
    with pytest.raises(ClusterError, match=r"no node takes the pod .*: 0/5 nodes are available.*Insufficient nvidia"):
        launched(config)


def test_no_pods_for_too_long(api, launched):
    config = TrainJobConfig().model_copy(update={"pending_timeout_s": 0.2})
    with pytest.raises(
        ClusterError, match=r"no pod was made. Check that Kubeflow Trainer's and JobSet's controllers run"
    ):
        launched(config)


def test_a_queue_is_waited_for_and_no_longer_than_said(api, launched):
    api.script = [lambda: api.condition("Suspended", "Suspended")]
    config = TrainJobConfig(queue="gpus").model_copy(update={"pending_timeout_s": 0.1, "queue_timeout_s": 0.5})
    started = time.monotonic()
    with pytest.raises(ClusterError, match="waits in Kueue's queue gpus"):
        launched(config)
    assert time.monotonic() - started > 0.5


@pytest.mark.parametrize(
    ("message", "mend"),
    [
        ('pods "x" is forbidden: exceeded quota: gpus, requested: 8, used: 8, limited: 8', "raise the ResourceQuota"),
        ('pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot', "restricted standard"),
    ],
)
def test_refused_pods_end_the_step(api, launched, job, message, mend):
    api.script = [lambda: None, lambda: api.warn(f"{job.name}-node-0", "FailedCreate", message)]
    with pytest.raises(ClusterError, match=f"its pods are refused: .*{mend}"):
        launched()


def test_events_of_an_earlier_attempt_and_of_others_do_not_count(api, launched, write_output, job):
    api.warn(f"{job.name}-node-0", "FailedCreate", "forbidden: exceeded quota", seconds=-30)
    api.warn("somebody-else", "FailedCreate", "forbidden: exceeded quota")
    api.script = [lambda: None, lambda: None, lambda: (write_output(), api.condition("Complete"))]
    launched()


def test_deleted_by_somebody_else(api, launched):
    api.script = [lambda: run_two_nodes(api), lambda: api.trainjobs.clear()]
    with pytest.raises(ClusterError, match="somebody deleted the TrainJob"):
        launched()


@pytest.mark.parametrize(
    ("status_", "message", "error", "told"),
    [
        (401, "Unauthorized", ClusterError, r"does not accept the credentials \(401\)"),
        (
            403,
            "trainjobs is forbidden: User x cannot create",
            ClusterError,
            "cannot create. Bind the Role of charts/progrpo",
        ),
        (403, "exceeded quota: trainjobs", ClusterError, "raise the ResourceQuota"),
        (403, 'admission webhook "v" denied the request: no such job.', ConfigError, "no such job. Check trainjob"),
        (422, "denied: trainingRuntime must be created first", ConfigError, "must be created first. Check trainjob"),
    ],
)
def test_refusals_are_errors_at_once(api, launched, status_, message, error, told):
    api.faults = [Fault("POST", "/trainjobs$", status_, message)]
    with pytest.raises(error, match=told):
        launched()
    assert len(api.sent("POST")) == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST", "/trainjobs$", 429, headers=(("Retry-After", "2"),)),
        Fault("POST", "/trainjobs$", 500, times=2),
        Fault("POST", "/trainjobs$", 0, cut=True),
        Fault("GET", "/trainjobs/", 503, times=2),
        Fault("GET", "/pods$", 0, cut=True),
        Fault("PATCH", "/trainjobs/", 500, times=99),
        Fault("PATCH", "/trainjobs/", 403, times=99),
    ],
    ids=str,
)
def test_an_api_server_that_stumbles_is_asked_again(api, launched, write_output, fault):
    api.faults = [fault]
    api.script = [lambda: run_two_nodes(api), lambda: None, lambda: (write_output(), api.condition("Complete"))]
    launched()
    assert fault.times in (0, 98)
    if fault.headers:
        first, second = (when for when, sent in zip(api.times, api.requests, strict=True) if sent[0] == "POST")
        assert second - first > 1.9, "as long as the server asked for"


def test_an_api_server_that_stays_away_is_an_error(api, launched):
    api.faults = [Fault("GET", "/trainjobs/", 500, "etcd is down", times=99)]
    with pytest.raises(ClusterError, match=r"has not answered for 1 s \(500 etcd is down\.\)"):
        launched(patience_s=1.0)
    assert len(api.sent("DELETE")) == 1


def test_complete_without_a_training_run_is_an_error(api, launched):
    api.script = [lambda: api.condition("Complete")]
    with pytest.raises(ManifestError, match=r"has no manifest. Check that launcher and nodes"):
        launched()


def test_complete_with_half_a_training_run_is_an_error(api, launched, write_output, tmp_path):
    api.script = [
        lambda: (write_output(), (tmp_path / "training/metrics.jsonl").write_text(""), api.condition("Complete"))
    ]
    with pytest.raises(ManifestError, match="has 0 bytes; the manifest lists 3 bytes"):
        launched()


def test_a_log_that_breaks_off_is_shown_once_and_whole(api, launched, write_output, job, lines, monkeypatch):
    """Cut in the middle of lines, of which several have the same second."""
    monkeypatch.setattr(LogFollower.__init__, "__kwdefaults__", {"reconnect_s": 0.01})
    times = [f"2026-01-01T00:00:{i // 10:02}.{i % 10}{'0' * (i % 3)}1Z" for i in range(200)]
    written = [f"line {i} with $text and \u00e9" for i in range(200)]
    api.logs[f"{job.name}-node-0-0-x1"] = list(zip(times, written, strict=True))
    api.log_cuts = [(1000, True), (1, True), (0, True), (2345, False), (500, True), (4000, False)]

    def complete():
        if api.log_cuts:
            api.script.append(complete)
        else:
            write_output()
            api.condition("Complete")

    api.script = [lambda: run_two_nodes(api), complete]
    launched()
    assert lines == written


def test_a_log_that_may_not_be_read_is_said_once(api, launched, write_output, caplog, monkeypatch):
    monkeypatch.setattr(LogFollower.__init__, "__kwdefaults__", {"reconnect_s": 0.01})
    fault = Fault("GET", "/log$", 403, "pods/log is forbidden", times=20)
    api.faults = [fault]

    def complete():
        if fault.times:
            api.script.append(complete)
        else:
            write_output()
            api.condition("Complete")

    api.script = [lambda: run_two_nodes(api), complete]
    launched()
    assert caplog.text.count("the log of the first node is not shown: ") == 1
    assert "pods/log is forbidden. Bind the Role of charts/progrpo" in caplog.text


def test_the_log_of_a_restarted_node_follows(api, launched, write_output, job, lines):
    old, new = f"{job.name}-node-0-0-x1", f"{job.name}-node-0-0-x2"
    api.logs = {old: [("2026-01-01T00:00:05Z", "before")], new: [("2026-01-01T00:00:01Z", "after")]}

    def restart():
        if "before" not in lines:
            api.script.insert(0, restart)
            return
        del api.pods[old]
        api.pod(0, "Running", RUNNING, name=new)

    api.script = [
        lambda: run_two_nodes(api),
        restart,
        lambda: None,
        lambda: (write_output(), api.condition("Complete")),
    ]
    launched()
    assert lines == ["before", "after"]


LAUNCHER = """
import sys
from progrpo_components.settings import (TrainJobConfig)
from progrpo_components.reporting import reported
from progrpo_components.trainjob.job import read_worker_job
from progrpo_components.trainjob.launcher import launch
assert "torch" not in sys.modules
with reported("train"):
    launch(read_worker_job(sys.argv[1]), TrainJobConfig(), poll_s=0.1)
"""


def test_sigterm_deletes_the_trainjob(api, job):
    """In a process of its own, as a pod that is deleted; without torch."""
    api.script = [lambda: run_two_nodes(api)]
    process = subprocess.Popen([sys.executable, "-c", LAUNCHER, job.as_argument()], env=os.environ.copy())
    try:
        deadline = time.monotonic() + 60
        while not any(path.endswith("/log") for _, path, _, _ in list(api.requests)):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
    finally:
        process.kill()
        process.wait()
    assert len(api.sent("DELETE")) == 1


def test_nothing_is_left_running(api, launched, write_output):
    api.script = [lambda: run_two_nodes(api), lambda: (write_output(), api.condition("Complete"))]
    launched()
    assert not [thread for thread in threading.enumerate() if thread.name == "log of the first node"]
