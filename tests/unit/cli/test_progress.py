"""Progress files are read as they grow, and shown."""

import io
import json
import subprocess
import sys

from rich.console import Console

from progrpo_pipelines.durations import duration
from progrpo_pipelines.local.progress import LineDisplay, ProgressReader, StepRow, open_display
from progrpo_pipelines.local.running import _failure_in_log

HEAD = {"step": "train", "arm": "grpo", "seed": 0}


def write(path, *lines, end="\n"):
    with path.open("a") as file:
        file.write("\n".join(json.dumps(line) for line in lines) + end)


def test_reader_takes_whole_lines_only(tmp_path):
    path, reader = tmp_path / "train-grpo-0.jsonl", ProgressReader(tmp_path)
    write(path, {**HEAD, "state": "running", "pid": 1})
    with path.open("a") as file:
        file.write('{"done": 3, "total"')
    assert [(row.label, row.done) for row in reader.rows()] == [("train (grpo, seed 0)", 0)]
    with path.open("a") as file:
        file.write(': 10, "elapsed_s": 6.0, "reward": 0.5}\n')
    (row,) = reader.rows()
    assert (row.done, row.total, row.numbers) == (3, 10, {"reward": 0.5})
    assert row.left_s == 14.0  # 6 s for 3 of 10: 2 s each, 7 left


def test_rows_stand_in_order_of_start(tmp_path):
    reader = ProgressReader(tmp_path)
    write(tmp_path / "z.jsonl", {"step": "z", "state": "running"})
    reader.rows()
    write(tmp_path / "a.jsonl", {"step": "a", "state": "running"})
    assert [row.step for row in reader.rows()] == ["z", "a"]


def test_missing_directory_has_no_rows(tmp_path):
    assert ProgressReader(tmp_path / "absent").rows() == []


def test_killed_is_a_running_step_without_its_process(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    write(tmp_path / "a.jsonl", {"step": "a", "state": "running", "pid": gone.pid})
    write(tmp_path / "b.jsonl", {"step": "b", "state": "running", "pid": gone.pid}, {"state": "finished"})
    write(tmp_path / "c.jsonl", {"step": "c", "state": "running", "pid": 1})
    assert [row.step for row in ProgressReader(tmp_path).killed()] == ["a"]


def test_lines_come_at_every_tenth_and_at_the_end():
    out = io.StringIO()
    now = 0.0
    display = LineDisplay(Console(file=out, width=40), clock=lambda: now)
    row = StepRow("train", "grpo", 0, total=100)
    for done in range(101):
        now = 0.5 * done
        row.update({"done": done, "elapsed_s": 2.0 * done, "reward": 0.25, "entropy": 1.5})
        display.show([row])
    row.update({"state": "finished"})
    display.show([row])
    lines = out.getvalue().splitlines()
    assert len(lines) == 12  # at 0, 10, ..., 100, and the end
    assert lines[5].endswith("train (grpo, seed 0): 50/100, reward 0.250, entropy 1.500, 1 min 40 s left")
    assert lines[-1].endswith("train (grpo, seed 0): finished, 100/100, reward 0.250, entropy 1.500")


def test_tenths_that_pass_quickly_are_one_line():
    out = io.StringIO()
    display = LineDisplay(Console(file=out, width=40), clock=lambda: 0.0)
    row = StepRow("evaluate", "start", total=100)
    for done in range(101):
        row.update({"done": done, "elapsed_s": 0.01 * done})
        display.show([row])
    row.update({"state": "finished"})
    display.show([row])
    assert [line.rsplit(": ", 1)[1] for line in out.getvalue().splitlines()] == ["0/100", "finished, 100/100"]


def test_live_table_shows_every_step():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    row = StepRow("train", "[red]arm", 0, done=5, total=10, elapsed_s=10.0, numbers={"reward": 0.125})
    with open_display(console) as show:
        show([StepRow("validate-inputs", state="finished"), row])
    text = out.getvalue()
    assert "validate-inputs" in text
    assert "[red]arm" in text  # a name is no markup
    assert "5/10" in text
    assert "0.125" in text


def test_duration():
    assert [duration(s) for s in (0.4, 59.6, 200, 7500)] == ["0 s", "1 min 00 s", "3 min 20 s", "2 h 05 min"]


def test_failure_in_log_is_the_last_traceback(tmp_path):
    log = tmp_path / "log"
    log.write_text(
        "start\n    Traceback (most recent call last):\n      File 'a.py', line 1, in f\n        g()\n"
        "    ModuleNotFoundError: No module named 'x'\n\nPipeline failed\n"
    )
    message = str(_failure_in_log(log))
    assert "ModuleNotFoundError: No module named 'x'" in message
    assert "Pipeline failed" not in message
    assert str(log) in message


def test_failure_in_log_shows_our_errors_without_traceback(tmp_path):
    log = tmp_path / "log"
    log.write_text("Traceback (most recent call last):\n  File 'a.py'\nprogrpo.errors.DataError: row 3 has no answer\n")
    failure = _failure_in_log(log)
    assert str(failure) == "row 3 has no answer"
    assert failure.user_error
