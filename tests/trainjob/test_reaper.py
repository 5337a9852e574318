"""What is removed and what is not, against a stand-in of the Kubernetes API."""

import json
import subprocess
import sys
from datetime import timedelta

import pytest

from kubernetes_api import Fault, at
from progrpo_components.settings import TrainJobConfig
from progrpo_components.trainjob.cluster import Cluster
from progrpo_components.trainjob.reaper import reap, reap_runtimes
from progrpo_components.trainjob.spec import HEARTBEAT, RUN_ID, Owner, build_trainjob
from progrpo_pipelines.cli import main

AGE = timedelta(minutes=15)


@pytest.fixture
def add(api, make_job):
    """Add a TrainJob of ours and its workflow."""

    def add(run_id, *, phase="Running", heartbeat=-10.0, condition=None, owned=True, uid=None):
        owner = Owner(run_id, f"uid-{run_id}") if owned else None
        body = build_trainjob(
            make_job(run_id=run_id),
            TrainJobConfig(),
            namespace="team-a",
            runtime=next(iter(api.runtimes)),
            api="runtimePatches",
            owner=owner,
        )
        body["metadata"]["annotations"][HEARTBEAT] = at(heartbeat)
        body["status"] = {"conditions": [{"type": condition, "status": "True"}]} if condition else {}
        if phase is not None:
            api.workflows[run_id] = {"metadata": {"uid": uid or f"uid-{run_id}"}, "status": {"phase": phase}}
        return api.add(body)["metadata"]["name"]

    return add


def run(**values):
    done = reap(Cluster.connect(patience_s=0.2), max_heartbeat_age=AGE, **values)
    return {item.name: (item.action, item.reason) for item in done}


def deleted(api):
    return {name for name, found in api.trainjobs.items() if "deletionTimestamp" in found["metadata"]}


def test_only_what_nobody_waits_for_is_removed(api, add):
    wanted = {
        add("alive"): "its launcher gave a sign",
        add("done", condition="Complete", heartbeat=-9999): "it has ended, and goes with its workflow done",
        add(
            "logs", phase="Failed", condition="Failed", heartbeat=-9999
        ): "it has ended, and goes with its workflow logs",
        add("no-owner", owned=False): "its launcher gave a sign",
        add("pending", phase=""): "its launcher gave a sign",
    }
    orphaned = {
        add("succeeded", phase="Succeeded"): r"its workflow succeeded has ended (Succeeded)",
        add("stopped", phase="Failed"): r"its workflow stopped has ended (Failed)",
        add("vanished", phase=None): "its workflow vanished is gone",
        add("other", uid="of-a-new-one"): "its workflow other is gone",
        add("silent", heartbeat=-16 * 60): "its launcher gave no sign for 16 min",
        add("silent-too", owned=False, heartbeat=-16 * 60): "its launcher gave no sign for 16 min",
        add("left", phase=None, condition="Complete"): "its workflow left is gone",
    }
    others = {"metadata": {"name": "others", "labels": {"app.kubernetes.io/managed-by": "progrpo"}}, "spec": {}}
    api.add(others)  # managed by something of that name, of no run of ours
    api.add({"metadata": {"name": "sdk", "labels": {RUN_ID: "x"}}, "spec": {}})

    dry = run(dry_run=True)
    assert not api.sent("DELETE")
    assert {name for name, (action, _) in dry.items() if action == "would be deleted"} == set(orphaned)
    done = run()
    assert done.keys() == {*wanted, *orphaned}
    for name, reason in orphaned.items():
        assert done[name] == ("deleted", reason)
    for name, reason in wanted.items():
        assert done[name][0] == "kept"
        assert done[name][1].startswith(reason)
    assert deleted(api) == set(orphaned)
    again = run()
    assert {again[name] for name in orphaned} == {("kept", "it is being deleted")}
    assert len(api.sent("DELETE")) == len(orphaned), "a second time nothing is left to do"


def test_a_heartbeat_that_comes_meanwhile_saves_it(api, add):
    name = add("late", heartbeat=-16 * 60)
    cluster = Cluster.connect()
    listed = [json.loads(json.dumps(api.trainjobs[name]))]
    cluster.list_trainjobs = lambda _labels: listed
    cluster.annotate_trainjob(name, {HEARTBEAT: at()}, patience_s=0)
    (done,) = reap(cluster, max_heartbeat_age=AGE)
    assert (done.action, done.reason) == ("kept", "it changed or went while it was looked at")
    assert not deleted(api)


