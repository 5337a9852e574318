"""What a run came to: the error that ended it, its numbers and its report, whose task failed, and who ended it.

Logs are as Kubeflow Pipelines 2.17.0 writes them: the launcher, kfp's executor, the task, in one stream.
"""

import json
from pathlib import Path

import pytest
import yaml

from kfp_recorder import Fault
from progrpo_pipelines.client.logs import executor_output, last_error, without_secrets

BEFORE = """I1201 10:00:00.000000       1 launcher_v2.go:400] input ComponentSpec:{}
[KFP Executor 2026-12-01 10:00:01,000 INFO]: Looking for component `f` in --component_module_path `/tmp/x.py`
"""
AFTER = """I1201 10:00:02.000000       1 launcher_v2.go:195] publish success.
F1201 10:00:02.000000       1 main.go:58] failed to execute component: exit status 1
time="2026-12-01T10:00:02 UTC" level=info msg="sub-process exited" argo=true error="<nil>"
Error: exit status 1
"""
TRACEBACK = """Traceback (most recent call last):
  File "/tmp/x.py", line 3, in f
    raise ConfigError("no such file")
progrpo.errors.ConfigError: checkpoint_uri: s3://models/a is not there.
  Give another.
"""
FAILED = BEFORE + TRACEBACK + AFTER
OUTPUT = {
    "artifacts": {
        "report": {"artifacts": [{"name": "report", "uri": "minio://mlpipeline/v2/evaluate/r/report", "metadata": {}}]},
        "metrics": {
            "artifacts": [
                {"name": "metrics", "uri": "minio://x/y", "metadata": {
                    "compare/progrpo/pass_at_8": 0.61234, "compare/progrpo/pass_at_8_difference": 0.05,
                    "compare/progrpo/pass_at_8_difference_low": 0.01, "compare/progrpo/pass_at_8_difference_high": 0.09,
                }}
            ]
        },
    }
}  # fmt: skip
SUCCEEDED = f"{BEFORE}I1201 10:00:02.0 1 launcher_v2.go:1230] ExecutorOutput: {json.dumps(OUTPUT, indent=2)}\nI1201 x\n"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (FAILED, "ConfigError: checkpoint_uri: s3://models/a is not there. Give another"),
        ("\x1b[31mValueError: red\x1b[0m\n", "ValueError: red"),
        (BEFORE + "Loading the model\nF1201 10:00:02.000000       1 main.go:58] failed: signal: killed\n",
         "failed: signal: killed"),
        (BEFORE + "torch.OutOfMemoryError: CUDA out of memory\n" + AFTER, "OutOfMemoryError: CUDA out of memory"),
        ("first\nsecond\n" + AFTER, "second"),
        ("", None),
        (BEFORE.splitlines()[1], None),
    ],
)  # fmt: skip
def test_last_error_of_a_log(text, error):
    assert last_error(text) == error


def test_an_error_is_bounded():
    assert len(last_error("ValueError: " + "x" * 10_000)) < 600


@pytest.mark.parametrize(
    "text",
    ["password=hunter2", "AWS_SECRET_ACCESS_KEY: 'hunter2'", "Authorization: Bearer hunter2", "s3://u:hunter2@host/a",
     '{"api_key": "hunter2"}', "my hunter2"],
)  # fmt: skip
def test_no_secret_is_shown(text):
    assert "hunter2" not in without_secrets(text, None, "hunter2" if text.startswith("my") else None)


def test_output_that_the_log_does_not_hold():
    assert executor_output("] ExecutorOutput: {cut") == executor_output("") == {}


def test_failed_task_says_why(recorder, submit, tmp_path):
    recorder.states, recorder.failing, recorder.logs = ["RUNNING", "FAILED"], "evaluate", {"evaluate": FAILED}
    done = submit("--json", "--junit", str(tmp_path / "junit.xml"))
    error = "ConfigError: checkpoint_uri: s3://models/a is not there. Give another"
    assert done.code == 1
    assert f"the run failed: Evaluate: {error}. Its log is on the run's page" in done.err
    assert {task["name"]: task["error"] for task in done.json["tasks"]}["evaluate"] == error
    assert error in (tmp_path / "junit.xml").read_text()


