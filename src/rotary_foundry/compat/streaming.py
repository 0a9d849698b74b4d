"""Private parts of Streaming 0.13."""

import atexit
import fcntl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from streaming import Stream, StreamingDataset
from streaming.base import dataset
from streaming.base.dataset import _ShardState
from streaming.base.format import FileInfo
from streaming.base.shared import SharedArray, prefix
from streaming.base.world import World
from torch import distributed as dist

from rotary_foundry.utils.lock_files import remove_lock

# The states of a shard in the shared memory of a node's processes. Needed until Streaming has public names for them.
LOCAL = _ShardState.LOCAL
PREPARING = _ShardState.PREPARING


class OpenStream(Stream):
    """Streaming's Stream, with public names for the parts that a subclass needs, until Streaming has such names."""

    def close_connection(self) -> None:
        """Close the connection to the remote; the next download opens another.

        Loader workers are forks of this process and would otherwise all use this connection.
        """
        self._downloader.clean_up()

    def download(self, name: str, to_name: str) -> str:
        """Fetch a file from the remote into the local folder, and return its path."""
        return self._download_file(name, to_name)

    def decompress(self, zip_info: FileInfo, zip_filename: str, raw_filename: str, compression: str | None) -> None:
        """Decompress a shard into the file `raw_filename`; a subclass may choose another file."""
        super()._decompress_shard_part(zip_info, zip_filename, raw_filename, compression)

    def _decompress_shard_part(
        self, zip_info: FileInfo, zip_filename: str, raw_filename: str, compression: str | None
    ) -> None:
        self.decompress(zip_info, zip_filename, raw_filename, compression)


class OpenStreamingDataset(StreamingDataset):
    """Streaming's StreamingDataset, with public names for the parts that a subclass needs, until Streaming has them.

    A process that ends normally removes the lock files; Streaming's own handlers remove only shared memory. Needed
    until Streaming removes both (mosaicml/streaming#893).
    """

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        for path in (self._shared_barrier.filelock_path, self._cache_filelock_path):
            atexit.register(remove_lock, path)

    @property
    def cache_lock(self) -> FileLock:
        """A new handle of the lock under which the processes of a node change the cache."""
        return FileLock(self._cache_filelock_path)

    @property
    def shard_states(self) -> NDArray:
        """The state of each shard, shared by the processes of a node."""
        return self._shard_states.numpy()

    @property
    def shard_access_times(self) -> NDArray:
        """The time when each shard was last read, in nanoseconds, shared by the processes of a node."""
        return self._shard_access_times.numpy()

    @property
    def rank_world(self) -> World:
        """The ranks over which rows are distributed."""
        return self._parallel_rank_world

    @property
    def worker_world(self) -> World:
        """The same ranks, with the place of this loader worker."""
        return self._parallel_worker_world

    def evict_coldest_shard(self) -> None:
        """Remove the least recently read shard. Call it under the cache lock."""
        self._evict_coldest_shard()

    def worker_rows(self, epoch: int, sample_in_epoch: int) -> Sequence[int]:
        """Return the rows that this loader worker reads, in order; a subclass may choose others.

        Streaming takes them from one array in shared memory that holds the rows of all workers.
        """
        return super()._get_work(epoch, sample_in_epoch)

    def _get_work(self, epoch: int, sample_in_epoch: int) -> Sequence[int]:
        return self.worker_rows(epoch, sample_in_epoch)

    def share(self, name: str, dtype: type) -> SharedArray:
        """Make an array [shards] of zeroes that the processes of a node share; all ranks call it together.

        The node's first process makes it and the others wait, because they could not map an array that is half made.
        """
        place = self.num_shards, dtype, prefix._get_path(self._shm_prefix_int, name)
        if self._unique_rank_world.is_local_leader:
            shared = SharedArray(*place)
            shared[:] = 0
        if dist.is_available() and dist.is_initialized():
            dist.barrier()
        return shared if self._unique_rank_world.is_local_leader else SharedArray(*place)


@contextmanager
def locked(shared: SharedArray, index: int) -> Iterator[None]:
    """Lock one element of a shared array against the other processes of the node.

    The kernel unlocks it if the process dies. If the system cannot lock shared memory, there is no lock.
    Streaming's array keeps its file in a private attribute of Python's SharedMemory. Needed until one of the two has a
    public name for it.
    """
    file = shared.shm.shm._fd
    with suppress(OSError):
        fcntl.lockf(file, fcntl.LOCK_EX, 1, index)
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_UN, 1, index)


class ShardBounds:
    """Finds the shard of a row by a search in the shards' bounds; replaces Streaming's Spanner.

    The Spanner lists the shard of every row when it is made, in every process: 13 GB for 1.7e9 rows.
    """

    def __init__(self, shard_sizes: NDArray[np.int64]):
        self.ends = shard_sizes.cumsum()
        self.starts = self.ends - shard_sizes

    def __getitem__(self, index: int) -> tuple[int, int]:
        """Return the shard of a row, and the row's number in it."""
        if not 0 <= index < self.ends[-1]:
            raise IndexError(f"no row {index}; the rows are 0 to {self.ends[-1] - 1}")
        shard = int(np.searchsorted(self.ends, index, "right"))
        return shard, int(index - self.starts[shard])


dataset.Spanner = ShardBounds  # needed until Streaming replaces its Spanner


def number_shared_memory(numbers: Callable[[], Iterator[int]]) -> None:
    """Set the numbers from which Streaming chooses a free one to name its shared memory.

    It counts from 0, and two runs that start together on one machine find the same number. Needed until Streaming takes
    the prefix of its shared memory as an argument.
    """
    prefix._each_prefix_int = numbers
