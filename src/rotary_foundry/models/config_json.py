"""Read a Hugging Face directory's config.json as plain JSON, without torch and transformers."""

from pathlib import Path

from rotary_foundry.models.family import Family, families
from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.json_text import read_object

CONFIG = "config.json"


def read_config(directory: Path) -> dict:
    """Read a directory's config.json.

    Raises:
        DataError: the file is missing or broken.
    """
    return read_object(directory / CONFIG)


def longest_row(written: dict, path: Path, otherwise: int | None = None) -> int:
    """Return how many tokens a document may have according to a config.json.

    Args:
        written: the content of the file.
        path: the file.
        otherwise: the value if the file has none.

    Raises:
        DataError: the value is not a positive integer, or it is missing and `otherwise` is None.
    """
    longest = written.get("max_position_embeddings", otherwise)
    if type(longest) is not int or longest < 1:
        raise DataError(f"{path}: max_position_embeddings: expected a number of tokens, got {longest!r}")
    return longest


def find_family_of(directory: Path) -> Family | None:
    """Return the family of a directory's model according to its config.json; None if it is not one of our families.

    Raises:
        DataError: config.json is missing or broken.
    """
    written = read_config(directory)
    return next((family for family in families() if family.huggingface.recognises(written)), None)


def family_of(directory: Path) -> Family:
    """Return the family of a directory's model according to its config.json.

    Raises:
        DataError: config.json is missing or broken, or the model is not of one of our families.
    """
    family = find_family_of(directory)
    if family is None:
        model_type = read_config(directory).get("model_type")
        known = ", ".join(repr(family.huggingface.model_type) for family in families())
        raise DataError(f"{directory / CONFIG}: model_type: expected {known}, got {model_type!r}")
    return family
