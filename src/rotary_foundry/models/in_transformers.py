"""Load a model's directory in transformers' classes, without a network and without code from the directory.

transformers gives random values to tensors that it does not find, and only warns. So names are checked before and after
loading. What torch.compile, FSDP or DistributedDataParallel put before names is removed, with a warning; transformers
reads only files, so it then gets a temporary copy. Tensors that are still missing are refused by name.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from rotary_foundry.models.config_json import CONFIG, read_config
from rotary_foundry.models.weights import unwrapped
from rotary_foundry.utils.errors import ConfigurationError, DataError, FoundryError
from rotary_foundry.utils.json_text import read_object
from rotary_foundry.utils.wording import not_opened, one_line

LAYERS = {"num_hidden_layers", "num_layers", "n_layer", "n_layers"}  # config keys for the number of layers
PREFIXES = ("module.",)  # transformers itself reads names with or without the prefix of its own class
NO_MASK = "padding changes what it computes, so it has no attention mask"


def check_stored(directory: Path) -> dict[str, str]:
    """Return the stored name of each tensor of a directory by its name without what other programs put before it.

    Raises:
        ConfigurationError: there is no such directory.
        DataError: two tensors would have one name, or config.json has more layers than there are tensors.
    """
    if not directory.is_dir():  # transformers would look it up on the hub
        raise ConfigurationError(f"{directory}: no such folder; expected the directory of a model")
    names: list[str] = []
    for file in sorted(directory.glob("*.safetensors")):
        with suppress(OSError, SafetensorError), safe_open(file, "pt") as opened:  # loading reports these errors
            names += opened.keys()
    written = read_config(directory) if names and (directory / CONFIG).is_file() else {}
    for key in LAYERS & written.keys():
        if isinstance(written[key], int) and written[key] > len(names):
            raise DataError(
                f"{directory / CONFIG}: {key}: expected at most {len(names):,}, the number of tensors there, got "
                f"{written[key]:,}"
            )
    return unwrapped(names, (), directory, PREFIXES)


@contextmanager
def plain_names(directory: Path) -> Iterator[Path]:
    """Yield a directory for transformers: this one, or a temporary copy whose tensors have the names that it knows.

    Raises:
        FoundryError: as `check_stored`, or a file of the copy cannot be read.
    """
    plain = {stored: name for name, stored in check_stored(directory).items()}
    if all(stored == name for stored, name in plain.items()):
        yield directory
        return
    with tempfile.TemporaryDirectory() as folder:
        for path in directory.iterdir():
            copy = Path(folder, path.name)
            if path.suffix == ".safetensors":
                try:
                    save_file({plain[name]: of for name, of in load_file(path).items()}, copy, {"format": "pt"})
                except (OSError, KeyError, SafetensorError) as error:
                    raise DataError(f"{path}: cannot be read: {error}") from None
            elif path.name.endswith(".safetensors.index.json"):
                files = read_object(path).get("weight_map", {})
                renamed = {plain.get(name, name): file for name, file in files.items()}
                copy.write_text(json.dumps({"metadata": {}, "weight_map": renamed}), encoding="utf-8")
            else:
                copy.symlink_to(path.resolve())
        yield Path(folder)


def check_loaded(path: Path, model: PreTrainedModel, loading: Mapping, needed: str | None = None) -> None:
    """Refuse a model for which tensors were missing, to which transformers gives random values.

    Args:
        loading: transformers' `output_loading_info`.
        needed: what the whole model has, for the error; None: everything but the encoder may be new.

    Raises:
        DataError: names the first such tensor.
    """
    missing = sorted(loading["missing_keys"])
    if needed is None:
        encoder = "" if model.base_model is model else f"{model.base_model_prefix}."
        missing = [name for name in missing if name.startswith(encoder) and "pooler" not in name]
    if missing:
        expected = "" if needed is None else f"; expected {needed}"
        there = f"; it has, for example, {min(loading['unexpected_keys'])}" if loading["unexpected_keys"] else ""
        raise DataError(f"{path}: no tensor {missing[0]}, which would begin with random values{expected}{there}")


def load_theirs(
    auto: type,
    path: Path,
    kind: str,
    needed: str | None,
    rope_parameters: dict | None = None,
    dtype: torch.dtype | str = torch.float32,
) -> PreTrainedModel:
    """Load a Hugging Face directory by one of transformers' Auto classes, in evaluation mode on the CPU.

    Args:
        kind, needed: words for errors; `needed` as in `check_loaded`.
        rope_parameters: replaces those of the directory's configuration.
        dtype: of the weights; "auto": as stored.

    Raises:
        FoundryError: there is no such directory, transformers cannot load it, or tensors are missing; names it.
    """
    transformers.utils.logging.set_verbosity_error()  # missing tensors are refused below, in one line
    transformers.utils.logging.disable_progress_bar()
    given = {"local_files_only": True, "trust_remote_code": False}
    with plain_names(path) as plain:
        try:
            config = AutoConfig.from_pretrained(plain, **given)
            if rope_parameters is not None:
                config.rope_parameters = rope_parameters
            model, loading = auto.from_pretrained(plain, config=config, output_loading_info=True, dtype=dtype, **given)
        except Exception as error:  # transformers raises many types; each is about the content of the directory
            raise DataError(f"{path}: transformers cannot load {kind} from it: {not_opened(error)}") from None
    check_loaded(path, model, loading, needed)
    return model


@contextmanager
def check_runs(path: Path, model: nn.Module) -> Iterator[None]:
    """Refuse a model whose first forward pass, which the caller makes in this context, raises an error.

    Some models have no attention mask (huggingface/transformers#22308), and others need further inputs.

    Raises:
        DataError: names the class of the model and the error.
    """
    try:
        with torch.inference_mode():
            yield
    except FoundryError:  # weights that are not numbers
        raise
    except Exception as error:  # of the model's own code
        raise DataError(
            f"{path}: expected a model that needs only tokens and, if it is an encoder, an attention mask; "
            f"{type(model).__name__} is none: {one_line(error)}"
        ) from error


def check_attention_mask(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a model, with any head, that has no attention mask although padding changes what it computes.

    A model whose mask does not undo all effects of padding, because it has convolutions, is accepted.

    Raises:
        DataError: as `check_runs`.
    """
    was_training = model.training
    model.eval()
    if tokenizer.pad_token is None:
        raise DataError(
            f"{path}: expected a tokenizer with a padding token, found none; set pad_token in tokenizer_config.json"
        )
    short, both = (
        tokenizer(texts, padding=True, return_tensors="pt").to(model.device) for texts in (["a"], ["a", "a b " * 9])
    )
    with check_runs(path, model):
        ids, mask = both["input_ids"], both["attention_mask"]
        (alone, *_), (padded, *_), (unmasked, *_) = (
            model(input_ids=input_ids, attention_mask=attention_mask)[0]
            for input_ids, attention_mask in (
                (short["input_ids"], short["attention_mask"]),
                (ids, mask),
                (ids, torch.ones_like(mask)),
            )
        )
        ignored = torch.equal(padded, unmasked)
        kept = padded if padded.shape == alone.shape else padded[mask[0].bool()]
        if ignored and differ(alone, kept):
            raise ValueError(NO_MASK)
    model.train(was_training)


def differ(alone: Tensor, padded: Tensor) -> bool:
    """Return whether what a model computes for a text differs with padding by more than rounding."""
    tolerance = max(0.01, 16 * torch.finfo(alone.dtype).eps)
    return bool((alone - padded).abs().max() > tolerance * alone.abs().max())
