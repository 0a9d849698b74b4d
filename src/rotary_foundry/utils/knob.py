"""Knob: a number that a stage may set, as a family or an objective declares it."""

from dataclasses import dataclass
from math import inf

from rotary_foundry.utils.errors import ConfigurationError

Problem = tuple[str, str]  # a key, and what is wrong with its value


@dataclass(frozen=True)
class Knob:
    """A number that a stage sets to a value, or moves from one value to another.

    Args:
        meaning: a few words for tables and errors.
        low, high: the range of valid values.
        includes_low, includes_high: whether `low` and `high` themselves are valid.
        of_weights: whether trained weights belong to one value, as for a theta. If so, a recipe that omits the knob
            takes its value from `init_from`, and an export writes it.
    """

    meaning: str
    low: float = 0.0
    high: float = inf
    includes_low: bool = False
    includes_high: bool = False
    of_weights: bool = False

    def complaint(self, value: object) -> str | None:
        """Return what is wrong with a value; None if it is valid."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        at_an_end = (self.includes_low and value == self.low) or (self.includes_high and value == self.high)
        if number and (self.low < value < self.high or at_an_end):
            return None
        if self.high == inf:
            return f"{value!r} is not a finite number {'of at least' if self.includes_low else 'above'} {self.low:g}"
        opening, closing = "[" if self.includes_low else "(", "]" if self.includes_high else ")"
        return f"{value!r} is not a number in {opening}{self.low:g}, {self.high:g}{closing}"

    def check(self, name: str, value: object) -> None:
        """Raise a ConfigurationError that names the knob if a value is invalid."""
        if complaint := self.complaint(value):
            raise ConfigurationError(f"{name}: {complaint}")
