"""Masks follow from a row's place in the run; batches are flat and split without loss."""

import numpy as np
import pytest
import torch

from rotary_foundry.data.batches import collate, num_rows, num_tokens, split, update_digest
from rotary_foundry.data.corpus import TokenizerFacts
from rotary_foundry.data.row_preparation import TrainingPrepared, row_generator
from rotary_foundry.objectives.masked_lm import MaskedLM, Masking
from rotary_foundry.objectives.objective import IGNORE_INDEX
from rotary_foundry.recipe.knobs import knob_schedule
from rotary_foundry.recipe.plan import LearningRate, Segment

SPECIAL = (0, 1, 2, 3, 4)
MASKING = Masking(0.3, 0.8, 0.1, mask_id=4, special_ids=SPECIAL, vocab_size=1000)
OBJECTIVE = MaskedLM(0.3, eval_mlm_probability=0.15, mask_share=0.8, random_share=0.1)
ROLES = dict(zip(("unk_token", "cls_token", "sep_token", "pad_token", "mask_token"), SPECIAL, strict=True))
TOKENIZER = TokenizerFacts(1000, ROLES, "")


def sample(row: int, lengths: list[int]) -> dict:
    documents = [np.r_[1, np.random.default_rng(row).integers(5, 1000, length - 2), 2] for length in lengths]
    return {
        "row": row,
        "tokens": np.concatenate(documents).astype(np.uint16),
        "lengths": np.array(lengths, np.uint32),
    }


def segment(stage: int, mlm_probability: float | dict = 0.3) -> Segment:
    """A stage of updates of two rows of 64 tokens."""
    knobs = {"mlm_probability": knob_schedule(mlm_probability, 0, 1280)}
    rate = LearningRate(1e-3, 0, 1280, 0, 0, "linear", 1.0)
    return Segment("only", stage, 10, 2, 64, 0, 0, 0, {"name": "masked_lm"}, knobs, rate, 0.0, None)


def batch_of(samples: list[dict], stage: int = 0, start: int = 0) -> dict:
    placed = [sample | {"position": start + index} for index, sample in enumerate(samples)]
    return collate(placed, TrainingPrepared(OBJECTIVE, TOKENIZER, 17, segment(stage)), 64, TOKENIZER.vocab_size)


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


def test_a_scheduled_mask_rate_is_that_of_the_update_that_a_row_belongs_to():
    scheduled = segment(0, {"start": 0.1, "end": 0.9})
    tokens = np.random.default_rng(0).integers(5, 1000, 20_000)
    for position in range(20):
        generator = row_generator(17, 0, position)
        _, expected = Masking(0.1 + 0.8 * (position // 2) / 10, 0.8, 0.1, 4, SPECIAL, 1000).apply(tokens, generator)
        prepare = TrainingPrepared(OBJECTIVE, TOKENIZER, 17, scheduled)
        _, labels = prepare({"tokens": tokens, "position": position})
        assert (labels == expected).all()


def test_a_column_that_an_objective_needs_reaches_it():
    """`counts`, in which every other token counts."""

    class Counted(MaskedLM):
        columns = ("counts",)

        def prepare(self, row, tokenizer, generator, knobs):
            tokens = row["tokens"].astype(np.int64)
            return tokens, np.where(row["counts"], tokens, IGNORE_INDEX)

    samples = [one | {"counts": np.arange(len(one["tokens"])) % 2 == 0, "position": 0} for one in SAMPLES]
    prepare = TrainingPrepared(Counted(0.3, 0.15, 0.8, 0.1), TOKENIZER, 17, segment(0))
    batch = collate(samples, prepare, 64, TOKENIZER.vocab_size)
    assert num_tokens(batch)["loss_generating"] == sum(-(-len(one["tokens"]) // 2) for one in SAMPLES)
