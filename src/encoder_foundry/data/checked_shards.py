"""Shards checked by hash before a row of them is used, and named when they are damaged, missing or slow to come.

Streaming compares hashes only of what it has just downloaded or is about to decompress, and only when asked to. What it
finds decompressed from an earlier run it reads as it is. So a process here also hashes every such file once, before its
first row. A decompressed file that fails is made anew from its compressed form, and a copy of a remote shard is fetched
anew: nothing is lost by that. What cannot be had in this way is refused.

Streaming's prefetch threads are no place for an error: it ends the iteration without a word, and leaves the shard
marked as being prepared, for which the other processes of the node then wait for ever. So these threads leave a shard
that cannot be had to whoever reads a row of it: there it is tried once more, and the error ends the run as any other.

Shards without hashes are refused. `data_prep` has always written them, so only shards of another maker lack them.
"""

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streaming import Stream, StreamingDataset
from streaming.base.dataset import _ShardState
from streaming.base.format import FileInfo
from streaming.base.format.mds import MDSReader
from streaming.base.hashing import get_hash
from streaming.base.world import World

from encoder_foundry.data.rows import SHARD_HASH
from encoder_foundry.errors import DataError

STALL_SECONDS = 60.0  # after which, and each time again, a shard that is waited for is named
REMEDY = "restore it from a copy, or prepare the data again with `python data_prep CONFIG`"

log = logging.getLogger(__name__)


class CheckedStream(Stream):
    """The shards of one folder.

    Args:
        local: the folder, or the cache of `remote`.
        remote: where the folder is fetched from.
    """

    def __init__(self, local: str, remote: str | None):
        super().__init__(local=local, remote=remote, validate_hash=SHARD_HASH)

    def get_shards(self, world: World, allow_unsafe_types: bool) -> list[MDSReader]:
        index = f"{self.local}/index.json"
        try:
            shards = super().get_shards(world, allow_unsafe_types)
        except Exception as error:  # a broken file, any part of it missing, or a store's own error
            raise DataError(f"{index}: cannot be read: {_one_line(error)}; {REMEDY}") from error
        if any(SHARD_HASH not in info.hashes for shard in shards for info in (shard.raw_data, _stored(shard))):
            raise DataError(
                f"{index}: has no {SHARD_HASH} hashes; prepare the data again with `python data_prep CONFIG`"
            )
        return shards

    def prepare_shard(self, shard: MDSReader) -> int:
        """Fetch and decompress a shard, hashes compared.

        Raises:
            DataError: the shard is missing or damaged, here or at the remote.
        """
        copied = not self.safe_keep_zip
        there = Path(self.local, _stored(shard).basename)
        source = f"{self.remote}/{there.name}" if copied else str(there)
        with _named_if_it_stalls(source):
            try:
                return self._prepare_copy(shard, source) if copied else super().prepare_shard(shard)
            except Exception as error:  # each store has errors of its own
                damage = _damage(there, _stored(shard)) if there.exists() or not copied else None
                why = f"{damage}; {REMEDY}" if damage else f"cannot be had: {_one_line(error)}"
                raise DataError(f"{source}: {why}") from error

    def _prepare_copy(self, shard: MDSReader, source: str) -> int:
        """Once more from the remote if what is in the cache, or arrives there, is damaged."""
        try:
            return super().prepare_shard(shard)
        except Exception as error:
            log.warning(f"{source}: {_one_line(error)}; fetching it once more")
            shard.evict()
            return super().prepare_shard(shard)


class CheckedShards(StreamingDataset):
    """Streaming's data set on CheckedStreams: no row is read before its shard's hash was compared.

    Reading a row raises a DataError that names the shard, if it cannot be had.
    """

    def __init__(self, streams: list[CheckedStream], **arguments):
        self._sound: set[int] = set()  # shards whose decompressed file this process has hashed
        self._left_to_reader: set[int] = set()  # shards that a prefetch thread of this process could not have
        super().__init__(streams=streams, **arguments)

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """As Streaming's, but a failure is only logged where `blocking` is false: there the prefetch threads call."""
        if not blocking and shard_id in self._left_to_reader:
            return
        try:
            super().prepare_shard(shard_id, blocking)
        except DataError as error:
            self._shard_states[shard_id] = _ShardState.LOCAL  # else whoever waits for this process waits for ever
            if blocking:
                raise
            self._left_to_reader.add(shard_id)
            log.warning(f"{error} (whoever reads a row of it will try again)")

    def get_item(self, sample_id: int, retry: int = 7) -> dict:
        shard_id, _ = self.spanner[sample_id]
        if shard_id not in self._sound:
            self._check(shard_id, retry)
            self._sound.add(shard_id)
        return super().get_item(sample_id, retry)

    def _check(self, shard_id: int, retry: int) -> None:
        """Hash a shard's decompressed file; a damaged one is removed and made anew."""
        shard = self.shards[shard_id]
        path = Path(self.streams[self.stream_per_shard[shard_id]].local, shard.raw_data.basename)
        for _ in range(1 + retry):  # another process may be removing it, too
            self.prepare_shard(shard_id)
            damage = _damage(path, shard.raw_data)
            if damage is None:
                return
            if path.exists():
                log.warning(f"{path}: {damage}; making it anew")
                path.unlink(missing_ok=True)
        raise DataError(f"{path}: {damage}, each time that it is made; {REMEDY}")


def _stored(shard: MDSReader) -> FileInfo:
    """The file that a shard is kept as."""
    return shard.zip_data or shard.raw_data


def _damage(path: Path, info: FileInfo) -> str | None:
    """What is wrong with a file, if anything."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return "no such file"
    if len(content) != info.bytes:
        return f"damaged: {len(content):_} bytes are there, and {info.bytes:_} were written"
    if get_hash(SHARD_HASH, content) != info.hashes[SHARD_HASH]:
        return f"damaged: its content does not have the {SHARD_HASH} hash of what was written"
    return None


@contextmanager
def _named_if_it_stalls(shard: str) -> Iterator[None]:
    """Say every STALL_SECONDS that this shard is still waited for, in the log and to the terminal."""
    done = threading.Event()

    def watch() -> None:
        start = time.monotonic()
        while not done.wait(STALL_SECONDS):
            message = f"{shard}: not here after {time.monotonic() - start:.0f} s; still waiting"
            log.warning(message)
            print(f"warning: {message}", file=sys.stderr, flush=True)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
