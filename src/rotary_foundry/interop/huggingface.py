"""Read and write directories of transformers: config.json, safetensors, and the tokenizer's files.

- A family converts its config.json; the rest is the same for all families. Tied tensors are written once.
- A setting that our network does not support (a bias, another activation) is refused by name. Otherwise a model would
  load but compute something else, which would be noticed much later. Dropout rates are ignored, because the recipe sets
  them.
- Directories of transformers 4 and 5 can be read. Written directories can be read by both: config.json and
  tokenizer_config.json have the settings under the names of both versions.
- An export is atomic: it is written to a folder beside its destination and then moved. It replaces only an earlier
  export, which is recognised by its card; a downloaded model has another card.
"""

import json
import shutil
import tempfile
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from rotary_foundry.data.fast_tokenizer import open_fast
from rotary_foundry.data.same_tokenizer import check_ids
from rotary_foundry.data.special_tokens import rewrite_config
from rotary_foundry.interop.generation import generation_settings, read_generation
from rotary_foundry.interop.heads import Head
from rotary_foundry.interop.trained_heads import POINTER, PREDICT, TrainedHead
from rotary_foundry.models.config_json import CONFIG, family_of, find_family_of, read_config
from rotary_foundry.models.family import Family, Shape
from rotary_foundry.models.weights import Weights, load_network, unwrapped
from rotary_foundry.runs.run_folder import GENERATION
from rotary_foundry.utils.errors import ConfigurationError, DataError
from rotary_foundry.utils.json_text import read_object
from rotary_foundry.utils.object_store import copy_folder

WEIGHTS, INDEX, CARD = "model.safetensors", "model.safetensors.index.json", "README.md"
TAG = "rotary-foundry"  # in a card's front matter; identifies our directories
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TOKENIZER_FILES += ("chat_template.jinja",)  # of transformers 5; 4 has it in tokenizer_config.json
MORE_TEMPLATES = "additional_chat_templates"  # the folder of all but the default, in transformers 5


