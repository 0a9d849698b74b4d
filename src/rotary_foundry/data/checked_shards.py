"""Check each shard by its hash before a row of it is used, and name shards that are damaged, missing or slow to arrive.

Streaming compares hashes only of files that it has just downloaded or is about to decompress, and only if asked to. It
reads files that an earlier run decompressed without a check. So this module hashes these files too, before their first
row is read. That happens once per node and run, because the processes of a node share the results. A decompressed file
that fails is made again from its compressed form, and a copy of a remote shard is fetched again; this loses nothing. A
shard that cannot be restored in this way is refused.

An error in one of Streaming's prefetch threads would end the iteration silently. It would also leave the shard marked
as being prepared, and the other processes of the node would wait for it forever. So these threads only log a failure.
The process that reads a row of the shard tries once more, and an error there ends the run like any other.

A cache with a limit evicts shards, and any process of the node may fetch them again. So the result of a check belongs
to a file, identified by its inode, time and size, and not to a shard: a file that replaces it is hashed as well.

Streaming's lists with an entry per shard, row or file are not made, because their time and memory grow with the corpus
(benchmarks/README.md). Readers are made when they are needed (shard_reader.py), and the shard of a row is searched for.

Several runs may read one finished corpus at the same time, and each decompresses what it needs. Every process writes to
a file name of its own and renames it, and the file that it replaces has the same content. The cache of a remote belongs
to one run only, which `corpus.open_corpus` enforces.

Shards without hashes are refused. `data_prep` has always written hashes, so only shards made elsewhere lack them.
"""

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from streaming.base.constant import TICK
from streaming.base.format import FileInfo
from streaming.base.util import bytes_to_int
from streaming.base.world import World
from torch import distributed as dist
from xxhash import xxh3_64_intdigest

from rotary_foundry.compat.streaming import (
    LOCAL,
    PREPARING,
    OpenStream,
    OpenStreamingDataset,
    locked,
    number_shared_memory,
)
from rotary_foundry.data.damage import damage_of
from rotary_foundry.data.rows import SHARD_HASH
from rotary_foundry.data.shard_index import read_index
from rotary_foundry.data.shard_reader import ShardReader, shard_readers
from rotary_foundry.utils.errors import DataError, Fault
from rotary_foundry.utils.object_store import is_fault
from rotary_foundry.utils.wording import one_line

STALL_SECONDS = 60.0  # how often a warning names a shard that has not arrived yet
SOUND_SHARDS = "sound_shards"  # the end of the name of their shared memory; it begins with Streaming's number
REMEDY = "restore it from a copy, or prepare the data again with `python data_prep CONFIG`"

log = logging.getLogger(__name__)


