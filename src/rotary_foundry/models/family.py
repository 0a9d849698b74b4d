"""The interface of a model family, and the table of families.

A family is one folder, `models/<name>/`. Outside it, only the table below names it. To add a family, write the folder,
add a line to FAMILIES, and add a YAML to `yamls/models/`.

The interface has two halves, because a recipe is read and planned before torch is imported. The shape and the knobs are
plain Python; `network`, `initial_value` and the rest import torch when they are called.
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
    from rotary_foundry.models.weights import ForeignCheckpoint, Weights

FAMILIES = {
    "modernbert": "rotary_foundry.models.modernbert:ModernBertFamily",
    "roformer_v2": "rotary_foundry.models.roformer_v2:RoFormerV2Family",
    "llama": "rotary_foundry.models.llama:LlamaFamily",
}

FORWARD_AND_BACK = 3  # cost of a training step in forward passes: a backward pass costs two
FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class Shape(ABC):
    """The values that distinguish two models of a family. Its fields are keys under `model:` in a recipe.

    Attention backends, dropout and compilation are settings of a run and do not belong to the shape.
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
        """Yield (field, complaint) for every invalid value, including wrong types."""

    def knob_problems(self, knobs: Mapping[str, Any], row_length: int = 0) -> Iterator[Problem]:
        """Yield (knob, complaint) for each value of a stage that does not fit this shape or this row length."""
        yield from ()

    @abstractmethod
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every trained parameter by its name, in the order of the network's state dict."""

    @abstractmethod
    def matmul_flops(self, tokens: float, predicted: float) -> float:
        """Return the operations of the matrix products in training, without those of attention.

        Args:
            tokens: number of tokens that pass through the layers.
            predicted: number of these tokens whose logits are computed.
        """

    @abstractmethod
    def attention_flops(self, lengths: Iterable[int]) -> float:
        """Return the operations of attention in training, over documents of these lengths in tokens."""

    def activation_bytes(self, tokens: int, itemsize: int, recomputed: bool, compiled: bool) -> float | None:
        """Return the bytes of activations that a forward pass keeps for the backward pass; None: not counted.

        Args:
            tokens: number of tokens in a microbatch.
            itemsize: bytes per number in matrix products: 2 under autocast in bf16, else 4.
            recomputed: whether only a layer's input is kept (activation checkpointing); one whole layer is added.
            compiled: whether each layer is compiled into one graph that includes its attention.
        """
        return None

    @property
    def rotary_width(self) -> int:
        """The most numbers per token that one rotary kernel rotates (queries and keys together); 0: not counted."""
        return 0

    def megatron_flops(self, tokens: int, row_length: int) -> float:
        """Count the operations of training on tokens by Megatron-LM's formula (arXiv 2104.04473, section 5.1).

        The formula counts 12 · hidden_size² parameters for a layer of any kind, and the whole attention matrix. It is
        used here without the vocabulary and without recomputation.
        """
        raise ConfigurationError("--flops: megatron needs layers of one width, which this family does not have")

    @abstractmethod
    def describe(self, knobs: Mapping[str, float]) -> str:
        """Return a sentence for a model card: kind, size, attention and positions."""

    def remarks(self, knobs: Mapping[str, float], row_length: int) -> Iterator[str]:
        """Yield a warning for each value that is allowed but probably wrong for rows of `row_length` tokens."""
        yield from ()

    def growth_problems(self, source: Self) -> Iterator[Problem]:
        """Yield (field, complaint) for each field of this family that a model grown from `source` cannot have."""
        yield from ()

    def check_growth(self, source: "Shape") -> None:
        """Check that a model of this shape can be grown from one of the shape `source`.

        Raises:
            ConfigurationError: this shape is smaller in a dimension, or of another family, vocabulary or head size.
        """
        if type(source) is not type(self):
            raise ConfigurationError("model.family: the model to grow from is of another family; set the same one")
        for key in self.sizes:
            ours, theirs = getattr(self, key), getattr(source, key)
            if ours < theirs:
                raise ConfigurationError(
                    f"model.{key}: expected at least {theirs}, that of the model to grow from, got {ours}"
                )
        if self.vocab_size != source.vocab_size:
            raise ConfigurationError(
                f"model.vocab_size: expected {source.vocab_size}, that of the model to grow from, got "
                f"{self.vocab_size}; both models need the same tokenizer and vocab_size"
            )
        if self.head_dim != source.head_dim:
            raise ConfigurationError(
                f"model.num_attention_heads: {self.num_attention_heads} heads have size {self.head_dim}, expected "
                f"{source.head_dim}, that of the model to grow from; set hidden_size / {source.head_dim} heads"
            )
        for key, complaint in self.growth_problems(source):
            raise ConfigurationError(f"model.{key}: {complaint}")

    @abstractmethod
    def rehearsal(self) -> Self:
        """Return a small shape with every part of this one, for a rehearsal."""

    @abstractmethod
    def smaller(self) -> Self:
        """Return a smaller shape from which this one can be grown."""

    def check(self) -> None:
        """Raise a ConfigurationError that names the key of the first invalid value, if there is one."""
        for key, complaint in self.problems():
            raise ConfigurationError(f"model.{key}: {complaint}")

    @property
    def parameters(self) -> int:
        """The number of trained parameters; tied ones count once."""
        return sum(prod(shape) for shape in self.parameter_shapes().values())

    def type_problems(self) -> Iterator[Problem]:
        """Yield (field, complaint) for values of a wrong type; for a config.json, this is the only check of types."""
        for field in fields(self):
            value, expected = getattr(self, field.name), int | float if field.type is float else field.type
            if not isinstance(value, expected) or (isinstance(value, bool) and field.type is not bool):
                yield field.name, f"{value!r} is not of type {formatannotation(field.type)}"


