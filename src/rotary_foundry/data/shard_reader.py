"""Streaming's readers of shards, each made in full only when a row of its shard is read.

Streaming makes them all when it starts: minutes for 52,000 shards on 8 ranks (benchmarks/README.md).
"""

from streaming.base.format.mds import MDSReader

from rotary_foundry.data.shard_index import ShardIndex


class ShardReader(MDSReader):
    """Streaming's reader of a shard, which has nothing but its number of rows until something else is asked for.

    Args:
        index: that lists the shard.
        shard: which one.
        folder: in which the index lies.
    """

    def __init__(self, index: ShardIndex, shard: int, folder: str):
        self.samples = int(index.rows[shard])
        self._made_from = index, shard, folder

    def __getattr__(self, name: str):
        if name == "_made_from" or "raw_data" in self.__dict__:
            raise AttributeError(name)
        index, shard, folder = self._made_from
        self.__dict__.update(vars(MDSReader.from_json(folder, None, index.entry(shard))))
        return getattr(self, name)


def shard_readers(index: ShardIndex, folder: str) -> list[ShardReader]:
    """Make the readers of an index's shards.

    Raises:
        Exception: of several kinds, if the shards are of a format that Streaming does not know.
        ValueError: they have a column that would be unpickled: a shard must not be able to run code.
    """
    for entry in index.formats:
        MDSReader.from_json(folder, None, entry | {"raw_data": None, "zip_data": None, "samples": 0}).validate(False)
    return [ShardReader(index, shard, folder) for shard in range(len(index.rows))]