class CheckedStream(OpenStream):
    """The shards of one folder.

    Args:
        local: the folder, or the cache of `remote`.
        remote: where the folder is fetched from.
    """

    def __init__(self, local: str, remote: str | None):
        super().__init__(local=local, remote=remote, validate_hash=SHARD_HASH)

    def get_shards(self, world: World, allow_unsafe_types: bool) -> list[ShardReader]:
        path = Path(self.local, "index.json")
        try:
            if self.remote and not path.exists():  # several ranks may fetch it at the same time
                os.replace(self.download(path.name, f"{path.name}.{socket.gethostname()}.{os.getpid()}"), path)
            self.close_connection()
            self.index = read_index(path)
            readers = shard_readers(self.index, self.local)
        except Exception as error:  # a broken file, any part of it missing, or a store's own error
            raise DataError(f"{path}: cannot be read: {one_line(error)}; {REMEDY}") from error
        if self.index.raw.unhashed or self.index.zip.unhashed:
            raise DataError(
                f"{path}: has no {SHARD_HASH} hashes; prepare the data again with `python data_prep CONFIG`"
            )
        return readers

    def prepare_shard(self, shard: ShardReader) -> int:
        """Fetch and decompress a shard, and compare its hashes.

        Raises:
            DataError: the shard is missing or damaged, here or at the remote.
            Fault: the remote does not answer.
        """
        copied = not self.safe_keep_zip
        stored = _stored(shard)
        there = Path(self.local, stored.basename)
        source = f"{self.remote}/{stored.basename}" if copied else str(there)
        with _named_if_it_stalls(source):
            try:
                return self._prepare_copy(shard, source) if copied else super().prepare_shard(shard)
            except Exception as error:  # each store raises its own errors
                damage = _damage(there, stored) if there.exists() or not copied else None
                if copied:
                    shard.evict()
                why = f"{damage}; {REMEDY}" if damage else f"cannot be loaded: {one_line(error)}"
                fault = damage is None and is_fault(error)
                raise (Fault if fault else DataError)(f"{source}: {why}") from error

    def _prepare_copy(self, shard: ShardReader, source: str) -> int:
        """Prepare a shard in the cache; if that fails, fetch it once more. Return by how many bytes the cache grew."""
        before = self._bytes_here(shard)
        try:
            super().prepare_shard(shard)
        except Exception as error:
            log.warning(f"{source}: {one_line(error)}; fetching it once more")
            shard.evict()
            super().prepare_shard(shard)
        return self._bytes_here(shard) - before

    def _bytes_here(self, shard: ShardReader) -> int:
        files = [Path(self.local, info.basename) for info in (shard.raw_data, shard.zip_data) if info]
        return sum(file.stat().st_size for file in files if file.exists())

    def decompress(self, zip_info: FileInfo, zip_filename: str, raw_filename: str, compression: str | None) -> None:
        """Decompress as Streaming does, but to a temporary file of this process; Streaming's has one name for all."""
        arriving = f"{raw_filename}.{socket.gethostname()}.{os.getpid()}"
        super().decompress(zip_info, zip_filename, arriving, compression)
        os.replace(arriving, raw_filename)

    def set_up_local(self, shards: list[ShardReader], cache_usage_per_shard: NDArray[np.int64]) -> None:
        """Count the bytes of each shard in the cache, and remove files that a killed process left half fetched.

        A finished corpus is taken to have every shard; a missing one is refused when a row of it is read. Streaming's
        method would ask the reader of every shard.
        """
        if self.safe_keep_zip:
            cache_usage_per_shard[:] = self.index.raw.bytes
            return
        there = [path.relative_to(self.local).as_posix() for path in Path(self.local).rglob("shard.*")]
        files = np.array([name.encode() for name in there], np.bytes_)
        for form in (self.index.raw, self.index.zip):
            cache_usage_per_shard += np.where(np.isin(form.names, files), form.bytes, 0)
        for name in files[~np.isin(files, [*self.index.raw.names, *self.index.zip.names])]:
            # missing_ok: a thread that is still ending may have renamed it
            Path(self.local, name.decode()).unlink(missing_ok=True)


