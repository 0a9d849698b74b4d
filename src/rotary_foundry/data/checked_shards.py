"""Shards checked by hash before a row of them is used, and named when they are damaged, missing or slow to come.

Streaming compares hashes only of what it has just downloaded or is about to decompress, and only when asked to. What it
finds decompressed from an earlier run it reads as it is. So here every such file is hashed as well, before its first
row is read: once a node and run, since the processes of a node share what they have found sound. A decompressed file
that fails is made anew from its compressed form, and a copy of a remote shard is fetched anew: nothing is lost by that.
What cannot be had in this way is refused.

Streaming's prefetch threads are no place for an error: it ends the iteration without a word, and leaves the shard
marked as being prepared, for which the other processes of the node then wait for ever. So these threads leave a shard
that cannot be had to whoever reads a row of it: there it is tried once more, and the error ends the run as any other.

A cache with a limit loses shards again and gets them anew, from any process of the node. What was found sound is
therefore a file, by its inode, time and size, and not a shard: a file that took its place is hashed as well.

Streaming's lists of a shard, a row or a file each are not made, since their time and memory grow with the corpus
(benchmarks/README.md): its readers are made when they are needed (shard_index.py), and a row's shard is searched for.

Several runs may read one finished corpus at a time, each of which decompresses what it needs: every process writes
under a name of its own and renames, and what it replaces has the same content. The cache of a remote is one run's
alone (`corpus.open_corpus` sees to it).

Shards without hashes are refused. `data_prep` has always written them, so only shards of another maker lack them.
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

STALL_SECONDS = 60.0  # after which, and each time again, a shard that is waited for is named
SOUND_SHARDS = "sound_shards"  # the name of their shared memory, behind Streaming's number
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
            if self.remote and not path.exists():  # ranks fetch side by side
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
        """Fetch and decompress a shard, hashes compared.

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
            except Exception as error:  # each store has errors of its own
                damage = _damage(there, stored) if there.exists() or not copied else None
                if copied:
                    shard.evict()
                why = f"{damage}; {REMEDY}" if damage else f"cannot be had: {one_line(error)}"
                fault = damage is None and is_fault(error)
                raise (Fault if fault else DataError)(f"{source}: {why}") from error

    def _prepare_copy(self, shard: ShardReader, source: str) -> int:
        """Once more from the remote if what is in the cache, or arrives there, is damaged."""
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
        """As Streaming's, whose temporary file has one name for all processes."""
        arriving = f"{raw_filename}.{socket.gethostname()}.{os.getpid()}"
        super().decompress(zip_info, zip_filename, arriving, compression)
        os.replace(arriving, raw_filename)

    def set_up_local(self, shards: list[ShardReader], cache_usage_per_shard: NDArray[np.int64]) -> None:
        """Count the bytes of each shard in the cache. What a killed process left half fetched there is removed.

        Of a finished corpus every shard is there; one that is not is refused where a row of it is read. Streaming's own
        asks every shard's reader.
        """
        if self.safe_keep_zip:
            cache_usage_per_shard[:] = self.index.raw.bytes
            return
        there = [path.relative_to(self.local).as_posix() for path in Path(self.local).rglob("shard.*")]
        files = np.array([name.encode() for name in there], np.bytes_)
        for form in (self.index.raw, self.index.zip):
            cache_usage_per_shard += np.where(np.isin(form.names, files), form.bytes, 0)
        for name in files[~np.isin(files, [*self.index.raw.names, *self.index.zip.names])]:
            # a thread that is still ending may have finished it
            Path(self.local, name.decode()).unlink(missing_ok=True)