def export_model(
    network_state: Mapping[str, Tensor],
    family: Family,
    shape: Shape,
    knobs: Mapping[str, float],
    tokenizer_dir: Path,
    max_position_embeddings: int,
    out_dir: Path,
    card: str | None = None,
    head: Head | TrainedHead | None = None,
    generation: Mapping[str, Any] | None = None,
) -> None:
    """Write a directory that transformers' Auto classes for the model and its tokenizer load without this package.

    A model that transformers does not have is written with its code, for `trust_remote_code=True`.

    Args:
        network_state: the parameters of a network; written in float32.
        family, shape: the network's family and shape.
        knobs: the knobs that belong to its weights, with the values of the last training.
        tokenizer_dir: a Hugging Face fast tokenizer; its files are copied, including the chat template.
        max_position_embeddings: the longest row trained on, in tokens.
        out_dir: the folder to write; created if necessary. An earlier export in it is replaced.
        card: the text of README.md.
        head: a classifier that replaces the decoder, so that the directory is for transformers' class of it; or the
            trained head of a task.
        generation: settings for generation_config.json, which only decoders have; None: those in `tokenizer_dir`.

    Raises:
        ConfigurationError: `out_dir` holds anything but an export.
        DataError: the tokenizer cannot be read or does not fit the model.
    """
    _refuse_foreign(out_dir, {path.name for path in family.huggingface.code})
    tokenizer = load_tokenizer(tokenizer_dir, family, shape)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out_dir.name}-", dir=out_dir.parent) as work:
        new = Path(work) / "new"
        new.mkdir()
        state = network_state if head is None else head.in_place_of_output(family, network_state)
        tensors = family.huggingface.stored_tensors(state, shape, knobs)
        for name, tensor in tensors.items():
            tensors[name] = tensor.detach().to("cpu", torch.float32).contiguous()
        save_file(tensors, new / WEIGHTS, metadata={"format": "pt"})
        (new / WEIGHTS).chmod(0o644)  # safetensors makes files that only the owner can read
        theirs = family.huggingface.write_config(shape, knobs, tokenizer, max_position_embeddings)
        theirs.update({} if head is None else head.settings(family))
        theirs.save_pretrained(new)
        config = read_config(new) | family.huggingface.settings_of_4(shape, knobs)
        (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if family.causal and head is None:
            brought = read_generation(tokenizer_dir) if generation is None else generation
            settings = generation_settings(tokenizer, theirs, brought)
            (new / GENERATION).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        for path in family.huggingface.code:
            shutil.copyfile(path, new / path.name)
        if head is not None:
            head.write_files(new)
        if card is not None:
            (new / CARD).write_text(card, encoding="utf-8")
        for name in TOKENIZER_FILES:
            if (tokenizer_dir / name).is_file():
                shutil.copyfile(tokenizer_dir / name, new / name)
        if (tokenizer_dir / MORE_TEMPLATES).is_dir():
            copy_folder(tokenizer_dir / MORE_TEMPLATES, new / MORE_TEMPLATES)
        rewrite_config(new, model_input_names=["input_ids", "attention_mask"])  # the model takes no token_type_ids
        if out_dir.exists():
            out_dir.rename(Path(work) / "old")
        new.rename(out_dir)


def add_settings_of_4(directory: Path) -> None:
    """Make a model and tokenizer that transformers 5 saved readable by transformers 4.

    Version 4 does not know the tokenizer class that 5 names, and uses its default thetas if it finds none. If the model
    is not of one of our families, only its tokenizer's files are changed.
    """
    rewrite_config(directory)
    family = find_family_of(directory)
    if family is None:
        return
    with suppress(DataError):  # a variant that transformers supports and our network does not
        config = read_config(directory) | family.huggingface.settings_of_4(*family.huggingface.read_config(directory))
        (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_directory(path: str | Path) -> nn.Module:
    """Load a model of one of our families from an exported directory, or any directory that transformers saved.

    Returns:
        A network in float32 on the CPU, in evaluation mode.

    Raises:
        DataError: naming the first thing that is missing or does not fit.
    """
    return load_network(*open_directory(Path(path)))


def open_directory(path: Path) -> tuple[Shape, dict[str, float], Weights]:
    """Return the shape of a directory's model, the knobs of its weights, and the weights, which are read on access.

    Args:
        path: a directory with config.json and model.safetensors, or shards of it with their index.

    Raises:
        DataError: naming the first thing that is missing or does not fit.
    """
    family = family_of(path)
    shape, knobs = family.huggingface.read_config(path)
    stored = SafetensorsWeights(path, family, shape.parameter_shapes())
    weights = family.huggingface.our_weights(stored, shape)
    if read_config(path).get("tie_word_embeddings") is False:
        for name in family.tied.keys() - weights.shapes.keys():
            raise DataError(f"{path / CONFIG}: tie_word_embeddings is False, but there is no tensor {name}")
    weights.check(shape)
    return shape, knobs, weights


class SafetensorsWeights(Weights):
    """The tensors of a directory.

    Args:
        path: the directory.
        family: the model's family.
        expected: names of the model's tensors, which distinguish foreign prefixes from its own.
    """

    def __init__(self, path: Path, family: Family, expected: Collection[str]):
        if not (path / WEIGHTS).is_file() and not (path / INDEX).is_file():
            raise DataError(f"{path}: neither {WEIGHTS} nor {INDEX} found; weights are read only from safetensors")
        file = path / INDEX
        self.files: dict[str, Path] = {}  # by tensor
        shapes: dict[str, list[int]] = {}
        try:
            shards = [WEIGHTS]
            if not (path / WEIGHTS).is_file():
                shards = sorted(set(read_object(file)["weight_map"].values()))
            for shard in shards:
                file = path / shard
                with safe_open(file, "pt") as opened:
                    names = opened.keys()  # the file object itself is not a mapping
                    for name in names:
                        self.files[name], shapes[name] = file, opened.get_slice(name).get_shape()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise DataError(f"{file}: cannot be read: {error}") from None
        self.theirs = unwrapped(shapes, expected, path)
        super().__init__(path, family, {name: shapes[stored] for name, stored in self.theirs.items()})

    def called(self, name: str) -> str:
        return self.theirs.get(name, name)

    def read(self, name: str) -> Tensor:
        stored = self.theirs[name]
        with safe_open(self.files[stored], "pt") as opened:
            return opened.get_tensor(stored)


def load_tokenizer(path: Path, family: Family, shape: Shape) -> PreTrainedTokenizerFast:
    """Load a directory's fast tokenizer.

    Raises:
        DataError: it cannot be read, lacks a special token that the family needs, or has ids without an embedding.
    """
    if not (path / "tokenizer.json").is_file():
        raise DataError(f"{path}: expected a directory of a Hugging Face fast tokenizer; tokenizer.json is missing")
    tokenizer = open_fast(path)
    for token in family.huggingface.special_tokens:
        if getattr(tokenizer, token) is None:
            raise DataError(f"{path}: the tokenizer has no {token}")
    check_ids(tokenizer, "the model", shape.vocab_size)
    return tokenizer


def _refuse_foreign(out_dir: Path, code: set[str]) -> None:
    if not out_dir.exists():
        return
    if not out_dir.is_dir():
        raise ConfigurationError(f"{out_dir}: expected a directory, found a file; choose another place")
    ours = {CONFIG, GENERATION, WEIGHTS, CARD, POINTER, PREDICT.name, *TOKENIZER_FILES, MORE_TEMPLATES, *code}
    foreign = sorted({path.name for path in out_dir.iterdir()} - ours)
    if (out_dir / CARD).is_file() and f"- {TAG}\n" not in (out_dir / CARD).read_text(
        encoding="utf-8", errors="replace"
    ):
        foreign.append(CARD)
    if foreign:
        raise ConfigurationError(f"{out_dir}: holds {foreign[0]}, which is not part of an export; choose another place")
