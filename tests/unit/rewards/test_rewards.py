import os
import threading

import pytest

from progrpo.errors import ConfigError
from progrpo.rewards import BUILT_IN, Verdict, mathematics, task_of, verify, verify_batch

SLOW = '{"type": "math", "timeout_s": 30}'
HANGS = "9**9**9**9**9"  # sympy multiplies it out


@pytest.mark.parametrize(
    ("answer", "completion", "correct"),
    [
        ("Paris", "paris", True),
        ("New York", "I think.\nAnswer:  new\tYORK ", True),
        ("Paris", "It is Paris", False),
        ("Paris", "", False),
        ("Paris", "answer:", False),
        ("b", "answer: a\nno, answer: b", True),
    ],
)
def test_exact(answer, completion, correct):
    assert verify("exact", answer, completion).correct is correct


def test_unknown_task():
    with pytest.raises(ConfigError, match=r"unknown task 'chess'. Allowed: code, countdown, exact, math"):
        verify("chess", "1", "1")


def test_versions_name_every_task():
    assert set(BUILT_IN) == {"code", "countdown", "exact", "math"}
    assert task_of("math").version == "math-verify 0.9.0"


def test_math_and_plain_tasks_in_one_batch_keep_their_order():
    verdicts = verify_batch(
        [
            (SLOW, r"\frac{1}{2}", "so it is $0.5$"),
            ("exact", "a", "A"),
            (SLOW, "4", "The answer is 5."),
            (SLOW, "2^(n-1)", "$2^{n-1}$"),
            ("countdown", '{"numbers":[1,2],"target":3}', "2+1"),
            (SLOW, r"\sqrt{2}", "no idea"),
            (SLOW, r"{1, 2}", r"\boxed{\{2,1\}}"),
        ],
    )
    assert [verdict.correct for verdict in verdicts[:6]] == [True, True, False, True, True, False]
    assert all(verdict.scored for verdict in verdicts)
    assert verdicts[0].answer == verify("math", "0.5", r"\boxed{\frac{1}{2}}").answer == "1/2"
    assert verdicts[5].answer is None


def test_right_math_answers_are_one_answer_however_written():
    completions = ["x=5", r"\boxed{5}", "$x=5$", "5.0", "so $\\frac{10}{2}$"]
    verdicts = verify_batch([(SLOW, "5", completion) for completion in completions])
    assert verdicts == [Verdict(correct=True, answer="5")] * len(completions)
    assert verify("math", "5", "$6.0$") == Verdict(correct=False, answer="6.00000000000000")


def test_math_works_in_a_thread():
    results: list[Verdict] = []
    thread = threading.Thread(target=lambda: results.append(verify("math", "3", "$3$")))
    thread.start()
    thread.join()
    assert results[0].correct


def test_what_takes_too_long_is_unscored_and_the_rest_is_not(caplog):
    verify("math", "1", "1")  # the worker is warm: the limit below is for one question, not for the start
    verdicts = verify_batch([('{"type": "math", "timeout_s": 3}', "1", text) for text in (HANGS, "$1$")])
    assert verdicts == [Verdict(correct=False, answer=None, scored=False), Verdict(correct=True, answer="1")]
    assert "1 of 2 math completions could not be verified" in caplog.text


def test_a_dead_worker_is_replaced():
    verify("math", "1", "1")
    worker = mathematics._workers.queue[-1]
    assert worker._process is not None
    worker._process.kill()
    worker._process.wait()
    assert not verify("math", "1", "$1$").scored
    assert verify("math", "1", "$1$").correct


def test_a_verifier_that_does_not_start_is_an_error_and_no_verdict(monkeypatch):
    monkeypatch.setattr(mathematics.sys, "executable", "/bin/false")
    with pytest.raises(ConfigError, match="does not start"):
        mathematics.Worker().verify("1", "1", timeout_s=5)


def test_unreadable_right_answer_is_not_a_wrong_completion():
    assert not verify("math", "", "$1$").scored


def test_a_signal_to_the_whole_group_leaves_the_math_workers_alone():
    worker = mathematics.Worker()
    try:
        assert worker.verify("4", "$4$", 60).correct
        assert os.getpgid(worker._process.pid) != os.getpgid(0)
    finally:
        worker.close()
