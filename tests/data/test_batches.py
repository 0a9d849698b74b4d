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
WHOLE_WORDS = MaskedLM(0.3, eval_mlm_probability=0.15, mask_share=0.8, random_share=0.1, whole_words=True)
ROLES = dict(zip(("unk_token", "cls_token", "sep_token", "pad_token", "mask_token"), SPECIAL, strict=True))
TOKENIZER = TokenizerFacts(1000, ROLES, "")


def sample(row: int, lengths: list[int]) -> dict:
    """A row of documents of these lengths, in words of one to three tokens."""
    documents = [np.r_[1, np.random.default_rng(row).integers(5, 1000, length - 2), 2] for length in lengths]
    words = [np.r_[1, 1, np.random.default_rng(row).random(length - 3) < 0.5, 1] for length in lengths]
    return {
        "row": row,
        "tokens": np.concatenate(documents).astype(np.uint16),
        "lengths": np.array(lengths, np.uint32),
        "word_starts": np.concatenate(words).astype(np.uint8),
    }


def segment(stage: int, mlm_probability: float | dict = 0.3) -> Segment:
    """A stage of updates of two rows of 64 tokens."""
    knobs = {"mlm_probability": knob_schedule(mlm_probability, 0, 1280)}
    rate = LearningRate(1e-3, 0, 1280, 0, 0, "linear", 1.0)
    return Segment("only", stage, 10, 2, 64, 0, 0, 0, {"name": "masked_lm"}, knobs, rate, 0.0, None)


def batch_of(samples: list[dict], stage: int = 0, start: int = 0, objective: MaskedLM = OBJECTIVE) -> dict:
    placed = [sample | {"position": start + index} for index, sample in enumerate(samples)]
    return collate(placed, TrainingPrepared(objective, TOKENIZER, 17, segment(stage)), 64, TOKENIZER.vocab_size)


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


def test_whole_words_are_chosen_masked_randomised_or_kept_at_the_rates_and_never_in_part():
    """A million tokens in words of one to five."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 6, 333_334)
    word_starts = np.zeros(lengths.sum(), np.uint8)
    word_starts[lengths.cumsum() - lengths] = 1
    tokens = generator.integers(5, 2**16, len(word_starts))
    masking = Masking(0.15, 0.8, 0.1, mask_id=4, special_ids=SPECIAL, vocab_size=2**16)
    input_ids, labels = masking.apply(tokens, np.random.default_rng(1), word_starts)
    starts = np.flatnonzero(word_starts)
    chosen = labels != IGNORE_INDEX
    assert (labels[chosen] == tokens[chosen]).all() and (input_ids[~chosen] == tokens[~chosen]).all()
    in_all = {
        "chosen": np.logical_and.reduceat(chosen, starts),
        "masked": np.logical_and.reduceat(chosen & (input_ids == 4), starts),
        "kept": np.logical_and.reduceat(chosen & (input_ids == tokens), starts),
    }
    chosen_words = in_all["chosen"].sum()
    assert (in_all["chosen"] == np.logical_or.reduceat(chosen, starts)).all()
    changed = chosen & (input_ids != 4) & (input_ids != tokens)
    randomised = in_all["chosen"] & np.logical_or.reduceat(changed, starts)
    assert (in_all["masked"] | in_all["kept"] | randomised == in_all["chosen"]).all()
    assert not (randomised & (in_all["masked"] | in_all["kept"])).any()
    assert chosen_words / len(starts) == pytest.approx(0.15, abs=0.001)
    shares = {"masked": in_all["masked"], "kept": in_all["kept"], "randomised": randomised}
    found = {name: words.sum() / len(starts) for name, words in shares.items()}
    assert found == pytest.approx({"masked": 0.12, "kept": 0.015, "randomised": 0.015}, abs=0.001)
    longest = np.repeat(randomised & (lengths == 5), lengths)
    of_longest = np.sort(input_ids[longest].reshape(-1, 5))
    assert (np.diff(of_longest) == 0).any(axis=1).mean() < 0.01  # each token has a random id of its own
    assert input_ids[np.repeat(randomised, lengths)].mean() == pytest.approx(2**15, rel=0.02)


def test_a_word_with_a_special_token_is_never_chosen():
    tokens, word_starts = np.array([1, 9, 0, 7, 8, 2]), np.array([1, 1, 0, 0, 1, 1], np.uint8)
    certain = Masking(1.0, 1.0, 0.0, mask_id=4, special_ids=SPECIAL, vocab_size=1000)
    input_ids, labels = certain.apply(tokens, np.random.default_rng(0), word_starts)
    assert input_ids.tolist() == [1, 9, 0, 7, 4, 2]
    assert labels.tolist() == [IGNORE_INDEX] * 4 + [8, IGNORE_INDEX]


def test_without_whole_words_the_masks_are_those_of_one_draw_a_token():
    for sample in SAMPLES:
        generator = np.random.default_rng(3)
        tokens = sample["tokens"].astype(np.int64)
        chosen = (generator.random(len(tokens)) < 0.3) & (tokens > 4)
        fate = generator.random(len(tokens))
        expected = np.where(chosen & (fate < 0.8), 4, tokens)
        randomised = chosen & (fate >= 0.8) & (fate < 0.8 + 0.1)
        expected[randomised] = generator.integers(1000, size=randomised.sum())
        for word_starts in (None, np.ones(len(tokens), np.uint8)):
            input_ids, labels = MASKING.apply(tokens, np.random.default_rng(3), word_starts)
            assert (input_ids == expected).all() and (labels == np.where(chosen, tokens, IGNORE_INDEX)).all()
    assert batch_of(SAMPLES)["row_digests"] != batch_of(SAMPLES, objective=WHOLE_WORDS)["row_digests"]


@pytest.mark.parametrize("objective", [OBJECTIVE, WHOLE_WORDS], ids=["tokens", "words"])
def test_a_row_is_masked_by_its_position_and_anew_when_drawn_again(objective):
    whole = batch_of(SAMPLES, objective=objective)
    alone = batch_of(SAMPLES[2:], start=2, objective=objective)
    assert whole["row_digests"][2:] == alone["row_digests"]
    again = batch_of(SAMPLES, start=len(SAMPLES), objective=objective)
    other_stage = batch_of(SAMPLES, stage=1, objective=objective)
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


@pytest.mark.parametrize("objective", [OBJECTIVE, WHOLE_WORDS], ids=["tokens", "words"])
def test_a_scheduled_mask_rate_is_that_of_the_update_that_a_row_belongs_to(objective):
    scheduled = segment(0, {"start": 0.1, "end": 0.9})
    tokens = np.random.default_rng(0).integers(5, 1000, 20_000)
    word_starts = (np.arange(20_000) % 2 == 0).astype(np.uint8)
    for position in range(20):
        masking = Masking(0.1 + 0.8 * (position // 2) / 10, 0.8, 0.1, 4, SPECIAL, 1000)
        words = word_starts if objective.whole_words else None
        _, expected = masking.apply(tokens, row_generator(17, 0, position), words)
        prepare = TrainingPrepared(objective, TOKENIZER, 17, scheduled)
        _, labels = prepare({"tokens": tokens, "position": position, "word_starts": word_starts})
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
