"""Directories that plain transformers reads and writes: config.json, safetensors, and the tokenizer's files.

- Our parameters bear transformers' names (ModernBertForMaskedLM), so tensors go in and out as they are. The decoder's
  weight is the embedding's and is not written twice; transformers leaves it out too.
- What our encoder has no part for (a bias, another activation, an untied decoder) is refused by name. A model that
  loads and computes something else would be found out much later. Dropout rates are passed over: they are the recipe's.
- An export appears whole or not at all: it is written beside its place and then moved there. It replaces an earlier
  export and nothing else.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, ModernBertConfig, PreTrainedTokenizerBase

from encoder_foundry.errors import ConfigurationError, DataError
from encoder_foundry.model.masked_lm import MaskedLM
from encoder_foundry.recipe.schema import ModelConfig
from encoder_foundry.recipe.validation import model_problems, theta_problems

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
OURS = {  # what transformers lets one choose and our encoder does not
    "hidden_activation": "gelu",
    "classifier_activation": "gelu",
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "classifier_bias": False,
    "decoder_bias": True,
    "tie_word_embeddings": True,
}
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
EMBEDDING, DECODER = "model.embeddings.tok_embeddings.weight", "decoder.weight"


def export_model(
    network_state: Mapping[str, Tensor],
    config: ModelConfig,
    rope_theta: float,
    tokenizer_dir: Path,
    max_position_embeddings: int,
    out_dir: Path,
) -> None:
    """Write a directory that `AutoModelForMaskedLM` and `AutoTokenizer` load, with no code of ours.

    Args:
        network_state: the state dict of a MaskedLM; written in float32.
        config: its shape.
        rope_theta: theta of the global layers, as last trained with.
        tokenizer_dir: a Hugging Face fast tokenizer; its files are copied.
        max_position_embeddings: the longest row trained on, in tokens.
        out_dir: made if need be; an earlier export there is replaced.

    Raises:
        ConfigurationError: `out_dir` holds anything but an export.
        DataError: the tokenizer cannot be read or does not fit the model.
    """
    _refuse_foreign(out_dir)
    tokenizer = _load_tokenizer(tokenizer_dir, config)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out_dir.name}-", dir=out_dir.parent) as work:
        new = Path(work) / "new"
        new.mkdir()
        tensors = {
            name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in network_state.items()
        }
        save_file(tensors, new / WEIGHTS, metadata={"format": "pt"})
        (new / WEIGHTS).chmod(0o644)  # safetensors writes for the owner alone
        to_huggingface(config, rope_theta, tokenizer, max_position_embeddings).save_pretrained(new)
        for name in TOKENIZER_FILES:
            if (tokenizer_dir / name).is_file():
                shutil.copyfile(tokenizer_dir / name, new / name)
        if out_dir.exists():
            out_dir.rename(Path(work) / "old")
        new.rename(out_dir)


def to_huggingface(
    config: ModelConfig, rope_theta: float, tokenizer: PreTrainedTokenizerBase, max_position_embeddings: int
) -> ModernBertConfig:
    """The same shape in transformers' terms. [CLS] and [SEP] also stand for beginning and end of sequence."""
    return ModernBertConfig(
        **{name: getattr(config, name) for name in SIZES},
        norm_eps=config.norm_eps,
        global_attn_every_n_layers=config.global_attn_every_n_layers,
        global_rope_theta=float(rope_theta),
        local_attention=config.local_attention or 128,  # their default, if no layer is local; they want a number
        local_rope_theta=float(config.local_rope_theta),
        max_position_embeddings=max_position_embeddings,
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        bos_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        eos_token_id=tokenizer.sep_token_id,
        mask_token_id=tokenizer.mask_token_id,
        architectures=["ModernBertForMaskedLM"],
        dtype="float32",
        **OURS,
    )


