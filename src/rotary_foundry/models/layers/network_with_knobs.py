"""The base of networks with knobs: numbers that may change between updates."""

from collections.abc import Mapping
from typing import ClassVar

from torch import nn

from rotary_foundry.utils.knob import Knob


class NetworkWithKnobs(nn.Module):
    """A network that keeps the value of each knob of its family. A subclass ends its `__init__` with `set_knobs`."""

    of_family: ClassVar[Mapping[str, Knob]]

    def set_knobs(self, values: Mapping[str, float]) -> None:
        """Set every knob to its first value.

        Raises:
            ConfigurationError: a value is invalid.
        """
        self.knobs: dict[str, float] = {}
        for name in self.of_family:
            self.set_knob(name, values[name])

    def set_knob(self, name: str, value: float) -> None:
        """Set a knob; the next forward pass uses it.

        Raises:
            ConfigurationError: the value is invalid.
        """
        self.of_family[name].check(name, value)
        self.knobs[name] = value
