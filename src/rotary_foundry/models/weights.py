"""The common interface to weights from any source. Tensors are read on access and checked against a model's shape.

- Names and shapes are checked before any value is read, so weights that do not fit are refused at once. Only one tensor
  is in memory at a time, unless the caller keeps them.
- Values are returned in float32. NaN and infinite values are refused when they are read; otherwise training would fail
  hours later, or every logit of a converted model would be NaN.
- A separately stored tied tensor is accepted if it is identical to the parameter that it is tied to, and then left out.
- torch.compile, DistributedDataParallel or a program's own class may have added prefixes to names. They are removed if
  no other reading is possible, with a warning.
"""

import logging
import re
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rotary_foundry.models.family import Family, Shape
from rotary_foundry.utils.errors import DataError

# The wrappers of torch.compile, FSDP1 and activation checkpointing (pytorch/pytorch#101107). No parameter is named so.
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
PREFIXES = ("module.", "model.")  # DistributedDataParallel's, and that of a class around the model

log = logging.getLogger(__name__)


def unwrapped(
    names: Iterable[str], expected: Collection[str], where: Path, prefixes: Collection[str] = PREFIXES
) -> dict[str, str]:
    """Return the stored name for each name without the wrappers and prefixes that other programs added.

    A prefix is removed only if every name begins with it, no name is the model's, and some name is without it.

    Args:
        names: the names of the stored tensors.
        expected: the names of the model's tensors; if empty, a prefix is removed whenever every name begins with it.
        where: the location of the weights.
        prefixes: those that other programs may have added.

    Raises:
        DataError: two tensors would have one name.
    """
    plain: dict[str, str] = {}
    for name in names:
        if (other := plain.setdefault(WRAPPERS.sub("", name), name)) != name:
            raise DataError(f"{where}: {other} and {name} are one tensor of the model; remove one of them")
    bare = dict(plain)
    while bare.keys().isdisjoint(expected) and (
        found := [prefix for prefix in prefixes if bare and all(name.startswith(prefix) for name in bare)]
    ):
        bare = {name.removeprefix(found[0]): stored for name, stored in bare.items()}
    if not expected or not bare.keys().isdisjoint(expected):
        plain = bare
    changed = next(((name, stored) for name, stored in plain.items() if name != stored), None)
    if changed is not None:
        log.warning("%s: tensor names are read without wrappers and prefixes: %s as %s", where, *reversed(changed))
    return plain


class Weights(Mapping[str, Tensor]):
    """A network's full parameters by our names, in float32 on the CPU, each read on access.

    Args:
        where: the location of the weights, for errors.
        family: the family of the model.
        shapes: the shapes of all stored tensors, by our names.

    Raises:
        DataError: on access, if a tensor is damaged or has values that are not finite floating-point numbers.
    """

    def __init__(self, where: Path, family: Family, shapes: Mapping[str, list[int]]):
        self.where = where
        self.family = family
        self.shapes = dict(shapes)

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """Read a tensor in its stored dtype and shape."""

    def called(self, name: str) -> str:
        """Return the stored name of a parameter."""
        return name

    def check(self, shape: Shape) -> None:
        """Check names and shapes against a model's shape.

        Raises:
            DataError: a tensor is missing, has another shape or does not belong to our model; names the first one.
        """
        expected = {name: list(size) for name, size in shape.parameter_shapes().items()}
        for name, size in expected.items():
            if name not in self.shapes:
                first = f"; the first of {len(self.shapes)} is {self.called(min(self.shapes))}" if self.shapes else ""
                raise DataError(
                    f"{self.where}: no tensor {self.called(name)}, so these are not the weights of a language model of "
                    f"this shape (a {self.family.huggingface.architecture}){first}"
                )
            if self.shapes[name] != size:
                raise DataError(f"{self.where}: {self.called(name)}: expected shape {size}, got {self.shapes[name]}")
        unknown = sorted(self.shapes.keys() - expected.keys() - self.family.tied.keys())
        if unknown:
            biases = [name for name in expected if name.endswith("bias")]
            known = f"its only biases: {', '.join(biases)}" if biases else "it has no biases"
            reason = f"; {known}" if unknown[0].endswith("bias") else ""
            raise DataError(f"{self.where}: our model has no part for the tensor {self.called(unknown[0])}{reason}")
        for name, parameter in self.family.tied.items():
            if name in self.shapes and not torch.equal(self._finite(name), self[parameter]):
                raise DataError(
                    f"{self.where}: {self.called(name)} differs from {self.called(parameter)}, to which ours is tied"
                )

    def _finite(self, name: str) -> Tensor:
        tensor = self.read(name)
        if not tensor.is_floating_point():
            raise DataError(f"{self.where}: {self.called(name)}: expected floating-point numbers, got {tensor.dtype}")
        tensor = tensor.to(torch.float32)
        wrong = tensor.numel() - int(tensor.isfinite().sum())
        if wrong:
            raise DataError(
                f"{self.where}: {self.called(name)} has {wrong:,} values of {tensor.numel():,} that are infinite or "
                "not a number; the training had diverged; use an earlier checkpoint"
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


class WithoutTied(Weights):
    """Weights without a tensor that this model ties to a parameter; for families in which only some models tie.

    Raises:
        DataError: the tensor is stored and differs from the parameter.
    """

    def __init__(self, stored: Weights, tensor: str, parameter: str):
        others = {name: size for name, size in stored.shapes.items() if name != tensor}
        super().__init__(stored.where, stored.family, others)
        self.stored = stored
        if tensor in stored and parameter in stored and not torch.equal(stored[tensor], stored[parameter]):
            raise DataError(f"{self.where}: {tensor} differs from {parameter}, to which ours is tied")

    def read(self, name: str) -> Tensor:
        return self.stored.read(name)

    def called(self, name: str) -> str:
        return self.stored.called(name)


@dataclass(frozen=True)
class ForeignCheckpoint:
    """A checkpoint file of another program, opened."""

    shape: Shape
    knobs: dict[str, float]
    weights: Weights
    longest_row: int | None  # the longest row of its training, in tokens; None if unknown
    tokenizer: dict[str, str]  # the content of the tokenizer's files, by name; empty if there are none
    facts: dict[str, int]  # the updates and tokens that it was trained for, if known
    described: str  # the kind of checkpoint
    no_tokenizer: str = "has no tokenizer"  # why there is none
    not_taken: str | None = None  # what the file has in addition to the model, such as optimizer states


def load_network(shape: Shape, knobs: Mapping[str, float], weights: Weights) -> nn.Module:
    """Build a network from weights without copying them: float32, on the CPU, in evaluation mode.

    Args:
        knobs: the knobs that belong to trained weights; every other knob gets its lowest value.

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
