"""Import a model from elsewhere as a directory in the form of our own exports.

`init_from`, `load_model` and transformers take such a directory. It is complete: float32 weights in one safetensors
file, the tokenizer, and only settings that our network supports. So problems of a model are found at the import and not
when training begins.
"""

import tempfile
from pathlib import Path

from rotary_foundry.data.same_tokenizer import check_same_tokenizer
from rotary_foundry.data.special_tokens import ROLES_FILE
from rotary_foundry.interop.card import import_card
from rotary_foundry.interop.generation import STOPS, check_stops, read_generation
from rotary_foundry.interop.huggingface import TOKENIZER_FILES, export_model, open_directory
from rotary_foundry.models.config_json import CONFIG, longest_row, read_config
from rotary_foundry.models.family import families
from rotary_foundry.models.weights import ForeignCheckpoint
from rotary_foundry.runs.run_folder import GENERATION
from rotary_foundry.utils.errors import ConfigurationError, DataError, check_utf_8
from rotary_foundry.utils.json_text import read_object


def import_model(
    source: str | Path, out_dir: str | Path, recipe: str | Path | None = None, tokenizer: str | Path | None = None
) -> str | None:
    """Write a model from elsewhere as a directory in our form.

    Args:
        source: a transformers directory of one of our families, a GGUF file, or a file of a family's original training
            code.
        out_dir: the folder to write; created if necessary. An earlier export or import in it is replaced.
        recipe: the training YAML of a file; not needed if the file has the model's configuration.
        tokenizer: a directory with the model's tokenizer, if it is not in `source`; it is refused if its ids differ
            from those of the source's own.

    Returns:
        A description of what `source` has that is not imported; None if there is nothing.

    Raises:
        FoundryError: `source` has no such model, or our network does not support it; names the first key that differs.
    """
    check_utf_8(source, out_dir, tokenizer)
    source, out_dir = Path(source), Path(out_dir)
    if not source.exists():
        raise ConfigurationError(f"{source}: no such file or folder")
    if source.is_dir():
        if recipe is not None:
            raise ConfigurationError(f"--recipe is for a .pt file; {source} has its {CONFIG}")
        if source.resolve() == out_dir.resolve():
            raise ConfigurationError(f"{out_dir}: is also the source; choose another place")
        _import_directory(source, out_dir, source if tokenizer is None else Path(tokenizer))
        return None
    return _import_file(source, out_dir, None if recipe is None else Path(recipe), tokenizer)


def _import_directory(source: Path, out_dir: Path, tokenizer: Path) -> None:
    if not (source / CONFIG).is_file():
        raise ConfigurationError(
            f"{source}: no {CONFIG}; expected a transformers directory, a .pt or a .gguf file. For a run or checkpoint "
            "of this project, use export"
        )
    shape, knobs, weights = open_directory(source)
    if not (tokenizer / "tokenizer.json").is_file():
        raise ConfigurationError(
            f"{tokenizer}: no tokenizer.json; give --tokenizer, the folder of the model's tokenizer"
        )
    check_same_tokenizer(tokenizer, source, f"leave out --tokenizer: {source} has its own")
    written = read_config(source)
    longest = longest_row(written, source / CONFIG)
    facts = {"transformers": written["transformers_version"]} if "transformers_version" in written else {}
    check_stops(written, source / CONFIG)
    generation = read_generation(source) or read_generation(tokenizer) or {STOPS: written.get(STOPS)}
    sentence = "Imported from a directory of transformers; values are as they were there, in float32."
    card = import_card(out_dir.name, weights.family, shape, knobs, longest, sentence, facts)
    export_model(weights, weights.family, shape, knobs, tokenizer, longest, out_dir, card, generation=generation)


def _import_file(source: Path, out_dir: Path, recipe: Path | None, tokenizer: str | Path | None) -> str | None:
    opened = _open_file(source, recipe)
    with tempfile.TemporaryDirectory() as folder:
        for name in (*TOKENIZER_FILES, GENERATION):
            if name in opened.tokenizer:
                (Path(folder) / name).write_text(opened.tokenizer[name], encoding="utf-8")
        if tokenizer is not None:
            check_same_tokenizer(Path(tokenizer), Path(folder), f"leave out --tokenizer: {source} has its own")
        elif "tokenizer.json" not in opened.tokenizer:
            raise ConfigurationError(
                f"{source}: {opened.no_tokenizer}; give --tokenizer, the folder of the model's tokenizer"
            )
        tokenizer = Path(tokenizer or folder)
        longest = opened.longest_row or _longest(tokenizer, source)
        generation = read_generation(Path(folder)) or read_generation(tokenizer)
        family, sentence = opened.weights.family, f"Imported from `{source.name}`, {opened.described}."
        card = import_card(out_dir.name, family, opened.shape, opened.knobs, longest, sentence, opened.facts)
        network, shape, knobs = opened.weights, opened.shape, opened.knobs
        export_model(network, family, shape, knobs, tokenizer, longest, out_dir, card, generation=generation)
    return opened.not_taken


def _open_file(source: Path, recipe: Path | None) -> ForeignCheckpoint:
    """Open a checkpoint file with the first family that accepts it; raises the last family's error if none does."""
    refused = ConfigurationError(f"{source}: no family here reads files; give a transformers directory")
    for family in families():
        try:
            opened = family.open_file(source, recipe)
        except DataError as error:
            refused = error
            continue
        if opened is not None:
            return opened
    raise refused


def _longest(tokenizer: Path, source: Path) -> int:
    """Return the model's maximum length from the tokenizer, because the checkpoint does not have it."""
    try:
        longest = read_object(tokenizer / ROLES_FILE).get("model_max_length")
    except DataError:
        longest = None
    if not isinstance(longest, int) or not 0 < longest < 10**9:  # transformers writes 1e30 for "none"
        raise ConfigurationError(
            f"{source}: the maximum number of tokens of a document is unknown; give --recipe, a YAML with max_seq_len"
        )
    return longest
