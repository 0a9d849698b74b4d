"""Read the configurations of our exports, of JunnYu's checkpoints and of bert4keras, and write those of exports.

transformers has no RoFormerV2. Its RoFormer would load such weights, leave its biases and gains at their initial values
and predict noise (JunnYu/RoFormer_pytorch#48). So an export has its own model type and carries its code,
modeling_roformer_v2.py, for `trust_remote_code=True`. RoFormer's own classes ignore the model type. So `hidden_act` is
null in the configuration: they then refuse it, or fail in their first forward pass.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rotary_foundry.models.config_json import CONFIG, read_config
from rotary_foundry.models.family import HuggingFaceForm
from rotary_foundry.models.roformer_v2.shape import KNOBS, Shape
from rotary_foundry.utils.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from rotary_foundry.models.weights import Weights

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
CODE = Path(__file__).with_name("modeling_roformer_v2.py")
THETA = 10_000.0  # of every published model
RELEASED_EPS = 1e-12  # bert4keras 9c0b262; its code has 1e-7 since cedf66b (2022-04-28)
JUNNYU = {  # what makes JunnYu's class a RoFormerV2; its defaults are those of the first version
    "norm_type": "rms_norm",
    "use_bias": False,
    "rotary_value": False,
    "hidden_act": "relu",
    "type_vocab_size": Shape.token_types,
}
BERT4KERAS = {"hidden_act": "relu", "type_vocab_size": Shape.token_types}
OURS = {"hidden_act": None, "rotary_interleaved": True, "type_vocab_size": Shape.token_types}


class RoFormerV2OnDisk(HuggingFaceForm):
    """RoFormerV2 as our exports have it."""

    model_type = "roformer_v2"
    architecture = "RoFormerV2ForMaskedLM"
    task = "fill-mask"
    classifiers: ClassVar = {
        "sequence": "RoFormerV2ForSequenceClassification",
        "token": "RoFormerV2ForTokenClassification",
    }
    code = (CODE,)
    auto_map: ClassVar = {
        "AutoConfig": "RoFormerV2Config",
        "AutoModel": "RoFormerV2Model",
        "AutoModelForMaskedLM": architecture,
        "AutoModelForSequenceClassification": classifiers["sequence"],
        "AutoModelForTokenClassification": classifiers["token"],
    }

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Recognise JunnYu's checkpoints too: they have the first version's model type, with other settings."""
        return config.get("model_type") == self.model_type or (
            config.get("model_type") == "roformer" and config.get("norm_type") == JUNNYU["norm_type"]
        )

    def read_config(self, directory: Path) -> tuple[Shape, dict[str, float]]:
        written = read_config(directory)
        needed = OURS if written.get("model_type") == self.model_type else JUNNYU
        return read_settings(written, needed, directory / CONFIG)

    def write_config(
        self, shape: Shape, knobs: Mapping[str, float], tokenizer: "PreTrainedTokenizerBase", longest_row: int
    ) -> "PretrainedConfig":
        from rotary_foundry.models.roformer_v2.modeling_roformer_v2 import RoFormerV2Config

        return RoFormerV2Config(
            **{name: getattr(shape, name) for name in SIZES},
            **OURS,
            layer_norm_eps=float(shape.norm_eps),
            rope_theta=float(knobs["rope_theta"]),
            init_depth_exponent=shape.init_depth_exponent,
            max_position_embeddings=longest_row,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
            architectures=[self.architecture],
            auto_map={auto: f"{CODE.stem}.{name}" for auto, name in self.auto_map.items()},
            dtype="float32",
        )

    def stored_tensors(
        self, state: "Mapping[str, Tensor]", shape: Shape, knobs: Mapping[str, float]
    ) -> "dict[str, Tensor]":
        from rotary_foundry.models.roformer_v2.tensor_names import to_disk

        return to_disk(state, shape, knobs["residual_scale"])

    def our_weights(self, stored: "Weights", shape: Shape) -> "Weights":
        from rotary_foundry.models.roformer_v2.tensor_names import WeightsByTheirNames

        return WeightsByTheirNames(stored, shape)

    def with_classifier(self, state: "Mapping[str, Tensor]", labels: int, seed: int) -> "dict[str, Tensor]":
        from rotary_foundry.models.roformer_v2.classifier import with_classifier

        return with_classifier(state, labels, seed)


def read_settings(
    written: Mapping[str, Any], needed: Mapping[str, Any], where: Path, eps: float | None = None
) -> tuple[Shape, dict[str, float]]:
    """Return the shape and the knobs that a configuration describes.

    Args:
        written: the keys of the configuration.
        needed: the settings for which our network supports one value only, and that value.
        where: the configuration's file.
        eps: the eps of the norms if the file does not have it.

    Raises:
        DataError: a setting is missing, invalid, or not supported by our network; names the first.
    """
    for key, ours in needed.items():
        if key not in written:
            raise DataError(f"{where}: {key} is missing; expected {json.dumps(ours)}")
        if written[key] != ours:
            raise DataError(
                f"{where}: {key}: expected {json.dumps(ours)}, as a RoFormerV2 has no other, got "
                f"{json.dumps(written[key])}"
            )
    for key in ("rope_scaling", "rope_parameters"):
        if written.get(key) is not None:
            raise DataError(f"{where}: {key} is not supported; rope_theta is")
    settings = {"layer_norm_eps": eps} if eps is not None else {}
    settings |= written
    for key in (*SIZES, "layer_norm_eps"):
        if key not in settings:
            raise DataError(f"{where}: {key} is missing")
    if settings.get("embedding_size") not in (None, settings["hidden_size"]):
        raise DataError(
            f"{where}: embedding_size: expected {settings['hidden_size']}, the hidden_size, got "
            f"{settings['embedding_size']}; factorised embeddings are not supported"
        )
    shape = Shape(
        **{name: settings[name] for name in SIZES},
        norm_eps=settings["layer_norm_eps"],
        init_depth_exponent=settings.get("init_depth_exponent", 0.5),  # only initialisation uses it
    )
    for key, complaint in shape.problems():
        raise DataError(f"{where}: {'layer_norm_eps' if key == 'norm_eps' else key}: {complaint}")
    theta = settings.get("rope_theta", THETA)
    if complaint := KNOBS["rope_theta"].complaint(theta):
        raise DataError(f"{where}: rope_theta: {complaint}")
    return shape, {"rope_theta": float(theta), "residual_scale": 1.0}
