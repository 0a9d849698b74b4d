"""Whether a checkpoint could run code when it is read: it is looked through before anything unpickles it.

torch's sharded checkpoints have tensors, which are read as nothing but weights, and two things that torch and Composer
unpickle freely, so that a checkpoint from elsewhere could call what it likes: `.metadata`, and an item for each value
that is no tensor (the timestamp, the generators' states). Here the first is unpickled with the few names that it needs,
and of the others the names are read from the pickle, without following it.

A `.pt` file of Composer's is one pickle with all of that in it, and with whatever its callbacks and datasets saved, so
no list of names would do for all. torch reads it with `weights_only`, and where that refuses a name, the name gets a
stand-in, which takes anything and does nothing: whatever the file would call is not even imported. A defaultdict
becomes a plain dict, because torch 2.15 sets the items of nothing else. A file that names what runs commands or code is
refused on top of that. Nothing hangs on that list: it could do no harm here, but it would elsewhere.
"""

import io
import pickle
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.wording import one_line

METADATA = ".metadata"
DESCRIPTIONS = (BytesStorageMetadata, ChunkStorageMetadata, Metadata, MetadataIndex, StorageMeta, TensorProperties)
DESCRIPTIONS += (TensorStorageMetadata, _MEM_FORMAT_ENCODING, _StorageInfo)
NAMES = {(description.__module__, description.__name__) for description in DESCRIPTIONS} | {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
}
DEFAULTDICT = "collections.defaultdict"
# that Composer's items have: durations, torch's version, the state of NumPy's generator under either of its homes
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
    """See that a checkpoint, all of its files in `folder`, runs nothing when it is read.

    Raises:
        DataError: it would, or what it holds cannot be told; the file and the name that it would call.
    """
    metadata = read_metadata(folder)
    for index, stored in metadata.storage_data.items():
        path = folder / stored.relative_path
        if path.parent != folder:
            raise DataError(f"{folder / METADATA}: '{index.fqn}' is said to lie outside of the checkpoint, in {path}")
        if isinstance(metadata.state_dict_metadata.get(index.fqn), BytesStorageMetadata):
            _refuse_item(path, index.fqn, stored)


def read_metadata(folder: Path) -> Metadata:
    """What a checkpoint says of its contents; nothing in it is called that could do harm.

    Raises:
        DataError: it names something that is no description, or is broken.
    """
    path = folder / METADATA
    try:
        with open(path, "rb") as file:
            metadata = _DescriptionsOnly(file).load()
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # a broken pickle raises anything
        raise DataError(f"{path}: cannot be read: {in_a_line(error)}") from error
    if not isinstance(metadata, Metadata):
        raise DataError(f"{path}: is not the metadata of a checkpoint")
    return metadata


class StandIn:
    """Takes the place of whatever a file names that is no weight; made of anything, it keeps nothing."""

    def __new__(cls, *args: object) -> "StandIn":
        return super().__new__(cls)

    def __init__(self, *args: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _plain_dict(*args: object) -> dict:
    """Take the place of collections.defaultdict."""
    return {}


def read_saved(path: Path) -> object:
    """What `torch.save` wrote: plain values and tensors, in the file until they are used; a StandIn for all else.

    Raises:
        DataError: it is no such file, it is broken, or it names something to run.
    """
    try:
        names = get_unsafe_globals_in_checkpoint(path)
    except Exception as error:  # it is no file, no archive, or no pickle that torch wrote
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


def _refuse_item(path: Path, name: str, stored: _StorageInfo) -> None:
    try:
        with open(path, "rb") as file:
            file.seek(stored.offset)
            called = set(get_unsafe_globals_in_checkpoint(io.BytesIO(file.read(stored.length)))) - HARMLESS
    except Exception as error:  # it is no pickle that torch wrote
        raise DataError(
            f"{path}: '{name}' cannot be looked through ({in_a_line(error)}); do not use this checkpoint"
        ) from error
    if called:
        raise DataError(f"{path}: '{name}': {_would_call(min(called))}")


def _would_call(name: str) -> str:
    return f"reading it would use {name}, which no checkpoint needs and which could run any code; do not use it"


def in_a_line(error: BaseException) -> str:
    """What a library says is wrong; of torch's `weights_only`, without its advice to read the file unsafely."""
    return one_line(error).split("WeightsUnpickler error: ")[-1]