class Network(Protocol):
    """The interface of a module over a flat batch of documents, for training, evaluation and export."""

    shape: Shape

    knobs: Mapping[str, float]
    """The value of every knob of the family."""

    @property
    def blocks(self) -> "Iterable[nn.Module]":
        """The layers that FSDP2 shards, `torch.compile` compiles and activation checkpointing recomputes."""

    def set_knob(self, name: str, value: float) -> None:
        """Set a knob of the family; the next forward pass uses it."""

    def hidden_states(self, input_ids: "Tensor", cu_seqlens: "Tensor", max_seqlen: int | None = None) -> "Tensor":
        """Return the last hidden states [tokens, hidden] of ids [tokens] in documents bounded by cu_seqlens."""

    def unembed(self, hidden: "Tensor") -> "Tensor":
        """Return logits [tokens, vocabulary] for hidden states [tokens, hidden]."""


class HuggingFaceForm(ABC):
    """Converts a family's models from and to transformers. Reading a config imports neither torch nor transformers."""

    model_type: str
    architecture: str
    """transformers' class of the pretrained model."""
    task: str
    """Hugging Face's name for the task of the pretrained model (`pipeline_tag`)."""
    classifiers: Mapping[str, str]
    """transformers' classes with a new classifier, by what they classify: sequence, token."""
    special_tokens: tuple[str, ...] = ("pad_token", "cls_token", "sep_token", "mask_token")
    """The roles that the tokenizer of an export must have."""
    linear_classifier: Mapping[str, Any] = {}
    """Settings of config.json with which the sequence class computes the result of `with_linear_classifier`."""
    code: tuple[Path, ...] = ()
    """Python files that an export carries, if transformers does not have the model."""
    auto_map: Mapping[str, str] = {}
    """The class in the first of these files for each of transformers' Auto classes, AutoConfig first."""

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Return whether the content of a config.json is of this family."""
        return config.get("model_type") == self.model_type

    @abstractmethod
    def read_config(self, directory: Path) -> tuple[Shape, dict[str, float]]:
        """Return the shape and the knobs of the model in a directory with a config.json.

        Raises:
            DataError: our network does not support a setting; names the first.
        """

    @abstractmethod
    def write_config(
        self, shape: Shape, knobs: Mapping[str, float], tokenizer: "PreTrainedTokenizerBase", longest_row: int
    ) -> "PretrainedConfig":
        """Return transformers' config of the same model."""

    def settings_of_4(self, shape: Shape, knobs: Mapping[str, float]) -> dict[str, Any]:
        """Return keys of config.json that transformers 4 reads and the config class of 5 does not write."""
        return {}

    def stored_tensors(
        self, state: "Mapping[str, Tensor]", shape: Shape, knobs: Mapping[str, float]
    ) -> "dict[str, Tensor]":
        """Return the parameters of a network with these knobs in the form of transformers' model."""
        return dict(state)

    def our_weights(self, stored: "Weights", shape: Shape) -> "Weights":
        """Return a directory's tensors as parameters of the network; the inverse of `stored_tensors`."""
        return stored

    @abstractmethod
    def with_classifier(self, state: "Mapping[str, Tensor]", labels: int, seed: int) -> "dict[str, Tensor]":
        """Return the parameters with a new classifier for `labels` labels instead of the pretraining output."""

    def with_linear_classifier(
        self, state: "Mapping[str, Tensor]", weight: "Tensor", bias: "Tensor"
    ) -> "dict[str, Tensor]":
        """Return the parameters with a trained linear map of the first token's last hidden state as the classifier.

        Args:
            state: the network's parameters.
            weight: [labels, hidden].
            bias: [labels].
        """
        return {name: state[name] for name in state} | {"classifier.weight": weight, "classifier.bias": bias}


