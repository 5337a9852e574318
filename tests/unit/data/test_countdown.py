import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from progrpo.data.countdown import (
    PHRASINGS,
    CountdownProblem,
    all_problems,
    generate,
    right_answers,
    split_problems,
)
from progrpo.errors import DataError
from progrpo.rewards import verify

problems = st.sampled_from(all_problems())


def test_right_answers_by_hand():
    # 3 5 7 -> 22: only 3*5 + 7 works; two orders of the product, two of the sum, with or without parentheses.
    assert right_answers(CountdownProblem((3, 5, 7), 22)) == (
        *("(3*5)+7", "(5*3)+7", "3*5+7", "5*3+7"),
        *("7+(3*5)", "7+(5*3)", "7+3*5", "7+5*3"),
    )
    # 1 1 1 -> 2: 1+1*1 and 1*1+1, (1+1)*1 and 1*(1+1).
    assert set(right_answers(CountdownProblem((1, 1, 1), 2))) == {
        *("1+1*1", "1+(1*1)", "1*1+1", "(1*1)+1", "(1+1)*1", "1*(1+1)"),
    }


def test_number_of_problems():
    assert len(all_problems()) == len(set(all_problems())) == 1673
    assert sum(problem.numbers == (1, 1, 1) for problem in all_problems()) == 3  # 1, 2 and 3


@given(problem=problems)
def test_every_right_answer_verifies_and_fits(problem):
    for text in right_answers(problem):
        assert verify("countdown", problem.answer, text).correct
        assert verify("countdown", problem.answer, " ".join(text)).correct
        assert len(text) <= 7


@given(problem=problems, data=st.data())
def test_another_digit_or_target_does_not_verify(problem, data):
    text = data.draw(st.sampled_from(right_answers(problem)))
    place = data.draw(st.sampled_from([match.start() for match in re.finditer("[0-9]", text)]))
    digit = data.draw(st.sampled_from([d for d in "123456789" if d != text[place]]))
    assert not verify("countdown", problem.answer, text[:place] + digit + text[place + 1 :]).correct
    other = CountdownProblem(problem.numbers, problem.target + 1)
    assert not verify("countdown", other.answer, text).correct


def test_splits_share_no_problem_in_any_phrasing_or_order():
    train, evaluation = generate(2048, 256, seed=0)
    assert (len(train), len(evaluation)) == (2048, 256)
    assert len({prompt for prompt, _ in train}) == 2048
    assert len({answer for _, answer in evaluation}) == 256  # each held-out problem once
    assert {answer for _, answer in train}.isdisjoint({answer for _, answer in evaluation})


def test_held_out_problems_do_not_depend_on_the_seed():
    training, held_out = split_problems()
    assert len(held_out) == 384
    assert set(training) | set(held_out) == set(all_problems())
    answers = {problem.answer for problem in held_out}
    for seed in range(3):
        train, evaluation = generate(500, 100, seed)
        assert answers.isdisjoint({answer for _, answer in train})
        assert answers.issuperset({answer for _, answer in evaluation})


def test_generate_repeats_with_its_seed():
    assert generate(100, 20, seed=1) == generate(100, 20, seed=1)
    assert generate(100, 20, seed=1) != generate(100, 20, seed=2)
    # Fixed values: a change of the task would make the embedded checkpoint and published numbers another's.
    train, evaluation = generate(1, 1, seed=0)
    assert train[0] == ("with 2 1 6 given reach the target 14 :", '{"numbers":[1,2,6],"target":14}')
    assert evaluation[0] == ("with 3 3 7 given reach the target 12 :", '{"numbers":[3,3,7],"target":12}')


def test_all_phrasings_occur():
    train, _ = generate(200, 1, seed=0)
    shapes = {re.sub(r"\d+( \d+)*", "#", prompt) for prompt, _ in train}
    assert shapes == {re.sub(r"{\w+}", "#", phrasing) for phrasing in PHRASINGS}


@pytest.mark.parametrize(("num_train", "num_eval", "name"), [(10**5, 1, "num_train"), (1, 385, "num_eval")])
def test_more_than_there_is(num_train, num_eval, name):
    with pytest.raises(DataError, match=f"{name} is .* Ask for at most"):
        generate(num_train, num_eval, seed=0)
