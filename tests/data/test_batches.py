"""Masks follow from a row's place in the run; batches are flat and split without loss."""

import numpy as np
import pytest
import torch

from rotary_foundry.data.batches import collate, num_rows, num_tokens, split, update_digest
from rotary_foundry.objectives.masked_lm import IGNORE_INDEX, Masking, row_generator

SPECIAL = (0, 1, 2, 3, 4)
MASKING = Masking(0.3, 0.8, 0.1, mask_id=4, special_ids=SPECIAL, vocab_size=1000)


def sample(row: int, lengths: list[int]) -> dict:
    documents = [np.r_[1, np.random.default_rng(row).integers(5, 1000, length - 2), 2] for length in lengths]
    return {
        "row": row,
        "tokens": np.concatenate(documents).astype(np.uint16),
        "lengths": np.array(lengths, np.uint32),
    }


def batch_of(samples: list[dict], stage: int = 0, start: int = 0) -> dict:
    generators = [row_generator(17, stage, start + index) for index in range(len(samples))]
    return collate(samples, MASKING, generators, row_length=64)


SAMPLES = [sample(7, [40, 24]), sample(3, [64]), sample(9, [10, 10, 30]), sample(1, [20, 43])]


def test_masking_hits_its_rates_and_spares_special_tokens():
    tokens = np.random.default_rng(0).integers(0, 1000, 200_000)
    input_ids, labels = MASKING.apply(tokens, np.random.default_rng(1))
    chosen = labels != IGNORE_INDEX
    ordinary = ~np.isin(tokens, SPECIAL)
    assert not (chosen & ~ordinary).any()
    assert chosen.sum() / ordinary.sum() == pytest.approx(0.3, abs=0.005)
    assert (input_ids[chosen] == 4).mean() == pytest.approx(0.8, abs=0.005)
    kept = (input_ids[chosen] == tokens[chosen]).mean()
    assert kept == pytest.approx(0.1, abs=0.005)
    assert (input_ids[~chosen] == tokens[~chosen]).all()
    assert (labels[chosen] == tokens[chosen]).all()


def test_a_row_is_masked_by_its_position_and_anew_when_drawn_again():
    whole = batch_of(SAMPLES)
    alone = batch_of(SAMPLES[2:], start=2)
    assert whole["row_digests"][2:] == alone["row_digests"]
    again = batch_of(SAMPLES, start=len(SAMPLES))
    other_stage = batch_of(SAMPLES, stage=1)
    assert not set(whole["row_digests"]) & (set(again["row_digests"]) | set(other_stage["row_digests"]))


@pytest.mark.parametrize("microbatch_size", [1, 2, 3, 4, 9])
def test_splitting_a_batch_loses_nothing(microbatch_size):
    batch = batch_of(SAMPLES)
    microbatches = split(batch, microbatch_size)
    assert [num_rows(microbatch) for microbatch in microbatches][:-1] == [microbatch_size] * (len(microbatches) - 1)
    for key in ("input_ids", "labels"):
        assert torch.equal(torch.cat([microbatch[key] for microbatch in microbatches]), batch[key])
    lengths = torch.cat([microbatch["cu_seqlens"].diff() for microbatch in microbatches])
    assert torch.equal(lengths, batch["cu_seqlens"].diff())
    for microbatch in microbatches:
        assert microbatch["cu_seqlens"].dtype == torch.int32
        assert microbatch["cu_seqlens"][0] == 0
        assert microbatch["cu_seqlens"][-1] == len(microbatch["input_ids"])


def test_the_clock_counts_slots_and_the_loss_counts_masked_tokens():
    batch = batch_of(SAMPLES)
    assert num_tokens(batch)["total"] == 4 * 64
    assert num_tokens(batch)["loss_generating"] == int((batch["labels"] >= 0).sum())


def test_an_updates_digest_does_not_depend_on_order_but_on_every_row_and_mask():
    digests = batch_of(SAMPLES)["row_digests"]
    assert update_digest(digests) == update_digest(digests[::-1])
    assert update_digest(digests) != update_digest(digests[:-1])
    assert update_digest(digests) != update_digest(batch_of(SAMPLES, start=1)["row_digests"])
