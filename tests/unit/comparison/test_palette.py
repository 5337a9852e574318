"""Colours of arms."""

import re

from hypothesis import given
from hypothesis import strategies as st

from progrpo.comparison.palette import colour_by_name, looks


def test_grpo_and_progrpo_look_alike_in_mlflow_and_in_the_report() -> None:
    of_report = looks(["start", "grpo", "progrpo"])
    assert {arm: colour_by_name(arm) for arm in of_report} == {arm: look.colour for arm, look in of_report.items()}


@given(st.text())
def test_any_arm_has_one_colour_and_none_of_the_two(arm: str) -> None:
    assert colour_by_name(arm) == colour_by_name(arm)
    assert re.fullmatch("#[0-9a-f]{6}", colour_by_name(arm))
    if arm not in {"grpo", "progrpo"}:
        assert colour_by_name(arm) not in {colour_by_name("grpo"), colour_by_name("progrpo")}
