"""Read GGUF files of llama.cpp's `llama` architecture: settings, tensors and vocabulary in one file.

- Values are dequantised by the gguf package, to float32. A type that it cannot dequantise is refused.
- A head's rotary pairs are dimensions 2i and 2i + 1 in llama.cpp, but i and i + head_dim / 2 here and in transformers.
  So llama.cpp's converter reorders the rows of queries and keys, and this module restores their order. A quantisation
  block lies within one row, so reordering rows changes no value.
- Only listed keys of the architecture are read. Any other key is refused, because it may change what the model
  computes. Defaults are llama.cpp's.
- Factors of single rotary frequencies, in the tensor `rope_freqs.weight` (Llama 3.1 and later), are refused, because
  our network does not support them.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGUFEndian, GGUFReader, GGUFValueType, ReaderField, ReaderTensor, dequantize
from torch import Tensor

from rotary_foundry.compat.gguf import BoundedReader
from rotary_foundry.models.family import find_family
from rotary_foundry.models.llama.gguf_tokenizer import tokenizer_files
from rotary_foundry.models.llama.shape import EMBEDDING, KNOBS, LINEAR, NONE, OUTPUT, YARN, Shape
from rotary_foundry.models.weights import ForeignCheckpoint, Weights
from rotary_foundry.utils.errors import ConfigurationError, DataError
from rotary_foundry.utils.wording import one_line

SUFFIX, MAGIC = ".gguf", b"GGUF"
ARCHITECTURE = "llama"
KEYS = {  # field of the shape → key
    "vocab_size": "vocab_size",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "norm_eps": "attention.layer_norm_rms_epsilon",
    "original_max_position_embeddings": "rope.scaling.original_context_length",
}
LENGTH, THETA, METHOD, FACTOR = "context_length", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor"
OLD_FACTOR = "rope.scale_linear"
OPTIONAL = ("vocab_size", "num_key_value_heads", "original_max_position_embeddings")
NEEDED = (LENGTH, *(key for field, key in KEYS.items() if field not in OPTIONAL))
HEAD_SIZES = ("rope.dimension_count", "attention.key_length", "attention.value_length")
FIXED = {  # the only supported value of a key
    "expert_count": 0,
    "expert_used_count": 0,
    "attention.causal": True,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_beta_fast": 32.0,
    "rope.scaling.yarn_beta_slow": 1.0,
}
IGNORED = ("rope.scaling.finetuned", "tensor_data_layout")  # they change nothing in llama.cpp either
READ = {*KEYS.values(), LENGTH, THETA, METHOD, FACTOR, OLD_FACTOR, *HEAD_SIZES, *FIXED, *IGNORED}

TENSORS = {  # theirs → ours
    "token_embd.weight": EMBEDDING,
    "output_norm.weight": "model.norm.weight",
    "output.weight": OUTPUT,
}
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
THEIRS = {ours: theirs for theirs, ours in (TENSORS | LAYER_TENSORS).items()}
ROPE_FACTORS = "rope_freqs.weight"


def open_gguf(path: Path, recipe: Path | None) -> ForeignCheckpoint | None:
    """Open a GGUF file; None if the file is of another kind.

    Raises:
        DataError: the file is damaged, or our network does not support its model; names the file and the key.
        ConfigurationError: `recipe` is given.
    """
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC and path.suffix != SUFFIX:
            return None
    if recipe is not None:
        raise ConfigurationError(f"--recipe is for a .pt file; {path} has its settings")
    reader, metadata = _read(path)
    _check_kind(path, reader, metadata)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    prefix = f"{ARCHITECTURE}."
    settings = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    embedding = tensors.get(THEIRS[EMBEDDING])
    if embedding is not None:
        settings.setdefault("vocab_size", int(embedding.shape[-1]))  # older files lack the key
    shape, knobs = _shape(settings, THEIRS[OUTPUT] not in tensors, f"{path}: {prefix}")
    weights = GgufWeights(path, tensors, shape)
    weights.check(shape)
    types = ", ".join(sorted({tensor.tensor_type.name for tensor in reader.tensors}))
    length = settings[LENGTH]
    opened = ForeignCheckpoint(shape, knobs, weights, length, {}, {}, f"a GGUF file with {types}")
    try:
        return replace(opened, tokenizer=tokenizer_files(metadata, length))
    except DataError as error:
        return replace(opened, no_tokenizer=str(error))


def _read(path: Path) -> tuple[GGUFReader, dict[str, Any]]:
    """Return the opened file, and the values by their keys."""
    try:
        reader = BoundedReader(path)
        return reader, {key: _value(field) for key, field in reader.fields.items()}
    except (OSError, ValueError, LookupError, OverflowError) as error:
        raise DataError(
            f"{path}: cannot be read as a GGUF file: {one_line(error)}; it is damaged or of another kind, get it again"
        ) from None


def _value(field: ReaderField) -> Any:
    if field.types == [GGUFValueType.FLOAT32]:
        return float(str(field.parts[-1][0]))  # 1e-05 rather than 9.999999747378752e-06, which is the same float32
    return field.contents()


def _check_kind(path: Path, reader: GGUFReader, metadata: Mapping[str, Any]) -> None:
    if reader.endianess != GGUFEndian.LITTLE:
        raise DataError(
            f"{path}: expected little-endian numbers, found big-endian; convert it with gguf-convert-endian"
        )
    if (found := metadata.get("general.architecture")) != ARCHITECTURE:
        raise DataError(f"{path}: general.architecture: expected '{ARCHITECTURE}', found {found!r}; we read no other")
    if (parts := metadata.get("split.count", 1)) not in (0, 1):
        raise DataError(
            f"{path}: split.count: expected a whole model, found {parts} parts; run llama-gguf-split --merge"
        )
    for tensor in reader.tensors:
        if tensor.name == ROPE_FACTORS:
            raise DataError(
                f"{path}: {ROPE_FACTORS}: expected none, as we have no factors of single rotary frequencies"
            )
        kind = tensor.tensor_type
        try:
            dequantize(np.zeros(GGML_QUANT_SIZES[kind][1], np.uint8), kind)
        except NotImplementedError:
            raise DataError(
                f"{path}: {tensor.name}: expected a type that the gguf package dequantises, found {kind.name}; "
                "convert the file to F16 or Q8_0"
            ) from None


def _shape(settings: Mapping[str, Any], tied: bool, where: str) -> tuple[Shape, dict[str, float]]:
    """Return the shape and the knobs.

    Args:
        settings: the keys of the architecture, without its name.
        where: the file and the name of the architecture, which begin every error.
    """
    for key in NEEDED:
        if key not in settings:
            raise DataError(f"{where}{key}: missing; convert the model again with a newer llama.cpp")
    for key, value in settings.items():
        if key not in READ:
            raise DataError(f"{where}{key}: expected no such key, as our network has no such part, found {value!r}")
        if key in FIXED and value != FIXED[key]:
            raise DataError(f"{where}{key}: expected {FIXED[key]}, as our network has no other, found {value!r}")
    length = settings[LENGTH]
    if type(length) is not int or length < 1:
        raise DataError(f"{where}{LENGTH}: expected a number of tokens, found {length!r}")
    values = {name: settings.get(key) for name, key in KEYS.items()}
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    method, factor = _scaling(settings, where)
    original = settings.get(KEYS["original_max_position_embeddings"], length)
    values["original_max_position_embeddings"] = original if method == YARN else None
    shape = Shape(**values, tie_word_embeddings=tied, rope_scaling=method)
    for name, complaint in shape.problems():
        raise DataError(f"{where}{KEYS.get(name, name)}: {complaint}")
    for key in HEAD_SIZES:
        if settings.get(key, shape.head_dim) != shape.head_dim:
            raise DataError(
                f"{where}{key}: expected {shape.head_dim}, embedding_length / attention.head_count, found "
                f"{settings[key]!r}"
            )
    knobs = {"rope_theta": settings.get(THETA, 10_000.0), "rope_factor": factor}
    for name, key in (("rope_theta", THETA), ("rope_factor", FACTOR)):
        if complaint := KNOBS[name].complaint(knobs[name]):
            raise DataError(f"{where}{key}: {complaint}")
    return shape, {name: float(value) for name, value in knobs.items()}


def _scaling(settings: Mapping[str, Any], where: str) -> tuple[str, float]:
    """Return the method and the factor. As in llama.cpp, a missing method means linear, and a factor of 0 means 1."""
    method, factor = settings.get(METHOD, LINEAR), settings.get(FACTOR, settings.get(OLD_FACTOR, 0)) or 1.0
    if method not in (NONE, LINEAR, YARN):
        raise DataError(f"{where}{METHOD}: expected {NONE}, {LINEAR} or {YARN}, found {method!r}")
    if method == NONE or (method == LINEAR and factor == 1):
        return NONE, 1.0
    return method, factor


class GgufWeights(Weights):
    """The parameters in a GGUF file."""

    def __init__(self, path: Path, tensors: Mapping[str, ReaderTensor], shape: Shape):
        self.tensors = {_our_name(name): tensor for name, tensor in tensors.items()}
        self.heads = {"q_proj": shape.num_attention_heads, "k_proj": shape.num_key_value_heads}
        sizes = {name: [int(size) for size in reversed(tensor.shape)] for name, tensor in self.tensors.items()}
        super().__init__(path, find_family("llama"), sizes)

    def called(self, name: str) -> str:
        if name in self.tensors:
            return self.tensors[name].name
        if found := re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name):
            return f"blk.{found[1]}.{THEIRS[found[2]]}.weight"
        return THEIRS[name]

    def read(self, name: str) -> Tensor:
        tensor = self.tensors[name]
        weight = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type)))
        heads = self.heads.get(name.split(".")[-2])
        return weight if heads is None else halves_of_pairs(weight, heads)


def halves_of_pairs(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of each head from neighbouring rotary pairs to halves. weight: [heads · head_dim, hidden]"""
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _our_name(theirs: str) -> str:
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", theirs)
    if found and found[2] in LAYER_TENSORS:
        return f"model.layers.{found[1]}.{LAYER_TENSORS[found[2]]}.weight"
    return TENSORS.get(theirs, theirs)
