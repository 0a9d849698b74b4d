"""What weights have in common, wherever they come from: each read when asked for, and held against a model's shape.

- Names and shapes are looked at before any value is read, so what does not fit is refused in a moment, and one tensor
  at a time is in memory unless someone keeps them.
- Values come out in float32, and not a number, or infinite, is refused where it is read: training would find out
  hours later, and every logit of a converted model would be NaN.
- A tied tensor that is written out is accepted if it is the parameter it is tied to, to the bit, and then left out.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rotary_foundry.models.family import Family, Shape
from rotary_foundry.utils.errors import DataError


class Weights(Mapping[str, Tensor]):
    """A network's parameters by its own names, whole, in float32, on the CPU; one is read when it is asked for.

    Args:
        where: they are, for errors.
        family: of the model.
        shapes: of everything that is there, by our names.

    Raises:
        DataError: from reading one that is damaged, or not made of finite floating-point numbers.
    """

    def __init__(self, where: Path, family: Family, shapes: Mapping[str, list[int]]):
        self.where = where
        self.family = family
        self.shapes = dict(shapes)

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """A tensor as it is stored."""

    def called(self, name: str) -> str:
        """What a parameter is called there."""
        return name

    def check(self, shape: Shape) -> None:
        """Hold names and shapes against a model's.

        Raises:
            DataError: the first that is missing, has another shape or has no place in our model.
        """
        expected = {name: list(size) for name, size in shape.parameter_shapes().items()}
        for name, size in expected.items():
            if name not in self.shapes:
                raise DataError(
                    f"{self.where}: no tensor {self.called(name)}, so these are not the weights of a language model of "
                    f"this shape (a {self.family.huggingface.architecture})"
                )
            if self.shapes[name] != size:
                raise DataError(f"{self.where}: {self.called(name)} is {self.shapes[name]}, the shape makes it {size}")
        unknown = sorted(self.shapes.keys() - expected.keys() - self.family.tied.keys())
        if unknown:
            biases = [name for name in expected if name.endswith("bias")]
            reason = f"; of biases it has only {', '.join(biases)}" if unknown[0].endswith("bias") else ""
            raise DataError(f"{self.where}: our model has no part for the tensor {self.called(unknown[0])}{reason}")
        for name, parameter in self.family.tied.items():
            if name in self.shapes and not torch.equal(self._finite(name), self[parameter]):
                raise DataError(
                    f"{self.where}: {self.called(name)} differs from {self.called(parameter)}, to which ours is tied"
                )

    def _finite(self, name: str) -> Tensor:
        tensor = self.read(name)
        if not tensor.is_floating_point():
            raise DataError(f"{self.where}: {self.called(name)} is {tensor.dtype}; weights are floating-point numbers")
        tensor = tensor.to(torch.float32)
        wrong = tensor.numel() - int(tensor.isfinite().sum())
        if wrong:
            raise DataError(
                f"{self.where}: {self.called(name)} has {wrong:,} values of {tensor.numel():,} that are infinite or "
                "not a number; the training that made it had diverged, take an earlier checkpoint"
            )
        return tensor

    def __getitem__(self, name: str) -> Tensor:
        if name not in self:
            raise KeyError(name)
        return self._finite(name)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes and name not in self.family.tied

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.shapes if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True)
class ForeignCheckpoint:
    """A checkpoint of a family's original training code, opened."""

    shape: Shape
    knobs: dict[str, float]
    weights: Weights
    longest_row: int | None  # tokens that it was trained on, where that is said
    tokenizer: dict[str, str]  # the content of the tokenizer's files, by name; empty if there are none
    facts: dict[str, int]  # how far it was trained, where that is said
    described: str  # what kind of checkpoint it is


def load_network(shape: Shape, knobs: Mapping[str, float], weights: Weights) -> nn.Module:
    """Build a network with these weights, in float32 on the CPU, in evaluation mode; no second copy of them is made.

    Args:
        knobs: those that trained weights are meant for; of the others, `of_weights` being false, each gets its lowest.

    Raises:
        DataError: the weights do not fit the shape.
    """
    weights.check(shape)
    family = weights.family
    others = {name: knob.low for name, knob in family.knobs.items() if not knob.of_weights}
    with torch.device("meta"):
        network = family.network(shape, others | dict(knobs))
    network.load_state_dict(dict(weights), assign=True)
    return network.eval()