@pytest.mark.parametrize(("has_pods", "has_archive"), [(True, False), (False, True)])
def test_log_is_found_by_pod_or_in_the_archive(recorder, submit, has_pods, has_archive):
    recorder.has_pods, recorder.has_archive = has_pods, has_archive
    recorder.states, recorder.failing, recorder.logs = ["FAILED"], "evaluate", {"evaluate": FAILED}
    assert "Evaluate: ConfigError" in submit().err


def test_log_of_a_task_in_a_loop_is_its_own(recorder, submit):
    recorder.states, recorder.failing = ["FAILED"], "train"
    recorder.logs = {"train(0)": "ValueError: zero", "train(1)": "ValueError: one"}
    err = submit().err
    assert "Train #1: ValueError: zero" in err
    assert "Train #2: ValueError: one" in err


def test_log_of_a_task_that_was_tried_again_is_the_last_ones(recorder, submit, package_path, tmp_path):
    path, spec = tmp_path / "evaluate.yaml", yaml.safe_load(Path(package_path).read_text())
    spec["root"]["dag"]["tasks"]["evaluate"]["retryPolicy"] = {"maxRetryCount": 2}
    path.write_text(yaml.safe_dump(spec))
    recorder.attempts, recorder.has_archive = 3, False
    recorder.states, recorder.failing, recorder.logs = ["FAILED"], "evaluate", {"evaluate": FAILED}
    assert "Evaluate: ConfigError" in submit(package=str(path)).err


def test_log_that_is_gone_costs_a_line(recorder, submit):
    recorder.states, recorder.failing, recorder.has_pods, recorder.has_archive = ["FAILED"], "evaluate", False, False
    recorder.logs = {"evaluate": FAILED}
    err = submit().err
    assert err.count("the server has no log of it") == 1
    assert "error_message" not in err


def test_log_that_the_server_does_not_hand_out_changes_no_verdict(recorder, submit):
    recorder.states, recorder.failing = ["FAILED"], "evaluate"
    recorder.faults = [Fault("GET", "/log$", 403, times=9), Fault("GET", "/log$", 502, times=99)]
    done = submit()
    assert done.code == 1
    assert "Evaluate: the server has no log of it" in done.err


def test_log_without_end_is_read_in_part(recorder, submit):
    recorder.states, recorder.failing = ["FAILED"], "evaluate"
    recorder.logs = {"evaluate": "noise\n" * 2**20 + FAILED}
    assert "Evaluate: ConfigError" in submit().err


def test_token_in_a_log_is_not_repeated(recorder, submit, monkeypatch):
    monkeypatch.setenv("KFP_EXISTING_TOKEN", "very-secret")
    recorder.states, recorder.failing = ["FAILED"], "evaluate"
    recorder.logs = {"evaluate": "ValueError: refused very-secret, password=hunter2"}
    err = submit().err
    assert "ValueError: refused ***, password=***" in err


def test_success_says_numbers_and_report(recorder, submit):
    recorder.logs = {"evaluate": SUCCEEDED}
    done = submit("--json", "--namespace", "team")
    assert done.code == 0
    assert "Evaluate: progrpo/pass_at_8 0.6123, progrpo/pass_at_8_difference 0.05 [0.01, 0.09]." in done.err
    report = (
        f"{recorder.url}/artifacts/get?source=minio&namespace=team&bucket=mlpipeline&key=v2%2Fevaluate%2Fr%2Freport"
    )
    assert f"Report: {report}" in done.err
    assert done.json["links"]["Report"] == report


