"""Knobs: numbers that a stage holds constant or moves from one value to another. The plan has them for every token.

Families and objectives declare their knobs (`models/family.py`, `objectives/objective.py`). This module checks the
values that a recipe gives, and computes a knob's value at a token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rotary_foundry.recipe.schedules import DECAYS, parse_tokens
from rotary_foundry.utils.knob import Knob

KEYS = ("start", "end", "shape", "duration")


@dataclass(frozen=True)
class KnobSchedule:
    """A knob's value between two tokens; after the second one it stays at `end`."""

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
    """Make a stage's schedule from a recipe's value.

    Args:
        given: a number; or a mapping of start, end and optionally shape and duration. The knob moves from the stage's
            first token for the duration, or for the whole stage without one.
        start_token, end_token: those of the stage.
    """
    if isinstance(given, Mapping):
        shape, tokens = given.get("shape", "linear"), end_token - start_token
        duration = min(tokens, parse_tokens(given["duration"], tokens)) if "duration" in given else tokens
        return KnobSchedule(float(given["start"]), float(given["end"]), shape, start_token, start_token + duration)
    return KnobSchedule(float(given), float(given), "linear", start_token, end_token)


def knob_complaint(knob: Knob, given: Any, tokens: int | None) -> str | None:
    """Return what is wrong with a recipe's value for a knob; None if it is valid.

    Args:
        tokens: the length of the stage; None if it is unknown.
    """
    if not isinstance(given, Mapping):
        return knob.complaint(given)
    if unknown := [key for key in given if key not in KEYS]:
        return f"unknown key '{unknown[0]}'; a schedule has start, end, shape and duration"
    for key in ("start", "end"):
        if key not in given:
            return f"a schedule needs start and end; '{key}' is missing"
        if complaint := knob.complaint(given[key]):
            return f"{key}: {complaint}"
    if not isinstance(shape := given.get("shape", "linear"), str) or shape not in DECAYS:
        return f"shape '{shape}' is not one of {', '.join(DECAYS)}"
    return _duration_complaint(given["duration"], tokens) if "duration" in given and tokens is not None else None


def _duration_complaint(given: Any, tokens: int) -> str | None:
    try:
        duration = parse_tokens(str(given), tokens)
    except ValueError as error:
        return f"duration: {error}"
    if not 0 < duration <= tokens:
        return f"duration: expected 1 to {tokens:_} tokens, those of the stage, got {duration:_}"
    return None
