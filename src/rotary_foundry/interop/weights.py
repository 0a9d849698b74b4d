"""What weights have in common, wherever they come from: each read when asked for, and held against a model's shape.

- Names and shapes are looked at before any value is read, so what does not fit is refused in a moment, and one tensor
  at a time is in memory unless someone keeps them.
- Values come out in float32, and not a number, or infinite, is refused where it is read: training would find out
  hours later, and every logit of a converted model would be NaN.
- A decoder that is written out is accepted if it is the embedding, to the bit, and then left out: ours is tied to it.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from rotary_foundry.models.modernbert.network import MaskedLM
from rotary_foundry.recipe.schema import ModelConfig
from rotary_foundry.utils.errors import DataError

EMBEDDING, DECODER = "model.embeddings.tok_embeddings.weight", "decoder.weight"


class Weights(Mapping[str, Tensor]):
    """A network's parameters by its own names, whole, in float32, on the CPU; one is read when it is asked for.

    Args:
        where: they are, for errors.
        shapes: of everything that is there, by our names.

    Raises:
        DataError: from reading one that is damaged, or not made of finite floating-point numbers.
    """

    def __init__(self, where: Path, shapes: Mapping[str, list[int]]):
        self.where = where
        self.shapes = dict(shapes)

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """A tensor as it is stored."""

    def called(self, name: str) -> str:
        """What a parameter is called there."""
        return name

    def check(self, config: ModelConfig) -> None:
        """Hold names and shapes against a model's.

        Raises:
            DataError: the first that is missing, has another shape or has no place in our model.
        """
        with torch.device("meta"):
            wanted = {name: list(value.shape) for name, value in MaskedLM(config, 1.0).state_dict().items()}
        for name, shape in wanted.items():
            if name not in self.shapes:
                raise DataError(
                    f"{self.where}: no tensor {self.called(name)}, so these are not the weights of a masked language "
                    "model of this shape (a ModernBertForMaskedLM)"
                )
            if self.shapes[name] != shape:
                raise DataError(f"{self.where}: {self.called(name)} is {self.shapes[name]}, the shape makes it {shape}")
        unknown = sorted(self.shapes.keys() - wanted.keys() - {DECODER})
        if unknown:
            reason = "; of biases it has the decoder's only" if unknown[0].endswith("bias") else ""
            raise DataError(f"{self.where}: our model has no part for the tensor {self.called(unknown[0])}{reason}")
        if DECODER in self.shapes and not torch.equal(self._finite(DECODER), self[EMBEDDING]):
            raise DataError(
                f"{self.where}: {self.called(DECODER)} differs from {self.called(EMBEDDING)}, our decoder is tied to it"
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
        return name in self.shapes and name != DECODER

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.shapes if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def load_network(config: ModelConfig, rope_theta: float, weights: Weights) -> MaskedLM:
    """A network with these weights, in float32 on the CPU, in evaluation mode; no second copy of them is made.

    Raises:
        DataError: they do not fit.
    """
    weights.check(config)
    with torch.device("meta"):
        network = MaskedLM(config, rope_theta)
    network.load_state_dict(dict(weights), assign=True)
    return network.eval()
