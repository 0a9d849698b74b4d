"""Knobs: numbers that a stage sets, or moves from one value to another, known to the plan at every token.

Families and objectives declare which knobs they have (`models/family.py`, `objectives/objective.py`); this module says
what a recipe may give for one, and what its value is at a token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rotary_foundry.recipe.schedules import DECAYS
from rotary_foundry.utils.knob import Knob

KEYS = ("start", "end", "shape")


@dataclass(frozen=True)
class KnobSchedule:
    """A knob's value from one token to another."""

    start: float
    end: float
    shape: str
    start_token: int
    end_token: int

    def at(self, token: int) -> float:
        """Return the value for an update that starts at `token`."""
        if self.start == self.end:
            return self.start
        done = min(1.0, max(0.0, (token - self.start_token) / (self.end_token - self.start_token)))
        return self.end + (self.start - self.end) * DECAYS[self.shape](done)


def knob_schedule(given: Any, start_token: int, end_token: int) -> KnobSchedule:
    """Make the schedule over a stage of what a recipe gives: a number, or a mapping of start, end and maybe shape."""
    if isinstance(given, Mapping):
        shape = given.get("shape", "linear")
        return KnobSchedule(float(given["start"]), float(given["end"]), shape, start_token, end_token)
    return KnobSchedule(float(given), float(given), "linear", start_token, end_token)


def knob_complaint(knob: Knob, given: Any) -> str | None:
    """Return what is wrong with what a recipe gives for a knob; None if nothing is."""
    if not isinstance(given, Mapping):
        return knob.complaint(given)
    if unknown := [key for key in given if key not in KEYS]:
        return f"unknown key '{unknown[0]}'; a schedule has start, end and shape"
    for key in ("start", "end"):
        if key not in given:
            return f"a schedule has start and end, and '{key}' is not given"
        if complaint := knob.complaint(given[key]):
            return f"{key}: {complaint}"
    if given.get("shape", "linear") not in DECAYS:
        return f"shape '{given['shape']}' is not one of {', '.join(DECAYS)}"
    return None
