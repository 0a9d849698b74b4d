"""What a model family provides, and the table of families.

A family is one folder, `models/<name>/`, and nothing outside it names it but the table below. To add one, write the
folder, add a line to FAMILIES, and give it a YAML in `yamls/models/`.

Two halves, because a recipe is read and planned before torch is imported: the shape and the knobs are plain Python;
`network`, `initial_value` and the rest import torch when they are called.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from inspect import formatannotation
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from rotary_foundry.utils.errors import ConfigurationError
from rotary_foundry.utils.knob import Knob, Problem
from rotary_foundry.utils.wording import nearest

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from rotary_foundry.models.growing import Growth
    from rotary_foundry.models.weights import ForeignCheckpoint

FAMILIES = {"modernbert": "rotary_foundry.models.modernbert:ModernBertFamily"}

FORWARD_AND_BACK = 3  # training's operations as a multiple of a forward pass's: a backward pass is two of them


@dataclass(frozen=True)
class Shape(ABC):
    """What makes two models of a family different models: its fields are keys under `model:` in a recipe.

    Attention backends, dropout and compilation are settings of a run and are not here.
    """

    vocab_size: int

    sizes: ClassVar[tuple[str, ...]]
    """Fields that may grow from a smaller model to a larger one (`init_from`)."""

    @property
    @abstractmethod
    def head_dim(self) -> int:
        """Dimensions of an attention head."""

    @abstractmethod
    def problems(self) -> Iterator[Problem]:
        """Yield (field, complaint) for every value that no model can have, types included."""

    @abstractmethod
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every trained parameter by its name in the network's state dict, in its order."""

    @abstractmethod
    def matmul_flops(self, tokens: float, predicted: float) -> float:
        """Return the operations of training's matrix products, without attention's.

        Args:
            tokens: that pass through the layers.
            predicted: those of them whose logits are computed.
        """

    @abstractmethod
    def attention_flops(self, lengths: Iterable[int]) -> float:
        """Return the operations of training's attention over documents of these lengths in tokens."""

    @abstractmethod
    def describe(self, knobs: Mapping[str, float]) -> str:
        """Return a sentence for a model card: kind, size, attention and positions."""

    @abstractmethod
    def rehearsal(self) -> Self:
        """Return a small shape with every part of this one, for a rehearsal of minutes."""

    @abstractmethod
    def smaller(self) -> Self:
        """Return a shape that this one can be grown from."""

    @property
    def parameters(self) -> int:
        """The number of trained parameters; tied ones count once."""
        return sum(prod(shape) for shape in self.parameter_shapes().values())

    def type_problems(self) -> Iterator[Problem]:
        """Yield (field, complaint) for values of a wrong type: nothing else checks those of a config.json."""
        for field in fields(self):
            value, expected = getattr(self, field.name), int | float if field.type is float else field.type
            if not isinstance(value, expected) or isinstance(value, bool):
                yield field.name, f"{value!r} is not of type {formatannotation(field.type)}"


class Network(Protocol):
    """A module over a flat batch of documents, as training, evaluation and export use it."""

    shape: Shape

    knobs: Mapping[str, float]
    """The value of every knob of the family."""

    @property
    def blocks(self) -> "Iterable[nn.Module]":
        """The layers that FSDP2 shards, `torch.compile` compiles and activation checkpointing recomputes."""

    def set_knob(self, name: str, value: float) -> None:
        """Set a knob of the family; it holds from the next forward pass on."""

    def hidden_states(self, input_ids: "Tensor", cu_seqlens: "Tensor", max_seqlen: int | None = None) -> "Tensor":
        """Return the last hidden states [tokens, hidden] of ids [tokens] in documents bounded by cu_seqlens."""

    def unembed(self, hidden: "Tensor") -> "Tensor":
        """Return logits [tokens, vocabulary] for hidden states [tokens, hidden]."""


class HuggingFaceForm(ABC):
    """How transformers writes a family's models. Reading a config imports neither torch nor transformers."""

    model_type: str
    architecture: str
    """transformers' class of the pretrained model."""
    task: str
    """Hugging Face's name of what the pretrained model does (`pipeline_tag`)."""
    classifiers: Mapping[str, str]
    """transformers' classes with a new classifier, by what they classify: sequence, token."""

    @abstractmethod
    def read_config(self, directory: Path) -> tuple[Shape, dict[str, float]]:
        """Return the shape and the knobs of the model in a directory with a config.json.

        Raises:
            DataError: naming the first setting that our network would compute otherwise.
        """

    @abstractmethod
    def write_config(
        self, shape: Shape, knobs: Mapping[str, float], tokenizer: "PreTrainedTokenizerBase", longest_row: int
    ) -> "PretrainedConfig":
        """Return transformers' config of the same model."""

    @abstractmethod
    def with_classifier(self, state: "Mapping[str, Tensor]", labels: int, seed: int) -> "dict[str, Tensor]":
        """Return the parameters with a new classifier of so many labels in place of the pretraining output."""


class Family(ABC):
    """One architecture: its shape, its network and its form on disk."""

    name: ClassVar[str]
    title: ClassVar[str]
    """As its authors write it."""
    causal: ClassVar[bool]
    """Whether a token sees only itself and those before it."""
    Shape: ClassVar[type[Shape]]
    knobs: ClassVar[Mapping[str, Knob]]
    tied: ClassVar[Mapping[str, str]] = {}
    """Tensors that other programs write although they are other parameters, to the bit: name → the parameter's name."""
    huggingface: ClassVar[HuggingFaceForm]

    @abstractmethod
    def network(self, shape: Shape, knobs: Mapping[str, float], attn_implementation: str = "auto") -> "nn.Module":
        """Return a Network whose parameters are not initialised."""

    @abstractmethod
    def initial_value(self, name: str, shape: Shape, seed: int) -> "Tensor":
        """Return the first value of a parameter, whole, in float32 on the CPU: the same for the same arguments."""

    @property
    @abstractmethod
    def growth(self) -> "Growth":
        """How a larger model is filled from a smaller one."""

    def open_file(self, path: Path, recipe: Path | None) -> "ForeignCheckpoint | None":
        """Open a checkpoint file of the family's original training code; None if the family reads no files.

        Args:
            path: the file.
            recipe: the YAML that it was trained by, if that was given.

        Raises:
            FoundryError: it is no such file, or holds what our network has no part for.
        """
        return None

    def knobs_of_weights(self) -> list[str]:
        """Return the names of the knobs that trained weights are meant for."""
        return [name for name, knob in self.knobs.items() if knob.of_weights]


def find_family(name: Any) -> Family:
    """Return the family of a name.

    Raises:
        ConfigurationError: there is none; with the nearest one that there is.
    """
    if name not in FAMILIES:
        raise ConfigurationError(f"'{name}' is not a model family; {nearest(name, FAMILIES)}")
    return _load(FAMILIES[name])


def families() -> Iterator[Family]:
    """Yield every family of the table."""
    return map(find_family, FAMILIES)


@cache
def _load(place: str) -> Family:
    module, name = place.split(":")
    return getattr(import_module(module), name)()
