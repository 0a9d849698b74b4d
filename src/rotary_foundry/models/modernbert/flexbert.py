"""Read checkpoints of the ModernBERT authors' training code: Composer's `.pt` files with a model called FlexBERT.

- The weights are at `state.model`, with prefixes of Composer and BERT in their names. Each has a counterpart in ours.
- The weights do not determine the shape: the number of heads, the local layers and the thetas are not visible in them.
  Composer saves the model's configuration in the file, and the training YAML also has it. The YAML is used if it is
  given. Without either, the file is refused.
- `local_attn_rotary_emb_base: -1` means "as the other layers". The authors' converter copied it to config.json, where
  transformers takes it as a theta and computes NaN (AnswerDotAI/ModernBERT, issues 209, 215 and 234).
- FlexBERT has many options; ModernBERT is one combination of them. Each setting of a file, or its default, is compared
  with that combination. `padding` and the kernels change no number, so they are not compared.
- Everything else in the file (optimizer, generators, datasets) is not read: tensors are memory-mapped, not loaded.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from yaml import YAMLError

from rotary_foundry.models.family import find_family
from rotary_foundry.models.modernbert.shape import KNOBS, Shape
from rotary_foundry.models.weights import ForeignCheckpoint, Weights, unwrapped
from rotary_foundry.runs.safe_reading import read_saved
from rotary_foundry.utils.errors import ConfigurationError, DataError
from rotary_foundry.utils.wording import one_line

NAMES = (  # theirs, ours
    ("model.bert.encoder.layers.", "model.layers."),
    ("model.bert.embeddings.", "model.embeddings."),
    ("model.bert.final_norm.", "model.final_norm."),
    ("model.head.", "head."),
    ("model.decoder.", "decoder."),
)
LAYER = re.compile(r"model\.layers\.(\d+)\.")
LAYER_NORM, PRENORM = ("triton_layernorm", "layernorm"), ("compile_prenorm", "prenorm")  # the same, by two kernels
PARTS = {  # FlexBertConfig's options: the default, and the values that our encoder computes
    "attention_layer": ("base", ("rope",)),
    "bert_layer": ("prenorm", PRENORM),
    "embedding_layer": ("absolute_pos", ("sans_pos",)),
    "mlp_layer": ("mlp", ("glu",)),
    "initial_attention_layer": (None, (None, "rope")),
    "initial_bert_layer": (None, (None, *PRENORM)),
    "initial_mlp_layer": (None, (None, "glu")),
    "normalization": ("rmsnorm", LAYER_NORM),
    "hidden_act": ("gelu", ("gelu",)),
    "head_pred_act": ("silu", ("gelu",)),
    "embed_norm": (True, (True,)),
    "final_norm": (False, (True,)),
    "skip_first_prenorm": (False, (True,)),
    "head_pred_norm": (True, (True,)),
    "attn_qkv_bias": (False, (False,)),
    "attn_out_bias": (False, (False,)),
    "mlp_in_bias": (False, (False,)),
    "mlp_out_bias": (False, (False,)),
    "head_pred_bias": (False, (False,)),
    "decoder_bias": (True, (True,)),
    "rotary_emb_interleaved": (False, (False,)),
    "rotary_emb_scale_base": (None, (None,)),
}
EMBEDDING, THEIR_EMBEDDING = (f"model.{bert}embeddings.tok_embeddings.weight" for bert in ("", "bert."))
DESCRIBED = "a checkpoint of ModernBERT's training code (FlexBERT, by Composer)"
LEFT = "the optimizer's moments and the clock; a run that begins from this model makes its own moments, from token 0 on"
CLOCK = {"updates": "batch", "tokens": "token"}  # ours, and Composer's timestamp's
NORM = {"eps": 1e-5, "bias": True}  # torch's defaults, for keys that norm_kwargs does not set


class FlexBertWeights(Weights):
    """The model's parameters in such a file.

    Raises:
        DataError: the file has none.
    """

    def __init__(self, path: Path, saved: object):
        state = saved.get("state") if isinstance(saved, Mapping) else None
        model = state.get("model") if isinstance(state, Mapping) else None
        pairs = model.items() if isinstance(model, Mapping) else ()
        tensors = {name: value for name, value in pairs if isinstance(name, str) and isinstance(value, Tensor)}
        wrapped = unwrapped(tensors, [THEIR_EMBEDDING], path)
        tensors = {name: tensors[stored] for name, stored in wrapped.items()}
        embedding = tensors.get(THEIR_EMBEDDING)
        if embedding is None or embedding.dim() != 2:
            raise DataError(
                f"{path}: no matrix state.model.{THEIR_EMBEDDING}, so this is not a "
                "checkpoint of ModernBERT's training code (of a whole model: one split over several files is not read)"
            )
        self.theirs = {_our_name(name): name for name in tensors}
        self.tensors = {ours: tensors[theirs] for ours, theirs in self.theirs.items()}
        super().__init__(
            path, find_family("modernbert"), {name: list(tensor.shape) for name, tensor in self.tensors.items()}
        )

    def read(self, name: str) -> Tensor:
        return self.tensors[name]

    def called(self, name: str) -> str:
        theirs = self.theirs.get(name)
        if theirs is None:
            theirs = next((prefix + name.removeprefix(ours) for prefix, ours in NAMES if name.startswith(ours)), name)
        return f"state.model.{theirs}"


def _our_name(theirs: str) -> str:
    for prefix, ours in NAMES:
        if theirs.startswith(prefix):
            return ours + theirs.removeprefix(prefix)
    return theirs


def open_flexbert(path: Path, recipe: Path | None = None) -> ForeignCheckpoint:
    """Open a checkpoint of ModernBERT's training code; no code in it is run.

    Args:
        path: a `.pt` file that Composer wrote.
        recipe: the YAML that it was trained with; needed if the file has no configuration of the model.

    Raises:
        DataError: the file is of another kind, broken or hostile, or our encoder does not support its model.
        ConfigurationError: neither file nor YAML has the model's configuration, or the YAML cannot be read.
    """
    saved = read_saved(path)
    weights = FlexBertWeights(path, saved)
    stored = _at(saved, "state", "integrations", "huggingface")
    if recipe is not None:
        (settings, max_seq_len), where = _read_yaml(recipe), f"{recipe}: model.model_config"
    else:
        settings, max_seq_len = _at(stored, "model", "config", "content"), None
        where = f"{path}: its configuration"
    if not isinstance(settings, Mapping) or "num_attention_heads" not in settings:
        raise ConfigurationError(
            f"{where}: no num_attention_heads; the number of heads, the windows and the thetas leave no trace in "
            "weights: give --recipe, the YAML of the training, which has them under model.model_config"
        )
    shape, knobs = _shape(settings, weights, where)
    weights.check(shape)
    if max_seq_len is not None and (not isinstance(max_seq_len, int) or max_seq_len < 1):
        raise ConfigurationError(f"{recipe}: max_seq_len is {max_seq_len!r}, not a number of tokens")
    clock = {name: _at(saved, "state", "timestamp", "Timestamp", key) for name, key in CLOCK.items()}
    clock = {name: value for name, value in clock.items() if isinstance(value, int)}
    tokenizer = _tokenizer_files(path, _at(stored, "tokenizer"))
    left = LEFT if _at(saved, "state", "optimizers") else None
    return ForeignCheckpoint(shape, knobs, weights, max_seq_len, tokenizer, clock, DESCRIBED, not_taken=left)


def _shape(settings: Mapping[str, Any], weights: FlexBertWeights, where: str) -> tuple[Shape, dict[str, float]]:
    for key, (default, ours) in PARTS.items():
        value = settings.get(key, default)
        plain = re.sub("^(un)?padded_", "", value) if isinstance(value, str) else value
        if plain not in ours:
            raise DataError(
                f"{where}: {key}: expected {ours[-1]!r}, as our encoder has it, got {value!r}{_unsaid(key, settings)}"
            )
    given = settings.get("norm_kwargs") or {}
    norm = NORM | (given if isinstance(given, dict) else {})
    if norm["bias"]:
        raise DataError(f"{where}: norm_kwargs is {given!r}, a norm with biases; ours have none")
    heads = settings["num_attention_heads"]
    vocabulary, hidden = weights.shapes[EMBEDDING]
    layers = [int(found[1]) + 1 for name in weights.shapes if (found := LAYER.match(name))]
    glu = weights.shapes.get("model.layers.0.mlp.Wi.weight") or [0]
    seen = {  # without the vocabulary, whose rows may have been padded
        "hidden_size": hidden,
        "intermediate_size": glu[0] // 2,
        "num_hidden_layers": max(layers, default=0),
    }
    for key, value in seen.items():
        if settings.get(key, value) != value:
            raise DataError(f"{where}: {key} is {settings[key]!r}, the weights have {value}; they are of another model")
    every, window = settings.get("global_attn_every_n_layers", -1), settings.get("sliding_window", -1)
    if window == -1:
        every, window = 1, None
    elif every == -1:
        raise DataError(f"{where}: every layer is local, as global_attn_every_n_layers is -1; our first one is global")
    theta, local_theta = settings.get("rotary_emb_base", 10_000.0), settings.get("local_attn_rotary_emb_base", -1)
    knobs = {"rope_theta": theta, "local_rope_theta": theta if local_theta in (-1, None) else local_theta}
    for name, key in (("rope_theta", "rotary_emb_base"), ("local_rope_theta", "local_attn_rotary_emb_base")):
        if complaint := KNOBS[name].complaint(knobs[name]):
            raise DataError(f"{where}: {key}: {complaint}")
    shape = Shape(
        vocab_size=vocabulary,
        **seen,
        num_attention_heads=heads,
        global_attn_every_n_layers=every,
        local_attention=window,
        norm_eps=norm["eps"],
    )
    for key, complaint in shape.problems():
        raise DataError(f"{where}: {key}: {complaint}")
    for key in ("rotary_emb_dim", "local_attn_rotary_emb_dim"):
        if settings.get(key) not in (None, hidden // heads):
            raise DataError(f"{where}: {key}: expected {hidden // heads}, the head dimension, found {settings[key]!r}")
    return shape, {name: float(value) for name, value in knobs.items()}


def _unsaid(key: str, settings: Mapping[str, Any]) -> str:
    return "" if key in settings else " (FlexBERT's default for a missing key)"


def _read_yaml(path: Path) -> tuple[object, int | None]:
    """Return a YAML's model.model_config and max_seq_len; interpolations elsewhere in it need not resolve."""
    try:
        training = OmegaConf.load(path)
        if not isinstance(training, DictConfig):
            raise ConfigurationError(f"{path}: is no mapping; the YAML of a training has model.model_config")
        settings = OmegaConf.select(training, "model.model_config")
        settings = OmegaConf.to_container(settings, resolve=True) if isinstance(settings, DictConfig) else None
        return settings, training.get("max_seq_len")
    except (OSError, YAMLError, OmegaConfBaseException, AssertionError, RecursionError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {one_line(error)}") from error


def _at(tree: object, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _tokenizer_files(path: Path, stored: object) -> dict[str, str]:
    files = stored.items() if isinstance(stored, Mapping) else ()
    contents = {name: _at(file, "content") for name, file in files if _at(file, "file_extension") == ".json"}
    try:
        return {name: json.dumps(content) for name, content in contents.items()}
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: the content of its tokenizer is not JSON: {one_line(error)}") from None
