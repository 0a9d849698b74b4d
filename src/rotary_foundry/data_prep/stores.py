"""Paths on this machine and in object stores, alike: `s3://`, `gs://`, `az://` by fsspec over obstore.

s3fs cannot be installed beside the botocore that Streaming wants; obstore needs no botocore, and its fsspec classes
carry datatrove's DataFolder. They are subclassed here by name, and not made by `obstore.fsspec.register`, because
classes made there cannot be pickled, and datatrove pickles a pipeline into its workers.

Credentials come from the environment (AWS_ACCESS_KEY_ID and so on) or from the machine's role; the server from
S3_ENDPOINT_URL, where Streaming and Composer look for it, or AWS_ENDPOINT_URL. The address is an argument of the file
system and so part of the key that fsspec keeps file systems by: two servers in one process are kept apart.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
from datatrove.io import DataFolder
from obstore.exceptions import BaseError
from obstore.fsspec import BufferedFile, FsspecStore

from rotary_foundry.utils.errors import DataError

RETRIES = 10  # of a request, with growing pauses
UPLOADS = 4  # files at a time; each holds up to 12 chunks of 5 MB in memory


class _Store(FsspecStore):
    async def _info(self, path: str, **options) -> dict:
        """obstore leaves the bucket out of a file's name (0.12.1), and fsspec's folders then do not know the file."""
        return await super()._info(path, **options) | {"name": self._strip_protocol(path)}

    def _open(self, path: str, mode: str = "rb", **options) -> BufferedFile:
        """obstore asks for the size in a constructor, and a file that is not there is then closed half made, which
        prints a traceback."""
        if mode == "rb":
            options["size"] = self.info(path)["size"]
        return super()._open(path, mode, **options)


class S3(_Store):
    protocol = "s3"


class GoogleStorage(_Store):
    protocol = "gs"


class Azure(_Store):
    protocol = "az"


STORES = {store.protocol: store for store in (S3, GoogleStorage, Azure)}
for _protocol, _store in STORES.items():
    fsspec.register_implementation(_protocol, _store, clobber=True)


def is_remote(path: str) -> bool:
    """Whether `path` has a protocol, as in s3://bucket/folder."""
    return "://" in path


def filesystem(path: str) -> fsspec.AbstractFileSystem:
    """The file system that `path` is in.

    Raises:
        DataError: a protocol that is none of `STORES`.
    """
    if not is_remote(path):
        return fsspec.filesystem("file")
    protocol = path.split("://")[0]
    if protocol not in STORES:
        known = ", ".join(f"{store}://" for store in STORES)
        raise DataError(f"{path}: no store is known by {protocol}://; a local path or one of {known} is wanted")
    options = {"retry_config": {"max_retries": RETRIES}}
    endpoint = os.environ.get("S3_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL")
    if protocol == "s3" and endpoint:
        options |= {"endpoint": endpoint, "client_options": {"allow_http": endpoint.startswith("http://")}}
    return fsspec.filesystem(protocol, **options)


def data_folder(path: str) -> DataFolder:
    """The folder `path`, for datatrove."""
    return DataFolder(path or ".", fs=filesystem(path))


@contextmanager
def named(path: str) -> Iterator[None]:
    """What a store or a disk says against `path`, as a DataError of one line."""
    try:
        yield
    except (BaseError, OSError) as error:
        said = str(error).strip().splitlines()
        raise DataError(
            f"{path}: cannot be read or written: {said[0].strip() if said else type(error).__name__}"
        ) from error


def exists(path: str) -> bool:
    """Whether there is such a file or folder.

    Raises:
        DataError: the store cannot be asked.
    """
    with named(path):
        return filesystem(path).exists(path)


def read_text(path: str) -> str:
    """The UTF-8 text of a file.

    Raises:
        DataError: there is no such file, or it cannot be had.
    """
    with named(path):
        return filesystem(path).cat_file(path).decode()


def write_text(path: str, text: str) -> None:
    """Write a file of UTF-8 text; in a store it appears whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    with named(path):
        filesystem(path).pipe_file(path, text.encode())


def sizes(folder: str) -> dict[str, int]:
    """The bytes of each file in a folder, by its name there.

    Raises:
        DataError: the folder cannot be listed.
    """
    with named(folder):
        return {name: info["size"] for name, info in data_folder(folder).find("", detail=True).items()}


def upload(folder: str | Path, destination: str) -> None:
    """Copy all files in the local `folder` into the folder `destination`, which need not exist.

    Raises:
        DataError: a file cannot be written there.
    """
    with named(destination):
        if is_remote(destination):
            store = filesystem(destination)
            store.put(f"{folder}/", f"{destination.rstrip('/')}/", recursive=True, batch_size=UPLOADS)
        else:
            shutil.copytree(folder, destination, dirs_exist_ok=True)
