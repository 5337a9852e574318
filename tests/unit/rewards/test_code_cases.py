"""The code task: forms of tests, comparison of outputs, programs in completions."""

import json
from decimal import Decimal

import pytest

from progrpo.errors import DataError
from progrpo.rewards import Verdict, code, verify, verify_batch
from progrpo.rewards.code.cases import parse_answer, same_output, same_value
from progrpo.rewards.code.inside import Opaque, decode, encode
from progrpo.rewards.code.program import normalised_program, python_blocks

pytestmark = pytest.mark.usefixtures("sandboxes")


def fenced(program: str) -> str:
    return f"We add.\n```python\n{program}\n```\nDone."


STDIN = {"inputs": ["1 2\n", "-3 5\n"], "outputs": ["3\n", "2\n"]}
CALL = {"fn_name": "add", "inputs": ["1\n2", "[1]\n[2]"], "outputs": ["3", "[1, 2]"]}
ARGUMENTS = {"fn_name": "add", "inputs": [[1, 2], [[1], [2]]], "outputs": [3, [1, 2]]}
CHECK = {"entry_point": "add", "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n"}
HUMANEVAL_PLUS = {
    "entry_point": "add",
    "test": "import numpy as np\n\ndef is_floats(x):\n    return isinstance(x, float)\n\n"
    "def assertion(out, exp, atol):\n    if is_floats(exp):\n"
    "        assert np.allclose(out, exp, rtol=1e-07, atol=1e-6)\n    else:\n"
    "        assert out == exp, f'out: {out}, exp: {exp}'\n\ndef check(candidate):\n"
    "    inputs = [[0.1, 0.2], [(1,), (2,)], [{'a'}, {'b'}]] \n    results = [0.3, (1, 2), {'a', 'b'}]\n"
    "    for inp, exp in zip(inputs, results):\n        assertion(candidate(*inp), exp, 0)\n",
}
ASSERTS = {"entry_point": "add", "test": "assert add(1, 2) == 3\nassert add('a', 'b') == 'ab'"}
PLUS = "def add(a, b): return a | b if isinstance(a, set) else a + b"


@pytest.mark.parametrize(
    ("answer", "program", "correct"),
    [
        (STDIN, "a, b = map(int, input().split())\nprint(a + b)", True),
        (STDIN, "import sys\nprint(sum(map(int, sys.stdin.read().split())))", True),
        (STDIN, "if __name__ == '__main__':\n    print(sum(map(int, open(0).read().split())))", True),
        (STDIN, "print(sum(map(int, input().split())), end='')", True),
        (STDIN, "print(3)", False),
        (STDIN, "print(3); print(2)", False),
        (STDIN, "def main(): pass", False),
        (STDIN, "raise ValueError", False),
        (STDIN, "def broken(:", False),
        (CALL, "def add(a, b): return a + b", True),
        (CALL, "class Solution:\n    def add(self, a: List[int], b: Optional[int]): return a + b", True),
        (CALL, "def add(a, b): return tuple(a + b) if isinstance(a, list) else a + b", True),
        (CALL, "def add(a, b): print('3'); return a - b", False),
        (CALL, "def plus(a, b): return a + b", False),
        (CALL, "def add(a, b): return heapq.nlargest(1, [a + b])[0] if isinstance(a, int) else a + b", True),
        (ARGUMENTS, "def add(a, b): return a + b", True),
        (ARGUMENTS, "def add(a, b): return b", False),
        (CHECK, "def add(a, b): return a + b", True),
        (CHECK, "def add(a, b): return a * b", False),
        (CHECK, "def add(a, b): raise KeyError", False),
        (HUMANEVAL_PLUS, PLUS, True),
        (HUMANEVAL_PLUS, "def add(a, b): return a", False),
        (ASSERTS, PLUS, True),
        (ASSERTS, "def add(a, b): return 3", False),
    ],
)
def test_right_and_wrong_programs(answer, program, correct):
    verdict = verify("code", json.dumps(answer), fenced(program))
    assert (verdict.correct, verdict.scored) == (correct, True)


def test_a_batch_keeps_its_order_and_runs_equal_programs_once(monkeypatch):
    ran = []
    real = code.run_here
    monkeypatch.setattr(code, "run_here", lambda programs: ran.extend(programs) or real(programs))
    right, wrong = fenced("print(sum(map(int, input().split())))"), fenced("print(0)")
    answer = json.dumps(STDIN)
    items = [("code", answer, right), ("exact", "a", "a"), ("code", answer, wrong), ("code", answer, "no program"),
             ("code", answer, right)]  # fmt: skip
    verdicts = verify_batch(items)
    assert [verdict.correct for verdict in verdicts] == [True, True, False, False, True]
    assert verdicts[3] == Verdict(correct=False, answer=None)
    assert len(ran) == 2


