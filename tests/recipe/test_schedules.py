"""Warm-up, stable, decay, and lines: the curve at its corners and in its middle, in any unit."""

from math import cos, pi, sqrt

import pytest
from composer.core import Time, TimeUnit
from hypothesis import given
from hypothesis import strategies as st

from rotary_foundry.recipe.knobs import knob_schedule
from rotary_foundry.recipe.plan import LearningRate
from rotary_foundry.recipe.schedules import parse_seconds, piecewise_linear, warmup_stable_decay

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


@given(st.from_regex(r"([0-9]{0,2}h)?([0-9]{0,2}m)?([0-9]{0,2}s)?|[0-9_]{1,5}(sec|ba|tok|min)", fullmatch=True))
def test_a_time_of_the_clock_is_what_composer_reads(value):
    seconds = parse_seconds(value)
    if seconds is not None:
        assert Time.from_timestring(value) == Time(seconds, TimeUnit.SECOND)


@pytest.mark.parametrize(("value", "seconds"), [("1800sec", 1800), ("30m", 1800), ("1h30m", 5400), ("2h5s", 7205)])
def test_the_forms_of_a_time_of_the_clock(value, seconds):
    assert parse_seconds(value) == seconds


@pytest.mark.parametrize("value", ["", "30", "90m", "24h", "1.5h", "30min", "500ba", "m30"])
def test_other_times_are_not_of_the_clock(value):
    assert parse_seconds(value) is None