def test_success_without_a_log_leads_to_the_page(recorder, submit):
    assert "the run succeeded. Its results are on the run's page" in submit().err


def test_run_that_was_terminated_between_two_looks_is_cancelled(recorder, submit):
    """RUNNING, then FAILED: only the history says that it was CANCELING between them."""
    seen_run = recorder.seen_run

    def see(run):
        shown = seen_run(run)
        if shown["state"] == "FAILED":
            shown["state_history"] = [{"state": state} for state in ("PENDING", "RUNNING", "CANCELING", "FAILED")]
        return shown

    recorder.seen_run, recorder.states = see, ["RUNNING", "FAILED"]
    assert submit().code == 4


def test_run_that_was_terminated_and_tried_again_failed(recorder, submit):
    seen_run = recorder.seen_run

    def see(run):
        return seen_run(run) | {
            "state_history": [{"state": state} for state in ("CANCELING", "FAILED", "RUNNING", "FAILED")]
        }

    recorder.seen_run, recorder.states = see, ["FAILED"]
    assert submit().code == 1


def test_end_that_is_asked_for_twice_is_one(recorder, submit):
    """The answer to the first request is lost; the server refuses the second, as the run is ending already."""
    recorder.states, recorder.faults = ["RUNNING"], [Fault("POST", ":terminate$", cut="after")]
    done = submit("--timeout", "0.2s", "--exit-on-timeout", "terminate")
    assert done.code == 3
    assert "was told to end" in done.err


def test_training_runs_have_arm_and_seed(recorder, submit):
    recorder.states, recorder.iterations = ["RUNNING", "SUCCEEDED"], 4
    settings = ("--preset", "smoke", "--set", "seeds=[0, 5]")
    done = submit(*settings, "--json", package="compare")
    assert done.code == 0, done.err
    titles = [task["title"] for task in done.json["tasks"] if task["name"].startswith("train #")]
    assert sorted(titles) == [f"Train ({arm}, seed {seed})" for arm in ("grpo", "progrpo") for seed in (0, 5)]
    first = next(task for task in done.json["tasks"] if task["name"] == "train #2")
    assert first["title"] == "Train (progrpo, seed 0)"  # seed by seed and arm by arm


def test_rights_are_those_that_kubeflow_has(recorder, submit):
    """No Kubeflow role has pipelines/versions, and nothing asks for it."""
    recorder.multi_user, recorder.states = True, ["RUNNING"]
    done = submit("--namespace", "team", "--upload", "--timeout", "0.2s", "--exit-on-timeout", "terminate")
    assert done.code == 3, done.err
    assert recorder.asked == {
        ("experiments", "create"), ("experiments", "list"), ("pipelines", "create"), ("pipelines", "list"),
        ("runs", "create"), ("runs", "get"), ("runs", "terminate"),
    }  # fmt: skip


@pytest.mark.parametrize("right", [("runs", "create"), ("experiments", "list")])
def test_right_that_is_missing_is_named(recorder, submit, right):
    recorder.multi_user = True
    submit("--namespace", "team", "--upload")
    recorder.rights = recorder.asked - {right}
    done = submit("--namespace", "team", "--upload")
    assert done.code == 5
    assert f"verb={right[1]}, resource={right[0]}" in done.err


@pytest.mark.parametrize(
    ("tag", "has_plugins", "code"), [("unknown", True, 0), ("unknown", False, 2), ("2.16.1", False, 2)]
)
def test_mlflow_experiment_is_tried_where_the_version_is_unknown(recorder, submit, tag, has_plugins, code):
    recorder.tag_name, recorder.has_plugins = tag, has_plugins
    done = submit("--mlflow-experiment", "team")
    assert done.code == code, done.err
    assert len(recorder.runs) == (code == 0)
    if code:
        assert (
            f"--mlflow-experiment needs Kubeflow Pipelines 2.17 with its MLflow plugin; this server says '{tag}'"
            in done.err
        )
