"""Numbers of a swinging accuracy, against sums written out."""

import math
from statistics import pstdev

import numpy as np
import pytest
from conftest import each

from rayfl.federation.echo import oscillation, overshoot, reversals


def test_reversals():
    assert reversals([0.5, -0.1, 0.0, -1.0]) == 0.5
    assert reversals([0.0]) == 0


@each(n=[10, 19, 20, 39, 40, 100, 203])
def test_oscillation_is_the_spread_around_whole_windows(n):
    values = np.random.default_rng(n).uniform(size=n).tolist()
    h = {10: 1, 19: 1, 20: 1, 39: 1, 40: 2, 100: 5, 203: 10}[n]
    rest = [values[i] - sum(values[i - h : i + h + 1]) / (2 * h + 1) for i in range(h, n - h)]
    assert oscillation(values) == pytest.approx(pstdev(rest), rel=1e-9)


def test_a_trend_is_no_oscillation():
    assert oscillation([0.01 * i for i in range(60)]) == pytest.approx(0, abs=1e-12)
    smooth = [0.1 + 0.6 * (1 - math.exp(-i / 5)) for i in range(1, 101)]
    swinging = [value + 0.03 * (-1) ** i for i, value in enumerate(smooth)]
    assert oscillation(smooth) < 0.008  # as its docstring says
    assert oscillation(swinging) == pytest.approx(0.03, rel=0.2)


def test_few_evaluations_have_no_oscillation():
    assert oscillation([0.1, 0.9] * 4 + [0.1]) is None
    assert oscillation([0.1, 0.9] * 5) is not None
    assert oscillation([]) is None


@each(
    case=[
        ([0.3], 0),
        ([0.1, 0.2, 0.2], 0),
        ([0.5, 0.2, 0.6, 0.5], 0.3),
        ([0.5, 0.4, 0.9, 0.2], 0.7),
        ([0.9, 0.1], 0.8),
    ]
)
def test_overshoot_is_the_largest_fall_below_the_best_so_far(case):
    values, fall = case
    assert overshoot(values) == pytest.approx(fall)
