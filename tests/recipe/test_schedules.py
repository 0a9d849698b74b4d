"""Warm-up, stable, decay: the curve at its corners and in its middle, in any unit."""

from math import cos, pi, sqrt

import pytest

from rotary_foundry.recipe.knobs import knob_schedule
from rotary_foundry.recipe.plan import LearningRate
from rotary_foundry.recipe.schedules import warmup_stable_decay

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


@pytest.mark.parametrize("duration", ["400tok", "0.2dur"])
def test_a_knob_moves_over_its_duration_from_the_stages_beginning_and_then_stays(duration):
    knob = knob_schedule({"start": 0, "end": 1, "duration": duration}, 1000, 3000)
    assert [knob.at(token) for token in (1000, 1100, 1200, 1399)] == pytest.approx([0, 0.25, 0.5, 0.9975])
    assert [knob.at(token) for token in (1400, 1401, 2000, 3000)] == [1, 1, 1, 1]  # to the bit


def test_without_a_duration_a_knob_moves_over_the_whole_stage():
    knob = knob_schedule({"start": 0.3, "end": 0.1}, 1000, 3000)
    assert [knob.at(token) for token in (1000, 2000, 3000)] == pytest.approx([0.3, 0.2, 0.1])
