"""All access of this project to object stores (`s3://`, `gs://`, `az://` and others).

There are two clients, each needed by a library:

- For `data_prep`: fsspec over obstore (`filesystem` and the functions after it), because datatrove's DataFolder takes
  fsspec. s3fs cannot be installed together with the botocore that Streaming needs. The file systems are explicit
  subclasses and not made by `obstore.fsspec.register`, because classes made there cannot be pickled, and datatrove
  pickles a pipeline to send it to workers.
- For training: boto3. Streaming downloads the shards with its own clients, so `fetch` downloads a corpus' other files
  with the same clients, and addresses and credentials have the same meaning for both. A `Bucket`, for checkpoints, is
  Composer's S3ObjectStore, which uses boto3 too. obstore is not used for it: its single GenericError does not
  distinguish a failing store from a wrong setting, and training ends differently for the two (`is_fault`).

Both read credentials from the environment (AWS_ACCESS_KEY_ID and so on) or from the machine's role, and the server's
address from S3_ENDPOINT_URL or AWS_ENDPOINT_URL. For fsspec, the address is an argument of the file system and so part
of fsspec's cache key. So two servers in one process do not share a file system.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
from obstore.exceptions import BaseError as StoreError
from obstore.fsspec import BufferedFile, FsspecStore

from rotary_foundry.utils.errors import DataError, Fault, FoundryError
from rotary_foundry.utils.wording import one_line

if TYPE_CHECKING:
    from botocore.exceptions import ClientError
    from datatrove.io import DataFolder

RETRIES = 10  # attempts of a request, with growing pauses
CONNECT_TIMEOUT = 10  # seconds for a connection to a Bucket's server; boto3 tries several times
UPLOADS = 4  # files at a time; each holds up to 12 chunks of 5 MB in memory


class _Store(FsspecStore):
    async def _info(self, path: str, **options) -> dict:
        """Add the bucket to a file's name. obstore 0.12.1 leaves it out, and fsspec then does not find the file."""
        return await super()._info(path, **options) | {"name": self._strip_protocol(path)}

    def _open(self, path: str, mode: str = "rb", **options) -> BufferedFile:
        """Check first that the file exists.

        obstore asks for the size in a constructor. If the file is missing, a half-made object is closed, which prints a
        traceback.
        """
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
    """Return whether `path` has a protocol, as in s3://bucket/folder."""
    return "://" in path


def filesystem(path: str) -> fsspec.AbstractFileSystem:
    """Return the file system of `path`.

    Raises:
        DataError: the protocol is not one of `STORES`.
    """
    if not is_remote(path):
        return fsspec.filesystem("file")
    protocol = path.split("://")[0]
    if protocol not in STORES:
        known = ", ".join(f"{store}://" for store in STORES)
        raise DataError(f"{path}: unknown store {protocol}://; expected a local path or one of {known}")
    options = {"retry_config": {"max_retries": RETRIES}}
    endpoint = os.environ.get("S3_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL")
    if protocol == "s3" and endpoint:
        options |= {"endpoint": endpoint, "client_options": {"allow_http": endpoint.startswith("http://")}}
    return fsspec.filesystem(protocol, **options)


def data_folder(path: str) -> "DataFolder":
    """Return the folder `path` as datatrove's DataFolder."""
    from datatrove.io import DataFolder  # takes a second to import, and training does not need it

    return DataFolder(path or ".", fs=filesystem(path))


@contextmanager
def named(path: str) -> Iterator[None]:
    """Turn an error of a store or a disk into a one-line DataError that names `path`."""
    try:
        yield
    except (StoreError, OSError) as error:
        said = str(error).strip().splitlines()
        raise DataError(
            f"{path}: cannot be read or written: {said[0].strip() if said else type(error).__name__}"
        ) from error


def is_dangling(path: str) -> bool:
    """Return whether a local path is a link to nothing."""
    return not is_remote(path) and os.path.islink(path) and not os.path.exists(path)


def exists(path: str) -> bool:
    """Return whether a file or folder exists.

    Raises:
        DataError: the store does not answer.
    """
    with named(path):
        return filesystem(path).exists(path)


def read_text(path: str) -> str:
    """Read a file of UTF-8 text.

    Raises:
        DataError: the file does not exist, or cannot be read.
    """
    with named(path):
        return filesystem(path).cat_file(path).decode()


def write_text(path: str, text: str) -> None:
    """Write a file of UTF-8 text; atomic in a store.

    Raises:
        DataError: the file cannot be written.
    """
    with named(path):
        filesystem(path).pipe_file(path, text.encode())