class Family(ABC):
    """One architecture: its shape, its network and its form on disk."""

    name: ClassVar[str]
    title: ClassVar[str]
    """The name as its authors write it."""
    causal: ClassVar[bool]
    """True if a token sees only itself and the tokens before it."""
    Shape: ClassVar[type[Shape]]
    knobs: ClassVar[Mapping[str, Knob]]
    tied: ClassVar[Mapping[str, str]] = {}
    """Tied tensors that other programs write separately, with identical values: name → the parameter's name."""
    huggingface: ClassVar[HuggingFaceForm]

    @abstractmethod
    def network(self, shape: Shape, knobs: Mapping[str, float], attn_implementation: str = "auto") -> "nn.Module":
        """Return a Network whose parameters are not initialised."""

    @abstractmethod
    def initial_value(self, name: str, shape: Shape, seed: int) -> "Tensor":
        """Return the initial value of a whole parameter, in float32 on the CPU; the same for the same arguments.

        Args:
            name: the parameter's name in the network's state dict.
            shape: the model's shape.
            seed: the run's seed.
        """

    @property
    @abstractmethod
    def growth(self) -> "Growth":
        """How a larger model is filled from a smaller one."""

    def open_file(self, path: Path, recipe: Path | None) -> "ForeignCheckpoint | None":
        """Open a file of another program with a model of the family; None if it is not of a kind that the family reads.

        Args:
            path: the file.
            recipe: the training YAML, if the user gave it.

        Raises:
            FoundryError: the file is damaged, or our network does not support its model.
        """
        return None

    def knobs_of_weights(self) -> list[str]:
        """Return the names of the knobs that belong to trained weights."""
        return [name for name, knob in self.knobs.items() if knob.of_weights]


def find_family(name: Any) -> Family:
    """Return the family with a name.

    Raises:
        ConfigurationError: there is no such family; names the nearest one.
    """
    if not isinstance(name, str) or name not in FAMILIES:
        raise ConfigurationError(f"'{name}' is not a model family; {nearest(name, FAMILIES)}")
    return _load(FAMILIES[name])


def families() -> Iterator[Family]:
    """Yield every family of the table."""
    return map(find_family, FAMILIES)


@cache
def _load(place: str) -> Family:
    module, name = place.split(":")
    return getattr(import_module(module), name)()
