"""Convert transformers' config.json of a ModernBERT from and to our shape and knobs, and make its classifiers.

The config is read as plain JSON, because a recipe may take its model's shape from one before torch is imported, and so
without transformers. Tensors already have transformers' names.

A setting that our encoder does not support (a bias, another activation) is refused by name. A missing setting is
refused too: transformers would fill in the number of the published base model, which is wrong for a file that has lost
one. Dropout rates are ignored, because the recipe sets them. transformers 5 writes `rope_parameters` and `layer_types`,
where version 4 writes two thetas and a number. Both are read. A file in which they differ is refused, because the two
versions would load different models.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rotary_foundry.models.config_json import CONFIG, read_config
from rotary_foundry.models.family import HuggingFaceForm
from rotary_foundry.models.modernbert.shape import KNOBS, Shape
from rotary_foundry.utils.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import ModernBertConfig, PreTrainedTokenizerBase

OURS = {  # settings that transformers offers and our encoder fixes
    "hidden_activation": "gelu",
    "classifier_activation": "gelu",
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "classifier_bias": False,
    "decoder_bias": True,
}
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
NEEDED = (*SIZES, "global_attn_every_n_layers", "local_attention", "global_rope_theta", "local_rope_theta", "norm_eps")
FULL, SLIDING = "full_attention", "sliding_attention"  # the kinds of layers in transformers 5


class ModernBertOnDisk(HuggingFaceForm):
    """ModernBERT as transformers writes it."""

    model_type = "modernbert"
    architecture = "ModernBertForMaskedLM"
    task = "fill-mask"
    classifiers: ClassVar = {
        "sequence": "ModernBertForSequenceClassification",
        "token": "ModernBertForTokenClassification",
    }

    linear_classifier: ClassVar = {"classifier_pooling": "cls", "classifier_activation": "linear"}

    def settings_of_4(self, shape: Shape, knobs: Mapping[str, float]) -> dict[str, Any]:
        return {
            "reference_compile": False,  # by default, version 4 compiles on GPUs, which needs a C compiler
            "global_rope_theta": float(knobs["rope_theta"]),  # version 5 writes only rope_parameters,
            "local_rope_theta": float(knobs["local_rope_theta"]),  # and 4 would silently use its default thetas
        }

    def read_config(self, directory: Path) -> tuple[Shape, dict[str, float]]:
        return from_huggingface(directory)

    def write_config(
        self, shape: Shape, knobs: Mapping[str, float], tokenizer: "PreTrainedTokenizerBase", longest_row: int
    ) -> "ModernBertConfig":
        return to_huggingface(shape, knobs, tokenizer, longest_row)

    def with_classifier(self, state: "Mapping[str, Tensor]", labels: int, seed: int) -> "dict[str, Tensor]":
        from rotary_foundry.models.modernbert.classifier import with_classifier

        return with_classifier(state, labels, seed)

    def with_linear_classifier(
        self, state: "Mapping[str, Tensor]", weight: "Tensor", bias: "Tensor"
    ) -> "dict[str, Tensor]":
        from rotary_foundry.models.modernbert.classifier import with_linear_classifier

        return with_linear_classifier(state, weight, bias)


def from_huggingface(path: Path) -> tuple[Shape, dict[str, float]]:
    """Return the shape of the model in a directory, and the thetas of its layers.

    Raises:
        DataError: a setting is invalid, or our encoder does not support it; names the first.
    """
    written = read_config(path)
    if written.get("rope_scaling") is not None:
        raise DataError(f"{path / CONFIG}: rope_scaling is not supported; global_rope_theta and local_rope_theta are")
    written = written | _from_version_5(path, written)
    for key, ours in OURS.items():
        if written.get(key, ours) != ours:  # a missing key has transformers' default, which is ours
            raise DataError(
                f"{path / CONFIG}: {key}: expected {ours!r}, as our encoder has no other, got {written[key]!r}"
            )
    if written.get("classifier_pooling", "mean") not in ("cls", "mean"):
        raise DataError(
            f"{path / CONFIG}: classifier_pooling is {written['classifier_pooling']!r}, neither cls nor mean"
        )
    for key in NEEDED:
        if key not in written:
            raise DataError(f"{path / CONFIG}: {key} is missing; transformers writes it")
    theta, local_theta = written["global_rope_theta"], written["local_rope_theta"]
    if local_theta == -1:
        raise DataError(
            f"{path / CONFIG}: local_rope_theta is -1, which ModernBERT's training code writes for 'as the global "
            f"layers'; transformers computes NaN with it: {theta!r} is right"
        )
    local_attention = None if written["global_attn_every_n_layers"] == 1 else written["local_attention"]
    if isinstance(local_attention, int) and local_attention > 1:
        local_attention -= local_attention % 2  # an odd window reaches no further, in transformers and here
    shape = Shape(
        **{name: written[name] for name in SIZES},
        global_attn_every_n_layers=written["global_attn_every_n_layers"],
        local_attention=local_attention,
        norm_eps=written["norm_eps"],
    )
    knobs = {"rope_theta": theta, "local_rope_theta": theta if local_theta is None else local_theta}
    for name, key in (("rope_theta", "global_rope_theta"), ("local_rope_theta", "local_rope_theta")):
        if complaint := KNOBS[name].complaint(knobs[name]):
            raise DataError(f"{path / CONFIG}: {key}: {complaint}")
    for key, complaint in shape.problems():
        raise DataError(f"{path / CONFIG}: {key}: {complaint}")
    return shape, knobs


def to_huggingface(
    shape: Shape, knobs: Mapping[str, float], tokenizer: "PreTrainedTokenizerBase", longest_row: int
) -> "ModernBertConfig":
    """Return transformers' configuration of the same model. [CLS] and [SEP] also serve as bos and eos."""
    from transformers import ModernBertConfig

    unnamed: dict[str, Any] = {  # not in transformers 5's signature, but accepted
        "global_attn_every_n_layers": shape.global_attn_every_n_layers,
        "global_rope_theta": float(knobs["rope_theta"]),
        "local_rope_theta": float(knobs["local_rope_theta"]),
        "mask_token_id": tokenizer.mask_token_id,
    }
    return ModernBertConfig(
        **{name: getattr(shape, name) for name in SIZES},
        norm_eps=float(shape.norm_eps),
        local_attention=shape.local_attention or 128,  # transformers' default if no layer is local; it needs a number
        max_position_embeddings=longest_row,
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        bos_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        eos_token_id=tokenizer.sep_token_id,
        classifier_pooling="mean",
        tie_word_embeddings=True,
        architectures=["ModernBertForMaskedLM"],
        dtype="float32",
        **OURS,
        **unnamed,
    )


