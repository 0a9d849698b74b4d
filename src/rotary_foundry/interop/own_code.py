"""Load an export of a model that transformers lacks, running this package's code and not the export's.

An export of such a family carries its code for `trust_remote_code=True`, which runs any code in the directory's file.
If this package is installed, that is not needed: its own copy of the same file is registered with transformers' Auto
classes, under the model type of the family. Then `from_pretrained` finds the classes and runs no code of the directory.
"""

import shutil
from importlib import import_module
from pathlib import Path

import transformers

from rotary_foundry.models.config_json import CONFIG, find_family_of, read_config
from rotary_foundry.models.family import Family
from rotary_foundry.utils.errors import DataError


def register_own_code(path: str | Path) -> None:
    """Make transformers able to load a directory of one of our families; do nothing for any other model.

    Raises:
        DataError: config.json is missing or broken, or has a setting that our network does not support, or has another
            program's form of the model, which transformers would load as a different model.
    """
    family = _family(path)
    if family is None:
        return
    written = read_config(Path(path))
    if written.get("model_type") != family.huggingface.model_type:
        raise DataError(
            f"{Path(path) / CONFIG}: a {family.title} in another program's form, which transformers would load as "
            f"another model; make a directory of it first: rotary-foundry import {path} DIRECTORY"
        )
    family.huggingface.read_config(Path(path))  # transformers does not check the types of its values
    code = import_module(f"{type(family).__module__}.{family.huggingface.code[0].stem}")
    for auto, name in family.huggingface.auto_map.items():
        cls = getattr(code, name)
        if auto == "AutoConfig":
            transformers.AutoConfig.register(family.huggingface.model_type, cls, exist_ok=True)
        else:
            getattr(transformers, auto).register(cls.config_class, cls, exist_ok=True)


def copy_own_code(path: str | Path, directory: Path) -> None:
    """Copy the code of the export at `path`, if it carries any, into `directory`, which has a model made from it."""
    family = _family(path)
    for file in () if family is None else family.huggingface.code:
        shutil.copyfile(file, directory / file.name)


def _family(path: str | Path) -> Family | None:
    """Return the family of a directory's model, if transformers does not have the model."""
    if not (Path(path) / CONFIG).is_file():
        return None
    family = find_family_of(Path(path))
    return family if family is not None and family.huggingface.code else None
