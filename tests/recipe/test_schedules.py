"""Warm-up, stable, decay, and lines: the curve at its corners and in its middle, in any unit."""

from math import cos, pi, sqrt

import pytest

from rotary_foundry.recipe.plan import LearningRate
from rotary_foundry.recipe.schedules import piecewise_linear, warmup_stable_decay

SHAPES = {
    "one_minus_sqrt": lambda done: 1 - sqrt(done),
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + cos(pi * done)) / 2,
}


@pytest.mark.parametrize("unit", [1, 64, 10**9])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_rate_rises_from_0_stays_at_the_peak_and_falls_to_its_end_in_the_shape_asked_for(shape, unit):
    peak, warmup, decay, total, alpha = 8e-4, 5, 8, 20, 0.001
    curve = LearningRate(peak, 0, total * unit, warmup * unit, decay * unit, shape, alpha)
    for at in range(total + 1):
        if at < warmup:
            share = at / warmup
        else:
            share = alpha + (1 - alpha) * SHAPES[shape](max(0, at - (total - decay)) / decay)
        assert curve.at(at * unit) == pytest.approx(peak * share)


def test_without_a_decay_the_rate_stays_at_its_peak():
    assert [warmup_stable_decay(at, 20, 5, 0, "linear", 0.0) for at in (5, 12, 19)] == [1, 1, 1]


@pytest.mark.parametrize("unit", [1, 64, 10**9])
def test_lines_run_from_point_to_point_and_stay_at_the_last(unit):
    points = ((0, 0), (4_000 * unit, 1.0), (40_000 * unit, 0.5), (160_000 * unit, 0.1), (320_000 * unit, 0.01))
    curve = LearningRate(1.76e-3, 7, 400_000 * unit, 0, 0, "linear", 1.0, points)  # RoFormerV2's, from token 7 on
    for time, factor in points:
        assert curve.at(7 + time) == 1.76e-3 * factor
    middles = {2_000: 0.5, 22_000: 0.75, 100_000: 0.3, 240_000: 0.055, 320_001: 0.01, 400_000: 0.01}
    for update, factor in middles.items():
        assert curve.at(7 + update * unit) == pytest.approx(1.76e-3 * factor)
    assert piecewise_linear(9, [(0, 0.5)]) == 0.5
