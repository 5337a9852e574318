import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from progrpo.errors import DataError
from progrpo.rewards import Verdict, verify
from progrpo.rewards.countdown import MAX_LENGTH, parse_expression

ANSWER = '{"numbers":[3,5,7],"target":22}'

expressions = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.builds("{}{}{}".format, inner, st.sampled_from("+-*"), inner) | inner.map("({})".format),
    max_leaves=8,
).filter(lambda text: len(text) <= MAX_LENGTH)


@pytest.mark.parametrize(
    ("text", "normal", "value"),
    [
        ("3*5+7", "3*5+7", 22),
        (" ( 3 * 5 ) + 7 ", "3*5+7", 22),
        ("((3*(5))+7)", "3*5+7", 22),
        ("3*(5+7)", "3*(5+7)", 36),
        ("(3+5)*7", "(3+5)*7", 56),
        ("3-(5-7)", "3-(5-7)", 5),
        ("3+(5-7)", "3+5-7", 1),
        ("3-(5*7)", "3-5*7", -32),
        ("3*(5*7)", "3*5*7", 105),
        ("(3-5)-7", "3-5-7", -9),
        ("7", "7", 7),
    ],
)
def test_normal_form_and_value(text, normal, value):
    expression = parse_expression(text)
    assert expression is not None
    assert (expression.text, expression.value) == (normal, value)


@given(text=expressions)
@example("1-(2-(3-(4-5)))")
def test_value_is_pythons_and_the_normal_form_keeps_it(text):
    expression = parse_expression(text)
    assert expression is not None
    assert expression.value == eval(text, {"__builtins__": {}})  # noqa: S307 - text of + - * and digits, made here
    again = parse_expression(expression.text)
    assert again is not None
    assert (again.text, again.value, again.numbers) == (expression.text, expression.value, expression.numbers)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "3*5+", "+3", "-3+5", "3 5", "(3*5", "3*5)", "()", "3**5", "3/5", "3//5", "3.0*5", "3x5", "3×5"),
        *("__import__('os')", "3*5+7=22", "٣*5", "3;5", "0x3", "3_0", "(" * 90 + "3" + ")" * 90 + "+" * 30),
    ],
)
def test_what_is_no_expression(text):
    assert parse_expression(text) is None
    assert verify("countdown", ANSWER, text) == Verdict(correct=False, answer=None)


@given(text=st.text(max_size=300))
def test_any_text_gets_a_verdict(text):
    assert verify("countdown", ANSWER, text).scored


@pytest.mark.parametrize(
    ("completion", "correct"),
    [
        ("3 * 5 + 7", True),
        ("7+(5*3)", True),
        ("I try 3+5+7 first.\n3*5+7\n", True),
        ("Answer: 3*5+7\nDone.", True),
        ("3*5+8", False),
        ("3+5+7", False),  # 15
        ("22", False),  # not the numbers
        ("3*5+7*1", False),  # one too many
        ("3*5+7+3-3", False),  # used twice
        ("15+7", False),
    ],
)
def test_verdicts(completion, correct):
    assert verify("countdown", ANSWER, completion).correct is correct


def test_repeated_numbers_are_each_used_once():
    answer = json.dumps({"numbers": [2, 2, 3], "target": 12})
    assert verify("countdown", answer, "2*2*3").correct
    assert not verify("countdown", json.dumps({"numbers": [2, 3, 3], "target": 12}), "2*2*3").correct


def test_wrong_answers_have_a_normal_form_too():
    assert verify("countdown", ANSWER, "(3+5)+7") == Verdict(correct=False, answer="3+5+7")


@pytest.mark.parametrize("answer", ["22", "{}", '{"numbers":[],"target":1}', '{"numbers":[true,2],"target":3}', "[1]"])
def test_malformed_answer_column(answer):
    with pytest.raises(DataError, match="Write JSON with whole numbers"):
        verify("countdown", answer, "1+2")