def sizes(folder: str) -> dict[str, int]:
    """Return the size in bytes of each file in a folder, by its name in it.

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
            copy_folder(folder, destination)


def copy_folder(folder: str | Path, destination: str | Path) -> None:
    """Copy all files in the local `folder` into the local folder `destination`, which need not exist.

    Raises:
        OSError: a file cannot be copied; has the first such file's message, as shutil's has those of all in one line.
    """
    try:
        shutil.copytree(folder, destination, dirs_exist_ok=True)
    except shutil.Error as error:
        raise OSError(error.args[0][0][2]) from error


def fetch(remote: str, local: Path) -> None:
    """Download a file with Streaming's own clients, from any address that Streaming accepts.

    Raises:
        DataError: the file does not exist, or cannot be downloaded.
        Fault: the store does not answer, or has an internal error.
    """
    from streaming.base.storage.download import CloudDownloader  # slow to import, and seldom needed

    try:
        CloudDownloader.direct_download(remote, str(local))
    except Exception as error:  # each store has errors of its own
        raise (Fault if is_fault(error) else DataError)(f"{remote}: cannot be fetched: {one_line(error)}") from error


class Bucket:
    """Objects in S3 below an address, by their names relative to it. Call its methods inside `reported`.

    Args:
        url: `s3://bucket/path`.

    Raises:
        FoundryError: the endpoint in the environment is not a URL.
    """

    def __init__(self, url: str):
        from composer.utils.object_store import S3ObjectStore

        self.url = url
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        with self.reported(ValueError):
            self.objects = S3ObjectStore(bucket, prefix, client_config={"connect_timeout": CONNECT_TIMEOUT})

    def sizes(self, under: str = "") -> dict[str, int]:
        """Return the size of each object whose name begins with `under`; Composer's list_objects has no sizes."""
        pages = self.objects.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.objects.bucket, Prefix=self.objects.get_key(under)
        )
        objects = [found for page in pages for found in page.get("Contents", [])]
        return {found["Key"].removeprefix(self.objects.prefix): found["Size"] for found in objects}

    def read(self, name: str) -> bytes:
        return self.objects.client.get_object(**self._target(name))["Body"].read()

    def write(self, name: str, content: bytes) -> None:
        self.objects.client.put_object(**self._target(name), Body=content)

    def look(self, name: str) -> tuple[bytes, tuple] | None:
        """Return an object's content, and its ETag and time of writing; None if there is none."""
        from botocore.exceptions import ClientError

        try:
            found = self.objects.client.get_object(**self._target(name))
        except ClientError as error:
            if _status(error) == 404 and error.response["Error"]["Code"] != "NoSuchBucket":
                return None
            raise
        return found["Body"].read(), (found["ETag"], found["LastModified"])

    def write_over(self, name: str, content: bytes, etag: str | None) -> bool:
        """Write an object over the one with this ETag, or where there is none; return False if another is there.

        If the store does not support conditional writes, the object is written without a condition.
        """
        from botocore.exceptions import ClientError

        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        try:
            self.objects.client.put_object(**self._target(name), Body=content, **condition)
        except ClientError as error:
            if _status(error) in (404, 409, 412) and error.response["Error"]["Code"] != "NoSuchBucket":
                return False
            if _status(error) != 501:
                raise
            self.write(name, content)
        return True

    def remove(self, name: str) -> None:
        self.objects.client.delete_object(**self._target(name))

    def upload(self, name: str, path: Path) -> None:
        self.objects.upload_object(name, path)

    def download(self, name: str, path: Path) -> None:
        self.objects.download_object(name, path, overwrite=True)

    def _target(self, name: str) -> dict[str, str]:
        return {"Bucket": self.objects.bucket, "Key": self.objects.get_key(name)}

    @contextmanager
    def reported(self, *others: type[Exception]) -> Iterator[None]:
        """Turn an error of the store into a FoundryError: a Fault if it does not answer, or has an internal error."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError, Boto3Error, OSError, *others) as error:
            raise (Fault if is_fault(error) else FoundryError)(
                f"'save_folder': {self.url}: {one_line(error)} (endpoint and credentials come from the "
                "environment: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and others that boto3 reads)"
            ) from error


def is_fault(error: BaseException | None) -> bool:
    """Return whether boto3's error means that a store does not answer or has an internal error, not a user error."""
    from boto3.exceptions import RetriesExceededError, S3UploadFailedError
    from botocore.exceptions import ClientError, ConnectionError, HTTPClientError

    if isinstance(error, S3UploadFailedError):
        error = error.__context__  # boto3 wraps the original error
    if isinstance(error, ClientError):
        return _status(error) >= 500
    return isinstance(error, (ConnectionError, HTTPClientError, RetriesExceededError))


def _status(error: "ClientError") -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