class CheckedShards(OpenStreamingDataset):
    """Streaming's data set on CheckedStreams: no row is read before its shard's hash was compared.

    Reading a row raises a DataError that names the shard, if it cannot be had; a Fault, if its store does not answer.
    """

    def __init__(self, streams: list[CheckedStream], cache_limit: str | None = None, **arguments):
        self._left_to_reader: set[int] = set()  # shards that a prefetch thread of this process could not have
        _number_from_this_run()
        try:
            super().__init__(streams=streams, **arguments)
        except ValueError as error:  # another data set on the same cache
            raise DataError(f"{streams[0].local}: {one_line(error)}") from error
        # the decompressed file of each shard that a process of this node has last found sound, by its identity
        self._sound = self.share(SOUND_SHARDS, np.uint64)
        # not Streaming's own, which makes room for a shard and forgets it until it has come, so that all that fetch at
        # a time go beyond the limit together; `_reserved` is in its place
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
        """The decompressed file of a shard."""
        shard = self.shards[shard_id]
        return os.path.join(shard.dirname, shard.raw_data.basename)

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """As Streaming's, but a failure is only logged where `blocking` is false: there the prefetch threads call."""
        if not blocking and shard_id in self._left_to_reader:
            return
        try:
            with self._reserved(shard_id, blocking) as is_to_be_fetched:
                if is_to_be_fetched:
                    super().prepare_shard(shard_id, blocking)
        except (DataError, Fault) as error:
            self.shard_states[shard_id] = LOCAL  # else whoever waits for this process waits for ever
            if blocking:
                raise
            self._left_to_reader.add(shard_id)
            log.warning(f"{error} (whoever reads a row of it will try again)")

    @contextmanager
    def _reserved(self, shard_id: int, blocking: bool) -> Iterator[bool]:
        """Keep room within the limit for a shard; those read longest ago make way for it.

        False if it is here, or on its way and not to be waited for. That is found out under the same lock as room is
        kept: what is here now may make way for another before Streaming looks, which would then fetch it beyond the
        limit.
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
                time.sleep(TICK)  # another fetches it, or all of the limit is taken by what others are fetching
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
                if not self._is_sound(shard_id):  # which whoever held the lock may have found
                    self._sound[shard_id] = self._check(shard_id, retry)
        return super().get_item(sample_id, retry)

    def _is_sound(self, shard_id: int) -> bool:
        """Return whether a process of this node has hashed the shard's present file."""
        identity = _identity(self._path(shard_id))
        return identity != 0 and self._sound[shard_id] == identity

    def _check(self, shard_id: int, retry: int) -> int:
        """Hash a shard's decompressed file, and return which file that was; a damaged one is removed and made anew."""
        shard = self.shards[shard_id]
        path = Path(self._path(shard_id))
        for _ in range(1 + retry):  # another process may be removing it, too
            self.prepare_shard(shard_id)
            checked = _identity(path)
            damage = _damage(path, shard.raw_data)
            if damage is None:
                _check_rows(path, shard.samples)
                return checked
            finished = self.streams[self.stream_per_shard[shard_id]].safe_keep_zip  # a corpus, and no cache of one
            if finished and not shard.zip_data:
                raise DataError(f"{path}: {damage}; {REMEDY}")
            if path.exists():
                log.warning(f"{path}: {damage}; making it anew")
                if finished:
                    path.unlink(missing_ok=True)
                else:
                    self.evict_shard(shard_id)
        remedy = "raise data.cache_limit" if self._limit and not path.exists() else REMEDY
        raise DataError(f"{path}: {damage}, each time that it is made; {remedy}")


def _number_from_this_run() -> None:
    """Have Streaming number its shared memory from the pid of the node's first process on, in all its processes.

    It numbers from 0 to the first that is free, and two runs that start together on one machine find the same one; it
    also scans past all lock files that killed runs left in TMPDIR.
    """
    world = World.detect()
    places = [(world.node, world.rank, os.getpid())]
    if dist.is_available() and dist.is_initialized():
        mine, places = places[0], [None] * dist.get_world_size()
        dist.all_gather_object(places, mine)
    first = min(place for place in places if place[0] == world.node)[2]
    number_shared_memory(partial(count, 1000 * first))


def _identity(path: str | Path) -> int:
    """Return a hash of a file's inode, time and size, one number that is written atomically; 0 if there is no file."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return 0
    return xxh3_64_intdigest(repr((status.st_ino, status.st_mtime_ns, status.st_size)))


def _stored(shard: ShardReader) -> FileInfo:
    """The file that a shard is kept as."""
    return shard.zip_data or shard.raw_data


def _damage(path: Path, info: FileInfo) -> str | None:
    """What is wrong with a file, if anything."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return "no such file"
    return damage_of(content, info)


def _check_rows(path: Path, listed: int) -> None:
    """Refuse a sound shard that does not hold as many rows as its index lists; an MDS file begins with their number."""
    try:
        with path.open("rb") as file:
            there = int.from_bytes(file.read(4), "little")
    except FileNotFoundError:
        return  # it has just made way for another shard; what comes in its place is checked again
    if there != listed:
        raise DataError(f"{path}: holds {there:_} rows, and index.json lists {listed:_} (samples); {REMEDY}")


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
