"""Durations in tokens, and the learning rate as a share of its peak.

`warmup_stable_decay` and `piecewise_linear` are pure functions in any unit of time. Composer has no such schedules, and
it steps its schedulers one update late (algorithms/segment_switch.py), so the plan computes the learning rate.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import cos, pi, sqrt

# The remaining share of the way from the peak to the final value, after a share x of the decay.
DECAYS: dict[str, Callable[[float], float]] = {
    "one_minus_sqrt": lambda x: 1 - sqrt(x),  # arXiv 2405.18392, and ModernBERT
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + cos(pi * x)) / 2,
}

SECONDS = re.compile(r"([0-9]+(?:_[0-9]+)*)sec")
CLOCK = re.compile(r"(?:([01]?[0-9]|2[0-3])h)?(?:([0-5]?[0-9])m)?(?:([0-5]?[0-9])s)?")  # Composer's, below a day


def warmup_stable_decay(
    elapsed: float, total: float, t_warmup: float, t_decay: float, decay: str, alpha: float
) -> float:
    """Return the share of the peak at `elapsed` of `total`: linear from 0, then 1, then a decay to `alpha`.

    The decay takes the last `t_decay`. A constant schedule with warm-up has `t_decay` 0. A cosine schedule with warm-up
    has a `cosine` decay from the end of the warm-up to `total`.
    """
    if elapsed < t_warmup:
        return elapsed / t_warmup
    decayed = elapsed - (total - t_decay)
    if decayed <= 0:
        return 1.0
    return alpha + (1 - alpha) * DECAYS[decay](min(1.0, decayed / t_decay))


def piecewise_linear(elapsed: float, points: Sequence[tuple[float, float]]) -> float:
    """Return the value at `elapsed` of the lines between points (time, value); after the last point, its value.

    Times increase, and the first is 0.
    """
    after = bisect_right(points, elapsed, key=lambda point: point[0])
    if after == len(points):
        return points[-1][1]
    (start, first), (end, last) = points[after - 1 : after + 1]
    return first + (last - first) * (elapsed - start) / (end - start)


def parse_tokens(value: str, duration: int | None = None) -> int:
    """Parse `50_000tok`, or, if a duration in tokens is given, a share of it such as `0.5dur`; return tokens.

    Raises:
        ValueError: `value` has neither form.
    """
    text = value.strip()
    with suppress(ValueError, OverflowError):
        if text.endswith("tok"):
            return int(text.removesuffix("tok"))
        if text.endswith("dur") and duration is not None:
            return round(float(text.removesuffix("dur")) * duration)
    raise ValueError(f"'{value}' is not a number of tokens, such as 1_000_000tok" + (" or 0.5dur" if duration else ""))


def parse_seconds(value: str) -> int | None:
    """Return the seconds of a time in Composer's forms `1800sec`, `30m`, `1h30m` and `45s`; None for another form."""
    if in_seconds := SECONDS.fullmatch(value):
        return int(in_seconds[1])
    if value and (clock := CLOCK.fullmatch(value)):
        hours, minutes, seconds = (int(part or 0) for part in clock.groups())
        return (hours * 60 + minutes) * 60 + seconds
    return None
