"""Make Streaming's readers of shards, each in full only when a row of its shard is read.

Streaming makes all of them when it starts, in every rank: 6.8 s and 161 MB for 52,000 shards (benchmarks/README.md).
"""

from streaming.base.format.mds import MDSReader

from rotary_foundry.data.shard_index import ShardIndex, uncollected


class ShardReader(MDSReader):
    """Streaming's reader of a shard, which holds only the number of rows until another attribute is read.

    Args:
        index: the index that lists the shard.
        shard: its place in the index.
        folder: the folder of the index.
    """

    def __init__(self, index: ShardIndex, shard: int, folder: str):
        self.samples = int(index.rows[shard])
        self._made_from = index, shard, folder

    def __getattr__(self, name: str):
        if name.startswith("_"):
            raise AttributeError(name)
        index, shard, folder = self._made_from
        made = MDSReader.from_json(folder, None, index.entry(shard))
        self.__dict__.update(vars(made))
        return getattr(made, name)  # not from self, which another thread may still be filling


def shard_readers(index: ShardIndex, folder: str) -> list[ShardReader]:
    """Make the readers of an index's shards.

    Raises:
        Exception: of several classes, if the shards have a format that Streaming does not know.
        ValueError: they have a column that would be unpickled, which could run code from a shard.
    """
    for entry in index.formats:
        MDSReader.from_json(folder, None, entry | {"raw_data": None, "zip_data": None, "samples": 0}).validate(False)
    with uncollected():
        return [ShardReader(index, shard, folder) for shard in range(len(index.rows))]
