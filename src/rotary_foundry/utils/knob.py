"""Knob: what a family or an objective says of a number that a stage may set."""

from dataclasses import dataclass
from math import inf

Problem = tuple[str, str]  # a key, and what is wrong with its value


@dataclass(frozen=True)
class Knob:
    """A number that a stage sets, or moves from one value to another, while it trains.

    Args:
        meaning: a few words for tables and errors.
        low, high: the values allowed lie between these; `low` itself is allowed if `includes_low`.
        includes_low: whether `low` is a valid value.
        of_weights: whether trained weights are meant for one value, as they are for a theta: then `init_from` gives the
            value that a recipe leaves out, and an export writes it.
    """

    meaning: str
    low: float = 0.0
    high: float = inf
    includes_low: bool = False
    of_weights: bool = False

    def complaint(self, value: object) -> str | None:
        """Return what is wrong with a value; None if nothing is."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and (self.low < value < self.high or (self.includes_low and value == self.low)):
            return None
        if self.high == inf:
            return f"{value!r} is not a finite number {'of at least' if self.includes_low else 'above'} {self.low:g}"
        return f"{value!r} is not a number in {'[' if self.includes_low else '('}{self.low:g}, {self.high:g})"
