"""One GPU run for one request, whatever CI does."""

import subprocess
from datetime import timedelta

import pytest

from kfp_recorder import API, Fault

KEY = ("--idempotency-key", "commit-1")


def test_second_job_adopts_the_run_and_its_verdict(recorder, submit):
    first, second = submit(*KEY, "--json").json, submit(*KEY, "--json").json
    assert (first["adopted"], second["adopted"]) == (False, True)
    assert first["run_id"] == second["run_id"]
    assert len(recorder.runs) == 1
    assert second["verdict"] == "succeeded"


def test_a_running_one_is_waited_for(recorder, submit, progrpo, package_path):
    recorder.states = ["RUNNING", "RUNNING", "FAILED"]
    progrpo("submit", package_path, "--experiment", "nightly", *KEY)
    done = submit(*KEY, "--json")
    assert (done.code, done.json["adopted"], len(recorder.runs)) == (1, True, 1)


@pytest.mark.parametrize("state", ["FAILED", "CANCELED", "SKIPPED"])
def test_a_run_that_ended_badly_is_started_again(recorder, submit, state):
    recorder.states = [state]
    submit(*KEY)
    recorder.states = ["SUCCEEDED"]
    assert submit(*KEY).code == 0
    assert len(recorder.runs) == 2


def test_archived_run_is_not_adopted(recorder, submit):
    submit(*KEY)
    next(iter(recorder.runs.values()))["storage_state"] = "ARCHIVED"
    assert submit(*KEY, "--json").json["adopted"] is False


def test_key_of_another_request_is_refused(recorder, submit):
    submit(*KEY)
    done = submit(*KEY, "--set", "experiment=other")
    assert done.code == 2
    assert "belongs to another request already" in done.err
    assert len(recorder.runs) == 1


def test_key_is_not_a_pattern(recorder, submit):
    """The server's filter is SQL's LIKE, where _ is any character."""
    submit("--idempotency-key", "a-b")
    assert submit("--idempotency-key", "a_b", "--json").json["adopted"] is False


def test_two_jobs_at_the_same_moment_end_with_one_run(recorder, submit, monkeypatch):
    """Between our look and our request another job starts the same run: the younger one, ours, is ended."""
    submit(*KEY)
    (theirs,) = recorder.runs.values()
    description = theirs.pop("description")
    original = recorder.check

    def check(body, model):
        theirs["description"] = description  # from now on it can be found
        return original(body, model)

    monkeypatch.setattr(recorder, "check", check)
    recorder.clock_offset = timedelta(seconds=5)
    done = submit(*KEY, "--json")
    ours = next(run for run in recorder.runs.values() if run["run_id"] != theirs["run_id"])
    assert done.json["run_id"] == theirs["run_id"]
    assert ours["state"] == "CANCELING"
    assert "another job started the same run at the same time" in done.err


def test_lost_answer_with_a_key_is_taken_up_by_the_second_try(recorder, submit):
    recorder.faults = [Fault("POST", "/runs$", cut="after"), Fault("GET", "/runs$", 500, times=0)]
    assert submit(*KEY).code == 0
    assert submit(*KEY, "--json").json["adopted"] is True
    assert len(recorder.runs) == 1


def test_lost_answer_is_not_mixed_up_with_an_earlier_failure(recorder, submit):
    recorder.states = ["FAILED"]
    submit(*KEY)
    recorder.states = ["SUCCEEDED"]
    recorder.faults = [Fault("POST", "/runs$", cut="before")]
    done = submit(*KEY, "--json")
    assert (done.code, done.json["run_id"]) == (5, None)
    assert submit(*KEY).code == 0


def test_run_is_followed_even_if_the_race_cannot_be_looked_into(recorder, submit):
    recorder.faults = [Fault("GET", "/runs$", 403, times=0)]
    original = recorder.check

    def check(body, model):
        recorder.faults[0].times = 1 if model == "V2beta1Run" else 0
        return original(body, model)

    recorder.check = check
    done = submit(*KEY)
    assert done.code == 0, done.err
    assert "is not known" in done.err


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository with one commit, which we are in."""

    def git(*arguments):
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "one")
    monkeypatch.chdir(tmp_path)
    return git


def test_commit_as_key(recorder, submit, repository):
    assert submit("--idempotency-key", "git").code == 0
    assert repository("rev-parse", "HEAD") in recorder.posted("/runs")[0]["description"]
    assert submit("--idempotency-key", "git", "--json").json["adopted"] is True
    # Two requests of one commit, such as a matrix of presets, are two runs.
    assert submit("--idempotency-key", "git", "--set", "experiment=b", "--json").json["adopted"] is False


def test_commit_is_no_key_where_files_differ_from_it(recorder, submit, repository, tmp_path):
    (tmp_path / "a").write_text("2")
    done = submit("--idempotency-key", "git")
    assert done.code == 2
    assert "tracked files differ from the commit" in done.err
    assert recorder.requests == []


def test_without_a_key_nothing_is_looked_for(recorder, submit):
    submit()
    assert not any(request.method == "GET" and request.path == f"{API}/runs" for request in recorder.requests)
    assert "description" not in recorder.posted("/runs")[0]
