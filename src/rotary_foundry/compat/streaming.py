"""Private parts of Streaming 0.13."""

from collections.abc import Callable, Iterator

from filelock import FileLock
from numpy.typing import NDArray
from streaming import Stream, StreamingDataset
from streaming.base.dataset import _ShardState
from streaming.base.format import FileInfo
from streaming.base.shared import prefix
from streaming.base.world import World

# The states of a shard in the memory that the processes of a node share. Until Streaming has public names for them.
LOCAL = _ShardState.LOCAL
PREPARING = _ShardState.PREPARING


class OpenStream(Stream):
    """Streaming's Stream, with public names for what a subclass needs of it. Until Streaming has them."""

    def close_connection(self) -> None:
        """Close the connection to the remote; the next download opens one again.

        Loader workers are forks of this process and would all use the one connection.
        """
        self._downloader.clean_up()

    def decompress(self, zip_info: FileInfo, zip_filename: str, raw_filename: str, compression: str | None) -> None:
        """Decompress a shard into the file `raw_filename`; a subclass may choose another file."""
        super()._decompress_shard_part(zip_info, zip_filename, raw_filename, compression)

    def _decompress_shard_part(
        self, zip_info: FileInfo, zip_filename: str, raw_filename: str, compression: str | None
    ) -> None:
        self.decompress(zip_info, zip_filename, raw_filename, compression)


class OpenStreamingDataset(StreamingDataset):
    """Streaming's StreamingDataset, with public names for what a subclass needs of it. Until Streaming has them."""

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
        """When each shard was last read, in nanoseconds, shared by the processes of a node."""
        return self._shard_access_times.numpy()

    @property
    def rank_world(self) -> World:
        """The ranks among which rows are dealt."""
        return self._parallel_rank_world

    @property
    def worker_world(self) -> World:
        """The same, seen from this loader worker."""
        return self._parallel_worker_world

    def evict_coldest_shard(self) -> None:
        """Remove the shard that was read longest ago; under the lock."""
        self._evict_coldest_shard()


def number_shared_memory(numbers: Callable[[], Iterator[int]]) -> None:
    """Set the numbers among which Streaming looks for a free one to name its shared memory by.

    It counts from 0, and two runs that start together on one machine find the same number. Until the prefix of its
    shared memory can be given.
    """
    prefix._each_prefix_int = numbers
