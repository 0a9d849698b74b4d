"""Compare a shard's file with its entry in the index; used by training, which refuses damage, and by `data verify`."""

from streaming.base.format import FileInfo
from streaming.base.hashing import get_hash

from rotary_foundry.data.rows import SHARD_HASH


def damage_of(content: bytes, info: FileInfo) -> str | None:
    """Return what is wrong with a file's content, or None."""
    if len(content) < info.bytes:
        return f"truncated: expected {info.bytes:_} bytes, got {len(content):_}"
    if len(content) > info.bytes:
        return f"damaged: expected {info.bytes:_} bytes, got {len(content):_}"
    if SHARD_HASH not in info.hashes:
        return f"cannot be checked: the index has no {SHARD_HASH} hash for it"
    if get_hash(SHARD_HASH, content) != info.hashes[SHARD_HASH]:
        return f"damaged: its {SHARD_HASH} hash differs from the one in the index"
    return None
