"""Read published checkpoints of RoFormerV2: JunnYu's `pytorch_model.bin` and bert4keras's TensorFlow files.

- The configuration, `config.json` or `bert_config.json`, must be in the same folder: weights alone do not show the
  number of heads.
- A `vocab.txt` in the folder becomes the tokenizer: characters and word pieces, in lower case, as in the models'
  training (`do_lower_case=True` in roformer-v2's scripts).
- TensorFlow's kernels are [in, out] and are transposed. Its names differ from JunnYu's only in spelling.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from rotary_foundry.models.config_json import CONFIG, longest_row
from rotary_foundry.models.family import find_family
from rotary_foundry.models.roformer_v2.huggingface_config import BERT4KERAS, JUNNYU, RELEASED_EPS, read_settings
from rotary_foundry.models.roformer_v2.tensor_names import WeightsByTheirNames, plain_names
from rotary_foundry.models.roformer_v2.tensorflow_checkpoint import TensorFlowCheckpoint
from rotary_foundry.models.weights import ForeignCheckpoint, Weights
from rotary_foundry.runs.safe_reading import read_saved
from rotary_foundry.utils.errors import ConfigurationError, DataError
from rotary_foundry.utils.json_text import read_object

QUERY = re.compile(r"roformer\.encoder\.layer\.\d+\.attention\.self\.query\.weight")
LONGEST = 512  # tokens of a row in pretraining (roformer-v2, README)
SPECIAL = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}


class StoredTensors(Weights):
    """The tensors of a torch.save file, by the names in it."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]):
        self.tensors = tensors
        super().__init__(path, find_family("roformer_v2"), {name: list(value.shape) for name, value in tensors.items()})

    def read(self, name: str) -> Tensor:
        return self.tensors[name]


class TensorFlowTensors(Weights):
    """The model's tensors in a TensorFlow checkpoint, by JunnYu's names; matrices are [out, in]."""

    def __init__(self, path: Path):
        self.checkpoint = TensorFlowCheckpoint(path)
        self.theirs = {
            _junnyu(name): name
            for name in self.checkpoint.entries
            if name.startswith(("bert/", "cls/")) and not name.endswith(("/adam_m", "/adam_v"))
        }
        shapes = {name: self.checkpoint.entries[theirs].shape for name, theirs in self.theirs.items()}
        for name, theirs in self.theirs.items():
            if theirs.endswith("/kernel"):
                shapes[name] = shapes[name][::-1]
        super().__init__(path, find_family("roformer_v2"), shapes)

    def read(self, name: str) -> Tensor:
        theirs = self.theirs[name]
        tensor = self.checkpoint.read(theirs)
        return tensor.T if theirs.endswith("/kernel") else tensor

    def called(self, name: str) -> str:
        return self.theirs.get(name, _tensorflow(name))


def _junnyu(theirs: str) -> str:
    """Translate bert/encoder/layer_0/output/dense/kernel to roformer.encoder.layer.0.output.dense.weight."""
    name = re.sub(r"^bert/", "roformer/", re.sub(r"/layer_(\d+)/", r"/layer/\1/", theirs))
    name = name.removesuffix("/kernel") + "/weight" if name.endswith(("/kernel", "_embeddings")) else name
    return name.replace("/", ".")


def _tensorflow(name: str) -> str:
    name = re.sub(r"\.layer\.(\d+)\.", r".layer_\1.", re.sub(r"^roformer\.", "bert.", name)).replace(".", "/")
    return name.removesuffix("/weight") + ("" if "_embeddings" in name else "/kernel")


def open_published(path: Path) -> ForeignCheckpoint | None:
    """Open a published checkpoint of RoFormerV2; None if the file is of another kind.

    Args:
        path: a torch.save file with JunnYu's names, or the `.index` of a TensorFlow checkpoint.

    Raises:
        DataError: it is broken or hostile, or our network does not support its model; names the file and the key.
        ConfigurationError: its configuration is missing.
    """
    if path.suffix == ".index":
        stored: Weights = TensorFlowTensors(path)
        config, needed, eps = _beside(path, "bert_config.json", CONFIG), BERT4KERAS, RELEASED_EPS
        described = "a TensorFlow checkpoint of bert4keras"
    else:
        saved = read_saved(path)
        pairs = saved.items() if isinstance(saved, Mapping) else ()
        tensors = {name: value for name, value in pairs if isinstance(name, str) and isinstance(value, Tensor)}
        tensors = {name: tensors[theirs] for name, theirs in plain_names(tensors, path).items()}
        if not any(map(QUERY.fullmatch, tensors)):
            return None
        stored = StoredTensors(path, tensors)
        config, needed, eps = _beside(path, CONFIG, "bert_config.json"), JUNNYU, None
        described = "a checkpoint with the names of JunnYu's RoFormer_pytorch"
    written = read_object(config)
    shape, knobs = read_settings(written, needed, config, eps)
    weights = WeightsByTheirNames(stored, shape)
    weights.check(shape)
    longest = longest_row(written, config, LONGEST)
    tokenizer = _tokenizer(path.with_name("vocab.txt"), shape.vocab_size, config)
    return ForeignCheckpoint(shape, knobs, weights, longest, tokenizer, {}, described)


def _beside(path: Path, *names: str) -> Path:
    for name in names:
        if path.with_name(name).is_file():
            return path.with_name(name)
    raise ConfigurationError(
        f"{path}: no {' or '.join(names)} beside it, which says what the model is; put it into {path.parent}"
    )


def _tokenizer(vocabulary: Path, vocab_size: int, config: Path) -> dict[str, str]:
    """Return a tokenizer's files for a vocab.txt, by name; no files if there is no vocab.txt.

    Raises:
        DataError: the vocabulary has more tokens than the model, or lacks a token for a special role.
    """
    if not vocabulary.is_file():
        return {}
    try:
        lines = vocabulary.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # a token may be U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{vocabulary}: cannot be read: {error}") from None
    if len(lines) > vocab_size:
        raise DataError(f"{vocabulary}: {len(lines):,} tokens; expected at most {vocab_size:,}, vocab_size in {config}")
    words = {word: index for index, word in enumerate(lines)}
    for token in SPECIAL.values():
        if token not in words:
            raise DataError(f"{vocabulary}: no token {token}, which the model's tokenizer needs")
    tokenizer = Tokenizer(models.WordPiece(words, unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = {token: (token, words[token]) for token in (SPECIAL["sep_token"], SPECIAL["cls_token"])}
    tokenizer.post_processor = processors.BertProcessing(*ends.values())
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    settings = {"tokenizer_class": "BertTokenizerFast", "do_lower_case": True, "model_max_length": LONGEST, **SPECIAL}
    return {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": json.dumps(settings)}
