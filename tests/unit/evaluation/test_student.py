"""Student's t quantile against scipy's and the table every statistics book has."""

import numpy as np
import pytest
from scipy.special import stdtrit

from progrpo.evaluation.student import student_t_quantile

DF = np.concatenate([[1, 1.001, 1.5, 2, 3, 499.9, 500, 501, 1e6, 1e12], np.random.default_rng(0).uniform(1, 600, 200)])


def test_the_table():
    assert student_t_quantile(0.975, [1, 2, 5, 10, 30]) == pytest.approx([12.706, 4.303, 2.571, 2.228, 2.042], abs=5e-4)


@pytest.mark.parametrize(
    ("tail", "digits"), [(0.0005, 1e-6), (0.005, 1e-11), (0.025, 1e-11), (0.05, 1e-11), (0.25, 1e-11), (0.45, 1e-11)]
)
def test_scipy_agrees(tail, digits):
    for probability in (tail, 1 - tail):
        np.testing.assert_allclose(student_t_quantile(probability, DF), stdtrit(DF, probability), rtol=digits)


def test_one_number_in_one_number_out():
    assert student_t_quantile(0.5, 3).shape == ()
    assert float(student_t_quantile(0.5, 3)) == 0
