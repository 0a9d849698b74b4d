"""Directories that plain transformers reads and writes: config.json, safetensors, and the tokenizer's files.

- A family says what its config.json is; the rest is the same for all. Tied tensors are not written twice.
- What a network of ours has no part for (a bias, another activation) is refused by name. A model that loads and
  computes something else would be found out much later. Dropout rates are passed over: they are the recipe's.
- Directories of transformers 4 and 5 are read. Both read what is written: config.json and tokenizer_config.json have
  the settings under the names of both.
- An export appears whole or not at all: it is written beside its place and then moved there. It replaces an earlier
  export, its card included, and nothing else: a model that was downloaded has another card.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rotary_foundry.data.same_tokenizer import check_ids
from rotary_foundry.data.special_tokens import rewrite_config
from rotary_foundry.interop.heads import Head
from rotary_foundry.models.config_json import CONFIG, family_of, read_config
from rotary_foundry.models.family import Family, Shape
from rotary_foundry.models.weights import Weights, load_network
from rotary_foundry.utils.errors import ConfigurationError, DataError

WEIGHTS, INDEX, CARD = "model.safetensors", "model.safetensors.index.json", "README.md"
TAG = "rotary-foundry"  # in a card's front matter, by which a directory of ours is known
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def export_model(
    network_state: Mapping[str, Tensor],
    family: Family,
    shape: Shape,
    knobs: Mapping[str, float],
    tokenizer_dir: Path,
    max_position_embeddings: int,
    out_dir: Path,
    card: str | None = None,
    head: Head | None = None,
) -> None:
    """Write a directory that `AutoModelForMaskedLM` and `AutoTokenizer` load, with no code of ours.

    Args:
        network_state: the parameters of a network; written in float32.
        family, shape: its own.
        knobs: those that its weights are meant for, as last trained with.
        tokenizer_dir: a Hugging Face fast tokenizer; its files are copied.
        max_position_embeddings: the longest row trained on, in tokens.
        out_dir: made if need be; an earlier export there is replaced.
        card: the text of README.md.
        head: a classifier to put in the decoder's place; the directory is then for that class of transformers.

    Raises:
        ConfigurationError: `out_dir` holds anything but an export.
        DataError: the tokenizer cannot be read or does not fit the model.
    """
    _refuse_foreign(out_dir)
    tokenizer = _load_tokenizer(tokenizer_dir, shape)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out_dir.name}-", dir=out_dir.parent) as work:
        new = Path(work) / "new"
        new.mkdir()
        tensors = dict(network_state) if head is None else head.in_place_of_output(family, network_state)
        for name, tensor in tensors.items():
            tensors[name] = tensor.detach().to("cpu", torch.float32).contiguous()
        save_file(tensors, new / WEIGHTS, metadata={"format": "pt"})
        (new / WEIGHTS).chmod(0o644)  # safetensors writes for the owner alone
        theirs = family.huggingface.write_config(shape, knobs, tokenizer, max_position_embeddings)
        theirs.update({} if head is None else head.settings(family))
        theirs.save_pretrained(new)
        if card is not None:
            (new / CARD).write_text(card, encoding="utf-8")
        for name in TOKENIZER_FILES:
            if (tokenizer_dir / name).is_file():
                shutil.copyfile(tokenizer_dir / name, new / name)
        rewrite_config(new, model_input_names=["input_ids", "attention_mask"])  # the model takes no token_type_ids
        if out_dir.exists():
            out_dir.rename(Path(work) / "old")
        new.rename(out_dir)


def load_directory(path: str | Path) -> nn.Module:
    """Load the model in an exported directory, or in any that transformers saved a model of one of our families to.

    Returns:
        A network in float32 on the CPU, in evaluation mode.

    Raises:
        DataError: naming the first thing that is missing or does not fit.
    """
    return load_network(*open_directory(Path(path)))


def open_directory(path: Path) -> tuple[Shape, dict[str, float], Weights]:
    """Open a directory: the shape of its model, the knobs of its weights, and the weights, each read when asked for.

    Args:
        path: holds config.json and model.safetensors, or shards of it with their index.

    Raises:
        DataError: naming the first thing that is missing or does not fit.
    """
    family = family_of(path)
    shape, knobs = family.huggingface.read_config(path)
    weights = SafetensorsWeights(path, family)
    if read_config(path).get("tie_word_embeddings") is False:
        for name in family.tied.keys() - weights.shapes.keys():
            raise DataError(f"{path / CONFIG}: tie_word_embeddings is False, and there is no tensor {name}")
    weights.check(shape)
    return shape, knobs, weights


class SafetensorsWeights(Weights):
    """The tensors of a directory."""

    def __init__(self, path: Path, family: Family):
        if not (path / WEIGHTS).is_file() and not (path / INDEX).is_file():
            raise DataError(f"{path}: neither {WEIGHTS} nor {INDEX} there; weights are read from safetensors only")
        file = path / INDEX
        self.files: dict[str, Path] = {}  # by tensor
        shapes: dict[str, list[int]] = {}
        try:
            shards = [WEIGHTS]
            if not (path / WEIGHTS).is_file():
                shards = sorted(set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()))
            for shard in shards:
                file = path / shard
                with safe_open(file, "pt") as opened:
                    names = opened.keys()  # a method's list: the file itself is no mapping
                    for name in names:
                        self.files[name], shapes[name] = file, opened.get_slice(name).get_shape()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise DataError(f"{file}: cannot be read: {error}") from None
        super().__init__(path, family, shapes)

    def read(self, name: str) -> Tensor:
        with safe_open(self.files[name], "pt") as opened:
            return opened.get_tensor(name)


def _load_tokenizer(path: Path, shape: Shape) -> PreTrainedTokenizerBase:
    if not (path / "tokenizer.json").is_file():
        raise DataError(f"{path}: no tokenizer.json, so this is not the directory of a Hugging Face fast tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise DataError(f"{path}: cannot be read as a tokenizer: {error}") from None
    for token in ("pad_token", "cls_token", "sep_token", "mask_token"):
        if getattr(tokenizer, token) is None:
            raise DataError(f"{path}: the tokenizer has no {token}")
    check_ids(tokenizer, "the model", shape.vocab_size)
    return tokenizer


def _refuse_foreign(out_dir: Path) -> None:
    if not out_dir.exists():
        return
    if not out_dir.is_dir():
        raise ConfigurationError(f"{out_dir}: is a file; an export is a directory")
    foreign = sorted({path.name for path in out_dir.iterdir()} - {CONFIG, WEIGHTS, CARD, *TOKENIZER_FILES})
    if (out_dir / CARD).is_file() and f"- {TAG}\n" not in (out_dir / CARD).read_text(
        encoding="utf-8", errors="replace"
    ):
        foreign.append(CARD)
    if foreign:
        raise ConfigurationError(f"{out_dir}: holds {foreign[0]}, which is not part of an export; choose another place")