class CheckedShards(OpenStreamingDataset):
    """Streaming's data set on CheckedStreams, which reads no row before the hash of its shard was compared.

    If a shard is missing or damaged, reading a row raises a DataError; if its store does not answer, a Fault.
    """

    def __init__(self, streams: list[CheckedStream], cache_limit: str | None = None, **arguments):
        self._left_to_reader: set[int] = set()  # shards that a prefetch thread of this process could not prepare
        _number_from_this_run()
        try:
            super().__init__(streams=streams, **arguments)
        except ValueError as error:  # another data set on the same cache
            raise DataError(f"{streams[0].local}: {one_line(error)}") from error
        # by shard, the identity of the decompressed file that a process of this node has last found sound
        self._sound = self.share(SOUND_SHARDS, np.uint64)
        # replaces Streaming's own limit, which makes room for a shard but does not count it until it has arrived, so
        # processes that fetch at the same time exceed the limit together; see `_reserved`
        self._limit = bytes_to_int(cache_limit) if cache_limit else None
        if self._limit:
            largest = max(int((stream.index.raw.bytes + stream.index.zip.bytes).max()) for stream in streams)
            least = sum(map(CheckedStream.get_index_size, streams)) + 4 * largest
            if self._limit < least:
                raise DataError(
                    f"{streams[0].local}: data.cache_limit is {self._limit:_} bytes, and the index files with four of "
                    f"the largest shards take {least:_}; raise it"
                )

    def _path(self, shard_id: int) -> str:
        """Return the path of a shard's decompressed file."""
        shard = self.shards[shard_id]
        return os.path.join(shard.dirname, shard.raw_data.basename)

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Prepare a shard as Streaming does. Without `blocking`, as prefetch threads call this, only log a failure."""
        if not blocking and shard_id in self._left_to_reader:
            return
        try:
            with self._reserved(shard_id, blocking) as is_to_be_fetched:
                if is_to_be_fetched:
                    super().prepare_shard(shard_id, blocking)
        except (DataError, Fault) as error:
            self.shard_states[shard_id] = LOCAL  # or processes that wait for this one would wait forever
            if blocking:
                raise
            self._left_to_reader.add(shard_id)
            log.warning(f"{error} (whoever reads a row of it will try again)")

    @contextmanager
    def _reserved(self, shard_id: int, blocking: bool) -> Iterator[bool]:
        """Reserve room for a shard within the cache limit, and evict the least recently read shards for it.

        Yield False if the shard is here, or if it is being prepared and is not waited for. The same lock covers this
        check and the reservation: otherwise a shard that is here now could be evicted before Streaming looks, and
        Streaming would then fetch it beyond the limit.
        """
        if not self._limit:
            yield True
            return
        size, reserved = self.shards[shard_id].get_max_size(), 0
        lock = self.cache_lock
        while not reserved:
            with lock:
                state = self.shard_states[shard_id]
                here = state == LOCAL and os.path.exists(self._path(shard_id))
                if here:
                    self.shard_access_times[shard_id] = time.time_ns()
                if here or (state == PREPARING and not blocking):
                    break
                if state != PREPARING:
                    while self._limit < self.cache_usage + size and LOCAL in self.shard_states:
                        self.evict_coldest_shard()
                    if self.cache_usage + size <= self._limit:
                        self.cache_usage += size
                        reserved = size
            if not reserved:
                time.sleep(TICK)  # another process fetches it, or shards being fetched take all of the limit
        try:
            yield reserved > 0
        finally:
            if reserved:
                with lock:
                    self.cache_usage -= reserved

    def get_item(self, sample_id: int, retry: int = 7) -> dict:
        shard_id, _ = self.spanner[sample_id]
        if not self._is_sound(shard_id):
            with locked(self._sound, shard_id):
                if not self._is_sound(shard_id):  # the last holder of the lock may have checked it
                    self._sound[shard_id] = self._check(shard_id, retry)
        return super().get_item(sample_id, retry)

    def _is_sound(self, shard_id: int) -> bool:
        """Return whether a process of this node has hashed the shard's present file."""
        identity = _identity(self._path(shard_id))
        return identity != 0 and self._sound[shard_id] == identity

    def _check(self, shard_id: int, retry: int) -> int:
        """Hash a shard's decompressed file and return the file's identity; remove a damaged one and make it again."""
        shard = self.shards[shard_id]
        path = Path(self._path(shard_id))
        for _ in range(1 + retry):  # another process may be removing it at the same time
            self.prepare_shard(shard_id)
            checked = _identity(path)
            damage = _damage(path, shard.raw_data)
            if damage is None:
                _check_rows(path, shard.samples)
                return checked
            finished = self.streams[self.stream_per_shard[shard_id]].safe_keep_zip  # a corpus, not a cache of one
            if finished and not shard.zip_data:
                raise DataError(f"{path}: {damage}; {REMEDY}")
            if path.exists():
                log.warning(f"{path}: {damage}; making it again")
                if finished:
                    path.unlink(missing_ok=True)
                else:
                    self.evict_shard(shard_id)
        remedy = "raise data.cache_limit" if self._limit and not path.exists() else REMEDY
        raise DataError(f"{path}: {damage}, each time that it is made; {remedy}")


def _number_from_this_run() -> None:
    """Have Streaming number its shared memory from 1000 × the pid of the node's first process, in all its processes.

    By default it takes the first free number from 0 on, and two runs that start together on one machine find the same
    one. It also scans past all lock files that killed runs left in TMPDIR.
    """
    world = World.detect()
    places = [(world.node, world.rank, os.getpid())]
    if dist.is_available() and dist.is_initialized():
        mine, places = places[0], [None] * dist.get_world_size()
        dist.all_gather_object(places, mine)
    first = min(place for place in places if place[0] == world.node)[2]
    number_shared_memory(partial(count, 1000 * first))


def _identity(path: str | Path) -> int:
    """Hash a file's inode, time and size into one number, which can be written atomically; 0 if there is no file."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return 0
    return xxh3_64_intdigest(repr((status.st_ino, status.st_mtime_ns, status.st_size)))


def _stored(shard: ShardReader) -> FileInfo:
    """Return the entry of the file that a shard is stored as."""
    return shard.zip_data or shard.raw_data


def _damage(path: Path, info: FileInfo) -> str | None:
    """Return what is wrong with a file, or None."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return "no such file"
    return damage_of(content, info)


def _check_rows(path: Path, listed: int) -> None:
    """Refuse a sound shard with more or fewer rows than its index lists; an MDS file begins with their number."""
    try:
        with path.open("rb") as file:
            there = int.from_bytes(file.read(4), "little")
    except FileNotFoundError:
        return  # it was just evicted; the file that replaces it is checked again
    if there != listed:
        raise DataError(f"{path}: holds {there:_} rows, and index.json lists {listed:_} (samples); {REMEDY}")


@contextmanager
def _named_if_it_stalls(shard: str) -> Iterator[None]:
    """Warn every STALL_SECONDS that this shard has not arrived, in the log and on the terminal."""
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
