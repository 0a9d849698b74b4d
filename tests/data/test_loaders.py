"""Held-out rows are evaluated exactly once, whatever the number of ranks."""

import pytest
from streaming import StreamingDataset

from encoder_foundry.data import loaders
from encoder_foundry.data.batches import num_rows, num_tokens
from encoder_foundry.data.masking import Masking
from encoder_foundry.data.stream import row_streams

from .conftest import ROW_LENGTH, write_rows

MASKING = Masking(0.15, 0.8, 0.1, mask_id=4, special_ids=(0, 1, 2, 3, 4), vocab_size=512)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory) -> StreamingDataset:
    root = tmp_path_factory.mktemp("held_out")
    write_rows(root, "validation", {"code": 5, "docs": 2})
    return StreamingDataset(streams=row_streams(["code", "docs"], root, None, ROW_LENGTH, "validation"), batch_size=2)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_every_held_out_row_is_predicted_on_exactly_one_rank(held_out, monkeypatch, world):
    monkeypatch.setattr(loaders.dist, "get_world_size", lambda: world)
    digests, batches_a_rank = [], set()
    for rank in range(world):
        monkeypatch.setattr(loaders.dist, "get_global_rank", lambda rank=rank: rank)
        batches = list(loaders.HeldOutRows(held_out, MASKING, 17, ROW_LENGTH, rows_a_batch=2))
        batches_a_rank.add(len(batches))
        for batch in batches:
            assert num_rows(batch) <= 2
            if num_tokens(batch)["loss_generating"]:
                digests += batch["row_digests"]
    assert len(batches_a_rank) == 1  # a forward pass under FSDP takes all ranks
    monkeypatch.setattr(loaders.dist, "get_world_size", lambda: 1)
    monkeypatch.setattr(loaders.dist, "get_global_rank", lambda: 0)
    alone = [
        digest
        for batch in loaders.HeldOutRows(held_out, MASKING, 17, ROW_LENGTH, rows_a_batch=7)
        for digest in batch["row_digests"]
    ]
    assert sorted(digests) == sorted(alone)
    assert len(set(digests)) == 7
