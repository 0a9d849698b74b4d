"""The tensors of a RoFormerV2 on disk: they have JunnYu's names (RoFormer_pytorch), also in our exports.

- Our network has one matrix for queries, keys and values; JunnYu's has three.
- A head's rotary pairs are dimensions 2i and 2i + 1 in JunnYu's model, i and i + head_dim / 2 in ours. Rows of queries
  and keys are reordered, which changes no score.
- Tables of sines, the pooler and buffers are ignored: no masked language model of this family uses them. A checkpoint
  of RoFormer, the first version, has biases and is refused.
- A `residual_scale` below 1 is folded into the two output projections of each layer, because other programs lack it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from rotary_foundry.models.roformer_v2.shape import Shape
from rotary_foundry.models.weights import Weights, unwrapped
from rotary_foundry.utils.errors import DataError

QKV = ("query", "key", "value")
PARTS = {  # of a layer: ours, theirs
    "attn.Wqkv.weight": tuple(f"attention.self.{part}.weight" for part in QKV),
    "attn.Wo.weight": ("attention.output.dense.weight",),
    "mlp.Wi.weight": ("intermediate.dense.weight",),
    "mlp.Wo.weight": ("output.dense.weight",),
}
IGNORED = re.compile(r"roformer\.(encoder\.embed_positions\.|pooler\.|embeddings\.position_ids)")
FIRST_VERSION = re.compile(r"\.bias$|LayerNorm|\.(gamma|beta)$")
DECODER = "cls.predictions.decoder.weight"  # theirs, tied


def their_names(ours: str) -> tuple[str, ...]:
    """Return the names on disk of a parameter: one, or three if it joins queries, keys and values."""
    if ours.startswith("embeddings."):
        return (f"roformer.{ours}",)
    if ours.startswith("layers."):
        _, layer, part = ours.split(".", 2)
        return tuple(f"roformer.encoder.layer.{layer}.{theirs}" for theirs in PARTS[part])
    return (ours,)


def plain_names(stored: Iterable[str], where: Path) -> dict[str, str]:
    """Return the stored name for each of JunnYu's names, undoing changes by other programs or a bare encoder."""
    return {
        f"roformer.{name}" if name.startswith(("embeddings.", "encoder.", "pooler.")) else name: theirs
        for name, theirs in unwrapped(stored, (), where).items()
    }


def to_disk(state: Mapping[str, Tensor], shape: Shape, residual_scale: float) -> dict[str, Tensor]:
    """Return a network's parameters by JunnYu's names; other names, such as a classifier's, are kept.

    Args:
        residual_scale: the value in training; 1 leaves the output projections unchanged.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(".Wo.weight") and residual_scale != 1:
            tensor = tensor * residual_scale
        names = their_names(name)
        for theirs, part in zip(names, tensor.chunk(len(names)), strict=True):
            tensors[theirs] = _reordered(part, shape, pairs_of_halves(shape)) if _is_rotated(theirs) else part
    return tensors


def pairs_of_halves(shape: Shape) -> Tensor:
    """Return, for every row of a head ordered in pairs, its row in the order of halves. [head_dim] int64"""
    return torch.arange(shape.head_dim).view(2, -1).T.flatten()


def _is_rotated(theirs: str) -> bool:
    return theirs.endswith(("attention.self.query.weight", "attention.self.key.weight"))


def _reordered(weight: Tensor, shape: Shape, order: Tensor) -> Tensor:
    """Reorder the rows of each head. weight: [hidden, hidden]"""
    heads = weight.view(shape.num_attention_heads, shape.head_dim, -1)
    return heads.index_select(1, order.to(weight.device)).flatten(0, 1)


class WeightsByTheirNames(Weights):
    """A RoFormerV2's parameters, read from tensors that are stored by JunnYu's names.

    Args:
        stored: the tensors; matrices are [out, in].
        shape: the model's shape.
    """

    def __init__(self, stored: Weights, shape: Shape):
        self.stored, self.shape = stored, shape
        self.names = plain_names(stored.shapes, stored.where)  # JunnYu's → as stored
        shapes = {name: list(size) for name, size in shape.parameter_shapes().items()}
        if DECODER in self.names:
            shapes["decoder.weight"] = stored.shapes[self.names[DECODER]]
        super().__init__(stored.where, stored.family, shapes)

    def called(self, name: str) -> str:
        names = (DECODER,) if name == "decoder.weight" else their_names(name)
        return ", ".join(map(self._called, names))

    def read(self, name: str) -> Tensor:
        if name == "decoder.weight":
            return self.stored.read(self.names[DECODER])
        parts = []
        for theirs in their_names(name):
            part = self.stored.read(self.names[theirs])
            halves = pairs_of_halves(self.shape).argsort()
            parts.append(_reordered(part, self.shape, halves) if _is_rotated(theirs) else part)
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def check(self, shape: Shape) -> None:
        for name in self.names:
            if FIRST_VERSION.search(name) and not IGNORED.match(name):
                raise DataError(
                    f"{self.where}: {self._called(name)}: RoFormerV2 has no biases, and no gains in its norms; this "
                    "is a checkpoint of RoFormer, the first version, or of another model"
                )
        expected = dict(_their_shapes(shape))
        for name, size in expected.items():
            if name not in self.names:
                raise DataError(f"{self.where}: no tensor {self._called(name)}, which a RoFormerV2 of this shape has")
            found = self.stored.shapes[self.names[name]]
            if found != size:
                raise DataError(f"{self.where}: {self._called(name)}: expected shape {size}, got {found}")
        unknown = sorted(name for name in self.names.keys() - expected.keys() - {DECODER} if not IGNORED.match(name))
        if unknown:
            raise DataError(f"{self.where}: a RoFormerV2 of this shape has no tensor {self._called(unknown[0])}")
        super().check(shape)  # the tied output

    def _called(self, theirs: str) -> str:
        return self.stored.called(self.names.get(theirs, theirs))


def _their_shapes(shape: Shape) -> Iterator[tuple[str, list[int]]]:
    for name, (rows, columns) in shape.parameter_shapes().items():
        names = their_names(name)
        yield from ((theirs, [rows // len(names), columns]) for theirs in names)
