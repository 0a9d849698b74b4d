"""A shard's file held against what the index says of it, for training, which refuses it, and for `data verify`."""

from streaming.base.format import FileInfo
from streaming.base.hashing import get_hash

from rotary_foundry.data.rows import SHARD_HASH


def damage_of(content: bytes, info: FileInfo) -> str | None:
    """What is wrong with a file's content, if anything."""
    if len(content) < info.bytes:
        return f"truncated: {len(content):_} bytes are there, and {info.bytes:_} were written"
    if len(content) > info.bytes:
        return f"damaged: {len(content):_} bytes are there, and {info.bytes:_} were written"
    if SHARD_HASH not in info.hashes:
        return f"cannot be checked: the index has no {SHARD_HASH} hash for it"
    if get_hash(SHARD_HASH, content) != info.hashes[SHARD_HASH]:
        return f"damaged: its content does not have the {SHARD_HASH} hash of what was written"
    return None
