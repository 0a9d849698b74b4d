"""Convert transformers' config.json of a Llama from and to our shape and knobs. Tensors have transformers' names.

- The config is read as plain JSON, because a recipe may take its model's shape from one before torch is imported.
- A setting that our network does not support (a bias, another activation, another head size) is refused by name. Keys
  that older files lack have transformers' defaults: the config of the published Llama 2 has no `rope_theta`. Dropout
  is ignored, because the recipe sets it.
- transformers 5 writes the positions as `rope_parameters`, 4 as `rope_theta` and `rope_scaling`. Both are read and
  written. A file in which they differ is refused, because the two versions would load different models.
- `linear` and `yarn` positions are written by their names. `ntk` is written, and read back, as the larger theta that it
  is equal to. transformers' `dynamic` is refused: its theta depends on the longest text of a batch.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rotary_foundry.models.config_json import CONFIG, read_config
from rotary_foundry.models.family import HuggingFaceForm
from rotary_foundry.models.llama.shape import EMBEDDING, KNOBS, LINEAR, NONE, NTK, OUTPUT, YARN, Shape
from rotary_foundry.utils.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaConfig, PreTrainedTokenizerBase

    from rotary_foundry.models.weights import Weights

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
NEEDED = (*SIZES, "rms_norm_eps")
OURS = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}  # the only values supported here
THETA = 10_000.0  # transformers' default, and that of the published Llama 2
DEFAULT = "default"  # transformers' name for positions that are not scaled
YARN_DEFAULTS = {
    "beta_fast": 32,
    "beta_slow": 1,
    "truncate": True,
    "attention_factor": None,
    "mscale": None,
    "mscale_all_dim": None,
}
KNOWN = {kind: {"rope_type", "type", "rope_theta"} for kind in (DEFAULT, LINEAR, YARN)}
KNOWN[LINEAR] |= {"factor"}
# the authors of YaRN wrote "finetuned", which transformers does not read
KNOWN[YARN] |= {"factor", "original_max_position_embeddings", "finetuned", *YARN_DEFAULTS}
WHERE_5, WHERE_4 = "rope_parameters", "rope_scaling"


class LlamaOnDisk(HuggingFaceForm):
    """Llama as transformers writes it."""

    model_type = "llama"
    architecture = "LlamaForCausalLM"
    task = "text-generation"
    classifiers: ClassVar = {}
    special_tokens = ()

    def read_config(self, directory: Path) -> tuple[Shape, dict[str, float]]:
        return from_huggingface(read_config(directory), directory / CONFIG)

    def write_config(
        self, shape: Shape, knobs: Mapping[str, float], tokenizer: "PreTrainedTokenizerBase", longest_row: int
    ) -> "LlamaConfig":
        return to_huggingface(shape, knobs, tokenizer, longest_row)

    def settings_of_4(self, shape: Shape, knobs: Mapping[str, float]) -> dict[str, Any]:
        theta, scaling = _written_positions(shape, knobs)
        return {"rope_theta": theta, WHERE_4: scaling}

    def our_weights(self, stored: "Weights", shape: Shape) -> "Weights":
        from rotary_foundry.models.weights import WithoutTied

        return WithoutTied(stored, OUTPUT, EMBEDDING) if shape.tie_word_embeddings else stored

    def with_classifier(self, state: "Mapping[str, Tensor]", labels: int, seed: int) -> "dict[str, Tensor]":
        raise DataError("a Llama with a classifier is not supported; export it without labels")


def from_huggingface(written: Mapping[str, Any], where: Path) -> tuple[Shape, dict[str, float]]:
    """Return the shape and the knobs that a config.json describes.

    Args:
        written: the content of the file.
        where: the file, for errors.

    Raises:
        DataError: a setting is missing, invalid or not supported by our network; names the first.
    """
    for key, ours in {**OURS, "partial_rotary_factor": 1.0}.items():
        if written.get(key, ours) != ours:
            raise DataError(
                f"{where}: {key}: expected {json.dumps(ours)}, as our network has no other, got "
                f"{json.dumps(written[key])}"
            )
    for key in NEEDED:
        if key not in written:
            raise DataError(f"{where}: {key} is missing; transformers writes it")
    method, factor, original, theta = _positions(written, where)
    of_keys = written.get("num_key_value_heads")
    shape = Shape(
        **{name: written[name] for name in SIZES},
        num_key_value_heads=written["num_attention_heads"] if of_keys is None else of_keys,
        tie_word_embeddings=written.get("tie_word_embeddings", False),
        norm_eps=written["rms_norm_eps"],
        rope_scaling=method,
        original_max_position_embeddings=original,
    )
    for key, complaint in shape.problems():
        raise DataError(f"{where}: {'rms_norm_eps' if key == 'norm_eps' else key}: {complaint}")
    if written.get("head_dim") not in (None, shape.head_dim):
        raise DataError(
            f"{where}: head_dim: expected {shape.head_dim}, hidden_size / num_attention_heads, got "
            f"{written['head_dim']}"
        )
    return shape, {"rope_theta": theta, "rope_factor": factor}


def to_huggingface(
    shape: Shape, knobs: Mapping[str, float], tokenizer: "PreTrainedTokenizerBase", longest_row: int
) -> "LlamaConfig":
    """Return transformers' configuration of the same model.

    A document's first and last tokens are those of our rows: [CLS] and [SEP], or else the tokenizer's bos and eos.

    Raises:
        DataError: the tokenizer has neither.
    """
    from transformers import LlamaConfig

    ids = {}
    for role, other in (("bos", "cls"), ("eos", "sep")):
        found = getattr(tokenizer, f"{other}_token_id"), getattr(tokenizer, f"{role}_token_id")
        ids[f"{role}_token_id"] = next((id for id in found if id is not None), None)
        if ids[f"{role}_token_id"] is None:
            raise DataError(f"{tokenizer.name_or_path}: the tokenizer has no {role}_token and no {other}_token")
    theta, scaling = _written_positions(shape, knobs)
    if shape.rope_scaling == YARN:  # some versions before 5 take the factor from this quotient
        longest_row = round(scaling["factor"] * shape.original_max_position_embeddings)
    return LlamaConfig(
        **{name: getattr(shape, name) for name in SIZES},
        **OURS,
        **ids,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=float(shape.norm_eps),  # JSON or GGUF may have 1 for 1.0
        rope_parameters={"rope_theta": theta, **(scaling or {"rope_type": DEFAULT})},
        max_position_embeddings=longest_row,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=shape.tie_word_embeddings,
        architectures=[LlamaOnDisk.architecture],
        dtype="float32",
    )


def _written_positions(shape: Shape, knobs: Mapping[str, float]) -> tuple[float, dict[str, Any] | None]:
    """Return the theta, and the scaling as transformers 4 has it."""
    theta = shape.plain_theta(knobs)
    if shape.rope_scaling in (NONE, NTK):
        return theta, None
    scaling = {"rope_type": shape.rope_scaling, "factor": float(knobs["rope_factor"])}
    if shape.rope_scaling == YARN:
        scaling["original_max_position_embeddings"] = shape.original_max_position_embeddings
    return theta, scaling


def _positions(written: Mapping[str, Any], where: Path) -> tuple[str, float, int | None, float]:
    """Return the scaling, its factor and original length, and the theta of a config.json."""
    of_5, of_4 = written.get(WHERE_5), written.get(WHERE_4)
    found = [] if of_5 is None else [_scaling(of_5, written, f"{where}: {WHERE_5}")]
    if of_5 is None or of_4 is not None or "rope_theta" in written:
        found.append(_scaling(of_4 or {}, written, f"{where}: {WHERE_4}"))
    if found[0] != found[-1]:
        raise DataError(
            f"{where}: {WHERE_5}, which transformers 5 reads, is {found[0]} (method, factor, original length, theta); "
            f"rope_theta and {WHERE_4}, which transformers 4 reads, are {found[-1]}; remove what is wrong"
        )
    return found[0]


def _scaling(given: Any, written: Mapping[str, Any], where: str) -> tuple[str, float, int | None, float]:
    """Read one of the two forms; `where` is the file and its key."""
    if not isinstance(given, Mapping):
        raise DataError(f"{where}: expected a mapping, got {given!r}")
    kind = given.get("rope_type", given.get("type", DEFAULT))
    if not isinstance(kind, str) or kind not in KNOWN:
        advice = f"; for a constant theta, set rope_scaling: {NTK} in a recipe" if kind == "dynamic" else ""
        raise DataError(f"{where}: rope_type: expected {DEFAULT}, {LINEAR} or {YARN}, got {kind!r}{advice}")
    for key, value in given.items():
        if key not in KNOWN[kind]:
            raise DataError(f"{where}: {key} is not supported for rope_type {kind}")
        if key in YARN_DEFAULTS and value not in (None, YARN_DEFAULTS[key]):
            ours = json.dumps(YARN_DEFAULTS[key])
            raise DataError(f"{where}: {key}: expected {ours}, as our network has no other, got {value!r}")
    theta = given.get("rope_theta", written.get("rope_theta", THETA))
    factor = 1.0 if kind == DEFAULT else given.get("factor")
    for name, key, value in (("rope_theta", "rope_theta", theta), ("rope_factor", "factor", factor)):
        if complaint := KNOBS[name].complaint(value):
            raise DataError(f"{where}: {key}: {complaint}")
    longest = written.get("max_position_embeddings")
    original = given.get("original_max_position_embeddings", longest) if kind == YARN else None
    return NONE if kind == DEFAULT else kind, float(factor), original, float(theta)