def test_a_machine_that_gets_in_the_way_leaves_programs_unscored(monkeypatch, caplog):
    def lost(*_):
        raise code.SandboxError("killed from outside")

    monkeypatch.setattr(code, "passes", lost)
    assert not verify("code", json.dumps(STDIN), fenced("print(1)")).scored
    assert "1 of 1 code completions could not be verified" in caplog.text


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [
        ("3\n", "3", True),
        ("  3  \n\n", "3\n", True),
        ("1 2\n3", "1 2\n3\n", True),
        ("1\n2", "1 2", False),  # lines count
        ("1  2", "1 2", True),  # as numbers, one by one
        ("a  b", "a b", False),
        ("1.0", "1", True),
        ("1e2 0.50", "100 .5", True),
        ("0.333", "0.3333", False),  # no tolerance
        ("100000000000000001", "100000000000000000", False),
        ("YES", "yes", False),
        ("nan", "nan", True),
        ("sNaN 1", "sNaN  1", False),
        ("", "", True),
        ("", "1", False),
    ],
)
def test_output_is_compared_as_livecodebench_does(given, expected, same):
    assert same_output(given, expected) is same


def test_values_are_compared_as_livecodebench_does():
    assert same_value((1, 2), [1, 2])
    assert not same_value([(1, 2)], [[1, 2]])
    assert not same_value(Opaque(), 1)
    assert same_value(1.0, 1)


def test_plain_data_crosses_and_nothing_else():
    values = [None, True, 2, 1 << 200, -(1 << 70), 0.5, float("inf"), "\ud800", b"\x00", 1j, (1, [2]), {1, 2},
              frozenset({3}), {(1, 2): {"dict": []}, None: 1}, {"int": "x"}]  # fmt: skip
    assert decode(json.loads(json.dumps(encode(values)))) == values
    for value in (Decimal(1), object(), range(3), (i for i in range(3)), open):
        assert isinstance(decode(encode(value)), Opaque)

    class Sly(list):
        def __iter__(self):
            return iter([9])

        def __eq__(self, other):
            return True

    assert decode(encode(Sly([1]))) == [1]
    assert type(decode(encode(Sly([1])))) is list


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("7", "not iterable"),
        ("no JSON", "Expecting value"),
        ({"inputs": ["1"]}, "no key 'outputs'"),
        ({"inputs": ["1"], "outputs": []}, "equal length"),
        ({"inputs": [], "outputs": []}, "at least one case"),
        ({"inputs": [1], "outputs": ["1"]}, "a text is needed, not int"),
        ({**STDIN, "checker": "x"}, "unknown key checker"),
        ({**CALL, "fn_name": "a b"}, "no name of a function"),
        ({**CALL, "inputs": ["x", "y"]}, "Expecting value"),
        ({**STDIN, "time_limit_s": 1000}, "at most 120"),
        ({**STDIN, "memory_limit_mb": "a lot"}, "memory_limit_mb must be a number"),
        ({**CHECK, "inputs": []}, "has the keys entry_point and test"),
        ({"test": "x"}, "has the keys"),
    ],
)
def test_an_answer_that_is_none_says_why(answer, reason):
    with pytest.raises(DataError, match=reason):
        parse_answer(answer if isinstance(answer, str) else json.dumps(answer))


def test_other_writings_of_cases():
    listed = [{"input": "1\n", "output": "2\n", "testtype": "stdin"}]
    assert parse_answer(json.dumps(listed)).inputs == ("1\n",)
    limited = parse_answer(json.dumps({**STDIN, "fn_name": None, "time_limit_s": 1.5, "memory_limit_mb": 256}))
    assert (limited.function, limited.time_limit_s, limited.memory_limit_mb) == (None, 2, 256)


def test_a_limit_of_the_problem_is_kept():
    slow = fenced("x = 0\nwhile x < 10**9: x += 1\nprint(1)")
    assert not verify("code", json.dumps({"inputs": [""], "outputs": ["1"], "time_limit_s": 1}), slow).correct
    greedy = fenced("x = bytearray(300 << 20)\nprint(1)")
    assert not verify("code", json.dumps({"inputs": [""], "outputs": ["1"], "memory_limit_mb": 256}), greedy).correct
    assert verify("code", json.dumps({"inputs": [""], "outputs": ["1"]}), greedy).correct


def test_the_last_python_block_is_the_program():
    text = "```cpp\nint a;\n```\nfirst\n```python\nprint(1)\n```\nno:\n```py\nprint(2)\n```\n```text\n2\n```"
    assert python_blocks(text) == ["print(1)\n", "print(2)\n"]
    assert python_blocks("```\nprint(3)\n```") == ["print(3)\n"]
    assert python_blocks("```python\nprint(4)") == []  # cut off: no program
    assert python_blocks("print(5)") == []


def test_answers_are_programs_but_for_names_and_layout():
    one = normalised_program("def add(a, b):\n    '''Add.'''\n    return a+b  # plus")
    assert (
        one
        == normalised_program("def plus(x: int, y: int) -> int:\n    return (x + y)")
        == "def n0(n1, n2):\n    return n1 + n2"
    )
    assert one != normalised_program("def add(a, b):\n    return b+a")
    assert normalised_program("def broken(:") == "def broken(:"
    long = normalised_program("\n".join(f"x{i} = {i}" for i in range(500)))
    assert len(long) < 1100
    assert long != normalised_program("\n".join(f"x{i} = {i}" for i in range(499)) + "\nx = 7")