def from_huggingface(path: Path) -> tuple[ModelConfig, float]:
    """The shape of the model in a directory, and the theta of its global layers.

    Raises:
        DataError: naming the first setting that our encoder has no part for, or that no model can have.
    """
    try:
        written = json.loads((path / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path / CONFIG}: cannot be read: {error}") from None
    model_type = written.get("model_type") if isinstance(written, dict) else None
    if model_type != "modernbert":
        raise DataError(f"{path / CONFIG}: model_type is {model_type!r}, only 'modernbert' can be loaded")
    for key in ("rope_scaling", "rope_parameters", "layer_types"):  # the latter two as transformers 5 writes them
        if written.get(key) is not None:
            raise DataError(f"{path / CONFIG}: {key} is not supported; global_rope_theta and local_rope_theta are")
    try:
        theirs = ModernBertConfig.from_dict(written)
    except Exception as error:  # it raises whatever the value runs into
        raise DataError(f"{path / CONFIG}: {' '.join(str(error).split())}") from None
    for key, ours in OURS.items():
        if getattr(theirs, key) != ours:
            raise DataError(f"{path / CONFIG}: {key} is {getattr(theirs, key)!r}, our encoder has {ours!r} only")
    local_rope_theta = theirs.global_rope_theta if theirs.local_rope_theta is None else theirs.local_rope_theta
    local_attention = None if theirs.global_attn_every_n_layers == 1 else theirs.local_attention
    if isinstance(local_attention, int) and local_attention > 1:
        local_attention -= local_attention % 2  # to them as to us, an odd window reaches no further
    config = ModelConfig(
        **{name: getattr(theirs, name) for name in SIZES},
        global_attn_every_n_layers=theirs.global_attn_every_n_layers,
        local_attention=local_attention,
        local_rope_theta=local_rope_theta,
        norm_eps=theirs.norm_eps,
        attn_out_dropout=0.0,
    )
    theta = theirs.global_rope_theta
    for key, complaint in (*theta_problems("global_rope_theta", theta), *model_problems(config)):
        raise DataError(f"{path / CONFIG}: {key}: {complaint}")
    return config, theta


def load_directory(path: str | Path) -> MaskedLM:
    """The model in an exported directory, or in any that transformers saved a ModernBertForMaskedLM to.

    Returns:
        A network in float32 on the CPU, in evaluation mode.

    Raises:
        DataError: naming the first thing that is missing or does not fit.
    """
    config, rope_theta, weights = open_directory(Path(path))
    network = MaskedLM(config, rope_theta)
    network.load_state_dict(dict(weights))
    return network.eval()


def open_directory(path: Path) -> tuple[ModelConfig, float, Mapping[str, Tensor]]:
    """The shape of the model in a directory, theta of its global layers, and its weights, each read when asked for.

    Args:
        path: holds config.json and model.safetensors, or shards of it with their index.

    Raises:
        DataError: naming the first thing that is missing or does not fit.
    """
    config, rope_theta = from_huggingface(path)
    weights = SafetensorsWeights(path)
    if DECODER in weights.files and not torch.equal(weights[DECODER], weights[EMBEDDING]):
        raise DataError(f"{path}: {DECODER} differs from {EMBEDDING}, our decoder is tied to it")
    weights.files.pop(DECODER, None)
    with torch.device("meta"):
        wanted = MaskedLM(config, rope_theta).state_dict()
    for name, ours in wanted.items():
        if name not in weights:
            raise DataError(f"{path}: no tensor {name}, so these are not the weights of a ModernBertForMaskedLM")
        if weights.shape(name) != list(ours.shape):
            raise DataError(f"{path}: {name} is {weights.shape(name)}, {CONFIG} makes it {list(ours.shape)}")
    unknown = sorted(weights.keys() - wanted.keys())
    if unknown:
        raise DataError(f"{path}: our model has no part for the tensor {unknown[0]}")
    return config, rope_theta, weights


class SafetensorsWeights(Mapping[str, Tensor]):
    """The tensors of a directory, by name; one is read when it is asked for."""

    def __init__(self, path: Path):
        if not (path / WEIGHTS).is_file() and not (path / INDEX).is_file():
            raise DataError(f"{path}: neither {WEIGHTS} nor {INDEX} there; weights are read from safetensors only")
        file = path / INDEX
        self.files: dict[str, Path] = {}  # by tensor
        try:
            shards = [WEIGHTS]
            if not (path / WEIGHTS).is_file():
                shards = sorted(set(json.loads(file.read_text())["weight_map"].values()))
            for shard in shards:
                file = path / shard
                with safe_open(file, "pt") as opened:
                    self.files |= dict.fromkeys(opened.keys(), file)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise DataError(f"{file}: cannot be read: {error}") from None

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.files[name], "pt") as opened:
            return opened.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def shape(self, name: str) -> list[int]:
        with safe_open(self.files[name], "pt") as opened:
            return opened.get_slice(name).get_shape()


def _load_tokenizer(path: Path, config: ModelConfig) -> PreTrainedTokenizerBase:
    if not (path / "tokenizer.json").is_file():
        raise DataError(f"{path}: no tokenizer.json, so this is not the directory of a Hugging Face fast tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise DataError(f"{path}: cannot be read as a tokenizer: {error}") from None
    for token in ("pad_token", "cls_token", "sep_token", "mask_token"):
        if getattr(tokenizer, token) is None:
            raise DataError(f"{path}: the tokenizer has no {token}")
    if len(tokenizer) > config.vocab_size:
        raise DataError(f"{path}: {len(tokenizer)} tokens do not fit a model with a vocabulary of {config.vocab_size}")
    return tokenizer


def _refuse_foreign(out_dir: Path) -> None:
    if not out_dir.exists():
        return
    if not out_dir.is_dir():
        raise ConfigurationError(f"{out_dir}: is a file; an export is a directory")
    foreign = sorted({path.name for path in out_dir.iterdir()} - {CONFIG, WEIGHTS, *TOKENIZER_FILES})
    if foreign:
        raise ConfigurationError(f"{out_dir}: holds {foreign[0]}, which is not part of an export; choose another place")
