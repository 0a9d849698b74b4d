"""Check that reading a checkpoint runs no code, before anything unpickles it.

A sharded checkpoint of torch has tensors, which are read only as weights, and two kinds of pickles that torch and
Composer load without restriction: `.metadata`, and an item for each value that is not a tensor (the timestamp, the
states of generators). So a checkpoint from elsewhere could call any function. This module unpickles `.metadata` with
only the few names that it needs. For the other items it reads the names in the pickle without executing it.

A `.pt` file of Composer is one pickle with all of this, and with the state of any callback or dataset, so no fixed list
of allowed names is sufficient. torch reads it with `weights_only`. A name that this refuses is replaced by a stand-in
that accepts anything and does nothing, so the module that the file names is not even imported. A defaultdict becomes a
plain dict, because torch 2.15 sets items only of dicts. In addition, a file is refused if it names a function that runs
commands or code. Safety does not depend on this list: the file could do no harm here, but it could elsewhere.
"""

import io
import pickle
from pathlib import Path

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from rotary_foundry.compat.torch import MemoryFormat, StorageInfo
from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.wording import one_line

METADATA = ".metadata"
DESCRIPTIONS = (BytesStorageMetadata, ChunkStorageMetadata, Metadata, MetadataIndex, StorageMeta, TensorProperties)
DESCRIPTIONS += (TensorStorageMetadata, MemoryFormat, StorageInfo)
NAMES = {(description.__module__, description.__name__) for description in DESCRIPTIONS} | {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
}
DEFAULTDICT = "collections.defaultdict"
# names in Composer's items: durations, torch's version, the state of NumPy's generator under both of its module names
HARMLESS = {
    "datetime.timedelta",
    "torch.torch_version.TorchVersion",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray._reconstruct",
}
# modules and functions that run commands or code; `commands` is what protocol 2 calls subprocess
RUNNING = {"os", "posix", "nt", "sys", "subprocess", "commands", "pty", "runpy", "importlib", "shutil", "pickle"}
RUNNING |= {f"builtins.{name}" for name in ("eval", "exec", "compile", "__import__", "open", "getattr", "setattr")}


def refuse_code(folder: Path) -> None:
    """Check that reading a checkpoint, with all of its files in `folder`, runs no code.

    Raises:
        DataError: reading it would run code, or its content cannot be checked; names the file and the function.
    """
    metadata = read_metadata(folder)
    for index, stored in metadata.storage_data.items():
        path = folder / stored.relative_path
        if path.parent != folder:
            raise DataError(
                f"{folder / METADATA}: '{index.fqn}' refers to {path}, outside the checkpoint; do not use it"
            )
        if isinstance(metadata.state_dict_metadata.get(index.fqn), BytesStorageMetadata):
            _refuse_item(path, index.fqn, stored)


def read_metadata(folder: Path) -> Metadata:
    """Read the metadata of a checkpoint, allowing only harmless names.

    Raises:
        DataError: the metadata is broken, or names anything other than descriptions of tensors.
    """
    path = folder / METADATA
    try:
        with open(path, "rb") as file:
            metadata = _DescriptionsOnly(file).load()
        if not isinstance(metadata, Metadata):
            raise DataError("is not the metadata of a checkpoint")
        _check_whole(metadata)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # a broken pickle raises anything
        raise DataError(f"{path}: cannot be read: {in_a_line(error)}") from error
    return metadata


def _check_whole(metadata: Metadata) -> None:
    """Raise an error of any type if descriptions lack an attribute, or have one of another type."""
    for index, stored in metadata.storage_data.items():
        whole = isinstance(index, MetadataIndex) and isinstance(index.fqn, str) and isinstance(stored, StorageInfo)
        if not whole or not isinstance(stored.relative_path, str) or stored.offset < 0 or stored.length < 0:
            raise ValueError(f"the place of {index} is not one of a file")
    for name, described in metadata.state_dict_metadata.items():
        if isinstance(described, TensorStorageMetadata) and not (
            all(type(size) is int and size >= 0 for size in described.size)
            and isinstance(described.properties.dtype, torch.dtype)
            and all(isinstance(chunk, ChunkStorageMetadata) for chunk in described.chunks)
        ):
            raise ValueError(f"{name} is not described as a tensor")


class StandIn:
    """Replaces any class or function that a file names; it accepts any arguments and stores nothing."""

    def __new__(cls, *args: object) -> "StandIn":
        return super().__new__(cls)

    def __init__(self, *args: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _plain_dict(*args: object) -> dict:
    """Replace collections.defaultdict."""
    return {}


def read_saved(path: Path) -> object:
    """Read a file of `torch.save`: memory-mapped tensors, plain values and dicts; anything else becomes a StandIn.

    Raises:
        DataError: the file is not one of `torch.save`, is broken, or names a function that runs commands or code.
    """
    try:
        names = get_unsafe_globals_in_checkpoint(path)
    except Exception as error:  # not a file, not an archive, or not a pickle that torch wrote
        raise DataError(f"{path}: cannot be read as a file of torch.save's: {in_a_line(error)}") from error
    foul = sorted(name for name in names if {name, name.split(".")[0]} & RUNNING)
    if foul:
        raise DataError(f"{path}: {_would_call(foul[0])}")
    try:
        with safe_globals([(_plain_dict if name == DEFAULTDICT else StandIn, name) for name in names]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise DataError(f"{path}: cannot be read: {in_a_line(error)}") from error


class _DescriptionsOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or (module, name) in NAMES:
            return super().find_class(module, name)
        raise DataError(_would_call(f"{module}.{name}"))


def _refuse_item(path: Path, name: str, stored: StorageInfo) -> None:
    try:
        with open(path, "rb") as file:
            file.seek(stored.offset)
            called = set(get_unsafe_globals_in_checkpoint(io.BytesIO(file.read(stored.length)))) - HARMLESS
    except Exception as error:  # not a pickle that torch wrote
        raise DataError(
            f"{path}: '{name}' cannot be checked ({in_a_line(error)}); do not use this checkpoint"
        ) from error
    if called:
        raise DataError(f"{path}: '{name}': {_would_call(min(called))}")


def _would_call(name: str) -> str:
    return f"reading it would use {name}, which a checkpoint does not need and which could run any code; do not use it"


def in_a_line(error: BaseException) -> str:
    """Return a library's message as one line, without the advice of `weights_only` to read the file unsafely."""
    return one_line(error).split("WeightsUnpickler error: ")[-1]
