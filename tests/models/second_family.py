"""A second family and a second objective, which exist in the tests only: a tiny causal decoder, and the next token.

It differs from the first one where a family may: parameter names, fields of the shape, RMSNorm, an output of its own
that is not tied, a knob that no other has, and no local layers.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from rotary_foundry.models import family
from rotary_foundry.models.family import FORWARD_AND_BACK, Family, HuggingFaceForm, Knob
from rotary_foundry.models.growing import Dimension, Growth
from rotary_foundry.models.layers.autocast import compute_dtype
from rotary_foundry.models.layers.cross_entropy import linear_cross_entropy
from rotary_foundry.models.layers.documents import Documents, check_documents, check_labels
from rotary_foundry.models.layers.rotary import rotary_tables, rotate
from rotary_foundry.objectives.objective import IGNORE_INDEX, Metric, Objective
from rotary_foundry.utils.errors import DataError

FAMILIES = {"tiny": "tests.models.second_family:TinyFamily"}
OBJECTIVES = {"next_token": "tests.models.second_family:NextToken"}
KNOBS = {
    "rope_theta": Knob("theta of all layers", of_weights=True),
    "residual_scale": Knob("factor of what a layer adds", high=2.0),
}


@dataclass(frozen=True)
class Shape(family.Shape):
    vocab_size: int
    width: int
    heads: int
    layers: int

    sizes: ClassVar = ("width", "heads", "layers")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    def problems(self) -> Iterator[family.Problem]:
        yield from self.type_problems()
        if self.width % (2 * self.heads):
            yield "heads", f"{self.heads} heads of an even size do not divide a width of {self.width}"

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        square, shapes = (self.width, self.width), {"embed.weight": (self.vocab_size, self.width)}
        for layer in range(self.layers):
            shapes |= {
                f"stack.{layer}.norm.weight": (self.width,),
                f"stack.{layer}.qkv.weight": (3 * self.width, self.width),
            }
            shapes[f"stack.{layer}.out.weight"] = square
        return shapes | {"output.weight": (self.vocab_size, self.width), "output.bias": (self.vocab_size,)}

    def matmul_flops(self, tokens: float, predicted: float) -> float:
        of_layers = tokens * self.layers * 4 * self.width**2
        return FORWARD_AND_BACK * 2 * (of_layers + predicted * self.width * self.vocab_size)

    def attention_flops(self, lengths: Iterable[int]) -> float:
        pairs = self.layers * sum(length * (length + 1) // 2 for length in lengths)
        return FORWARD_AND_BACK * 2 * 2 * self.width * pairs

    def describe(self, knobs: Mapping[str, float]) -> str:
        return f"A tiny decoder: {self.parameters:,} parameters, rotary theta {knobs['rope_theta']:,.0f}."

    def rehearsal(self) -> "Shape":
        return replace(self, width=16, heads=2, layers=2)

    def smaller(self) -> "Shape":
        return replace(self, layers=self.layers - 1)


class Layer(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.heads, self.scale = shape.heads, 1.0
        self.norm = nn.RMSNorm(shape.width)
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, hidden: Tensor, rotary: tuple[Tensor, Tensor], seen: Tensor) -> Tensor:
        # q, k, v: [tokens, heads, head_dim]; seen: [tokens, tokens], in one's own document and not after oneself
        q, k, v = self.qkv(self.norm(hidden)).unflatten(1, (3 * self.heads, -1)).chunk(3, dim=1)
        q, k, v = (x.transpose(0, 1) for x in (rotate(q, *rotary), rotate(k, *rotary), v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return hidden + self.scale * self.out(mixed.transpose(0, 1).flatten(1))


class Decoder(nn.Module):
    def __init__(self, shape: Shape, knobs: Mapping[str, float]):
        super().__init__()
        self.shape, self.knobs = shape, {}
        self.embed = nn.Embedding(shape.vocab_size, shape.width)
        self.stack = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.output = nn.Linear(shape.width, shape.vocab_size)
        for name in KNOBS:
            self.set_knob(name, knobs[name])

    @property
    def blocks(self) -> nn.ModuleList:
        return self.stack

    def set_knob(self, name: str, value: float) -> None:
        self.knobs[name] = value
        for layer in self.stack if name == "residual_scale" else ():
            layer.scale = value

    def hidden_states(self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int | None = None) -> Tensor:
        check_documents(input_ids, cu_seqlens, max_seqlen, self.shape.vocab_size)
        documents = Documents(cu_seqlens, max_seqlen or int(cu_seqlens.diff().max()), tokens=len(input_ids))
        hidden = self.embed(input_ids)
        theta = self.knobs["rope_theta"]
        rotary = rotary_tables(documents, self.shape.head_dim, theta, compute_dtype(hidden))
        lengths = cu_seqlens.diff().long()
        document = torch.arange(len(lengths), device=hidden.device).repeat_interleave(lengths)
        seen = (document[:, None] == document).tril()
        for layer in self.stack:
            hidden = layer(hidden, rotary, seen)
        return hidden

    def unembed(self, hidden: Tensor) -> Tensor:
        return self.output(hidden)

    def forward(self, input_ids, cu_seqlens, max_seqlen=None, labels=None, predicted=None):
        hidden = self.hidden_states(input_ids, cu_seqlens, max_seqlen)
        if labels is None:
            return self.unembed(hidden)
        check_labels(labels, input_ids, self.shape.vocab_size)
        if predicted is None:
            predicted = (labels != IGNORE_INDEX).nonzero(as_tuple=True)[0]
        return linear_cross_entropy(hidden[predicted], self.output.weight, self.output.bias, labels[predicted])


class NoHuggingFaceForm(HuggingFaceForm):
    model_type, architecture, task = "tiny", "TinyForCausalLM", "text-generation"
    classifiers: ClassVar = {}

    def read_config(self, directory):
        raise DataError(f"{directory}: a tiny decoder has no Hugging Face form")

    def write_config(self, shape, knobs, tokenizer, longest_row):
        raise DataError("a tiny decoder has no Hugging Face form; it cannot be exported")

    def with_classifier(self, state, labels, seed):
        raise DataError("a tiny decoder has no classifier")


class TinyFamily(Family):
    name, title, causal = "tiny", "Tiny decoder", True
    Shape = Shape
    knobs = KNOBS
    huggingface = NoHuggingFaceForm()

    def network(self, shape: Shape, knobs: Mapping[str, float], attn_implementation: str = "auto") -> Decoder:
        return Decoder(shape, knobs)

    def initial_value(self, name: str, shape: Shape, seed: int) -> Tensor:
        size = shape.parameter_shapes()[name]
        if len(size) == 1:
            return torch.full(size, float(name.endswith("norm.weight")))
        generator = torch.Generator().manual_seed(seed + list(shape.parameter_shapes()).index(name))
        return 0.02 * torch.randn(size, generator=generator)

    @property
    def growth(self) -> Growth:
        return Growth({"weight": (Dimension("width"), Dimension("width"))}, lambda name, source, target: name)


@dataclass
class NextToken(Objective):
    """Predict the token after each; a document's last has none."""

    name: ClassVar[str] = "next_token"
    causal: ClassVar[bool] = True
    metrics: ClassVar = (Metric("loss", "cross_entropy", "Loss", "nats per token"),)
    task: ClassVar[str] = "text-generation"

    def problems(self):
        yield from ()

    def prepare(self, row: Mapping[str, Any], tokenizer, generator, knobs) -> tuple[np.ndarray, np.ndarray]:
        tokens = row["tokens"].astype(np.int64)
        labels = np.append(tokens[1:], IGNORE_INDEX)
        labels[np.cumsum(row["lengths"]) - 1] = IGNORE_INDEX
        return tokens, labels

    def evaluation_knobs(self):
        return {}

    def describe(self, knobs):
        return "Next token."

    def describe_evaluation(self):
        return "by the next token"