def test_without_the_right_to_see_workflows_heartbeats_decide(api, add, caplog):
    alive, silent = add("alive", phase="Succeeded"), add("silent", heartbeat=-16 * 60)
    api.faults = [Fault("GET", "/workflows/", 403, "workflows is forbidden", times=9)]
    done = run()
    assert done[alive][0] == "kept"
    assert done[silent][0] == "deleted"
    assert "going by the heartbeat alone" in caplog.text


def test_one_that_cannot_be_judged_or_deleted_does_not_stop_the_others(api, add):
    unknown, stuck, orphan = add("a"), add("b", phase="Failed"), add("c", phase="Failed")
    api.faults = [Fault("GET", "/workflows/a", 500, times=9), Fault("DELETE", f"/{stuck}", 403, "no right", times=9)]
    done = run()
    assert done[unknown][0] == done[stuck][0] == "not deleted"
    assert done[orphan][0] == "deleted"


def test_runtimes_of_earlier_versions_go_when_no_trainjob_names_them(api, add, capsys):
    (current,) = api.runtimes
    ours = api.runtimes[current]["metadata"]["labels"]
    for name, age, labels in (("old", -7200, ours), ("used", -7200, ours), ("new", -60, ours), ("others", -7200, {})):
        metadata = {"name": name, "labels": labels, "creationTimestamp": at(age)}
        api.runtimes[name] = {"metadata": metadata}
    api.trainjobs[add("running")]["spec"]["runtimeRef"]["name"] = "used"
    cluster = Cluster.connect()
    actions = {item.name: item.action for item in reap_runtimes(cluster, current, dry_run=True)}
    assert actions == {"old": "would be deleted", "used": "kept", "new": "kept"}
    assert "old" in api.runtimes
    code, out, _ = call("--namespace", "team-a", "--runtime", current, capsys=capsys)
    assert code == 0
    assert "old: deleted: no TrainJob uses this training runtime of an earlier version" in out
    assert "used: kept: a TrainJob uses this training runtime" in out
    assert api.runtimes.keys() == {current, "used", "new", "others"}


def call(*arguments, capsys):
    try:
        main(["reap", *arguments])
        code = 0
    except SystemExit as exit_:
        code = exit_.code or 0
    return code, *capsys.readouterr()


def test_the_command_says_what_it_did(api, add, capsys):
    alive, orphan = add("alive"), add("orphan", phase="Failed")
    code, out, err = call("--namespace", "team-a", "--dry-run", capsys=capsys)
    assert (code, err) == (0, "")
    assert f"{orphan}: would be deleted: its workflow orphan has ended (Failed)" in out
    code, out, _ = call("--namespace", "team-a", capsys=capsys)
    assert code == 0
    assert f"{orphan}: deleted: " in out
    assert f"{alive}: kept: " in out
    assert "2 TrainJobs of progrpo in team-a: 1 deleted, 1 kept, 0 not deleted" in out


def test_exit_codes(api, add, capsys):
    api.faults = [Fault("DELETE", "", 403, "no right", times=9)]
    assert call("--namespace", "team-a", capsys=capsys)[0] == 0
    add("orphan", phase="Failed")
    code, _, err = call("--namespace", "team-a", capsys=capsys)
    assert code == 1
    assert "not deleted: cannot delete the TrainJob" in err
    api.faults = [Fault("GET", "/trainjobs$", 403, "trainjobs is forbidden", times=9)]
    code, _, err = call("--namespace", "team-a", capsys=capsys)
    assert code == 1
    assert "Bind the Role of charts/progrpo" in err


@pytest.mark.parametrize("age", ["15", "0m", "1m", "fifteen", "-5m"])
def test_a_wrong_age_is_explained(api, capsys, age):
    code, _, err = call("--namespace", "team-a", f"--max-heartbeat-age={age}", capsys=capsys)
    assert code == 2
    assert "--max-heartbeat-age" in err
    assert repr(age) in err
    assert "at least 2m" in err or "such as 90s, 15m" in err
    assert not api.requests


def test_help_is_light():
    program = (
        "import sys\nfrom progrpo_pipelines.cli import main\n"
        "try: main(['reap', '--help'])\nexcept SystemExit as e: assert not e.code\n"
        "assert not {'kubernetes', 'torch', 'kfp', 'mlflow'} & set(sys.modules), sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "progrpo reap --namespace team-a --dry-run" in done.stdout