def _from_version_5(path: Path, written: dict) -> dict:
    """Return the settings that have other names in transformers 5, by their names in version 4.

    Raises:
        DataError: our encoder does not support them, or the file has a different value under the name of version 4.
    """
    found: dict = {}
    kinds, ropes = written.get("layer_types"), written.get("rope_parameters")
    if kinds is not None:
        layers = range(len(kinds)) if isinstance(kinds, list) else range(0)
        every = next((index for index in layers[1:] if kinds[index] == FULL), max(len(layers), 1))
        given = written.get("global_attn_every_n_layers")
        if every == len(layers) and isinstance(given, int) and given > every:
            every = given  # with either number, only the first layer is global
        if not layers or kinds != [SLIDING if index % every else FULL for index in layers]:
            raise DataError(
                f"{path / CONFIG}: layer_types: expected {FULL} in the first of every n layers only, got {kinds}"
            )
        if len(layers) != written.get("num_hidden_layers"):
            raise DataError(f"{path / CONFIG}: layer_types has {len(layers)} layers, num_hidden_layers says otherwise")
        found["global_attn_every_n_layers"] = every
    if ropes is not None:
        for kind, key in ((FULL, "global_rope_theta"), (SLIDING, "local_rope_theta")):
            rope = ropes.get(kind) if isinstance(ropes, dict) else None
            if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default" or "rope_theta" not in rope:
                raise DataError(
                    f"{path / CONFIG}: rope_parameters: {kind}: expected a rope_theta without scaling, got {rope!r}"
                )
            found[key] = rope["rope_theta"]
    for key, value in found.items():
        if key in written and written[key] != value:
            name = "layer_types" if key == "global_attn_every_n_layers" else "rope_parameters"
            raise DataError(
                f"{path / CONFIG}: {key} is {written[key]!r}, which transformers 4 reads, and {name} means {value!r}, "
                "which transformers 5 reads; remove the one that is wrong"
            )
    return found
