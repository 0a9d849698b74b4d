"""Rows of tasks: batches by task, noise as published, and rows that are not a task's refused."""

import numpy as np
import pytest
import torch

from rotary_foundry.data.batches import collate, num_rows, num_tokens, split
from rotary_foundry.data.corpus import TokenizerFacts
from rotary_foundry.data.row_preparation import HeldOutPrepared
from rotary_foundry.objectives.multi_task import MultiTask, with_noise
from rotary_foundry.utils.errors import DataError
from tests.task_corpus import ROW_LENGTH, TASKS, VOCABULARY, make_row

ROLES = dict(zip(("unk_token", "cls_token", "sep_token", "pad_token", "mask_token"), range(5), strict=True))
TOKENIZER = TokenizerFacts(VOCABULARY, ROLES, "")


@pytest.fixture
def objective() -> MultiTask:
    shares = {"mlm_probability": 0.3, "eval_mlm_probability": 0.15, "mask_share": 0.8, "random_share": 0.1}
    made = MultiTask(combine="mean", rows_per_block=2, **shares)
    made.tasks = TASKS
    return made


def rows(*names: str) -> list[dict]:
    generator = np.random.default_rng(0)
    return [make_row(TASKS[name], generator) | {"source": name, "row": row} for row, name in enumerate(names)]


def batch_of(objective: MultiTask, samples: list[dict]) -> dict:
    return collate(samples, HeldOutPrepared(objective, TOKENIZER, 17), ROW_LENGTH, VOCABULARY, by_task=True)


def test_a_batch_is_sorted_by_task_and_no_microbatch_has_two(objective):
    samples = rows("topic", "names", "text", "topic", "names", "topic")
    for sample in samples:
        if sample["source"] == "text":
            del sample["targets"], sample["allowed"]
    batch = batch_of(objective, samples)
    assert batch["row_sources"] == ["names"] * 2 + ["text"] + ["topic"] * 3
    microbatches = split(batch, 2)
    assert [one["row_sources"] for one in microbatches] == [["names"] * 2, ["text"], ["topic"] * 2, ["topic"]]
    for key in ("input_ids", "labels", "allowed"):
        assert torch.equal(torch.cat([one[key] for one in microbatches]), batch[key])
    assert sum(map(num_rows, microbatches)) == 6
    for one in microbatches:
        documents = one["targets"][:, 0]
        assert len(one["targets"]) == sum(one["row_targets"])
        assert documents.size == 0 or (documents.min() >= 0 and documents.max() < len(one["cu_seqlens"]) - 1)
    of_topic = np.concatenate([one["targets"] for one in microbatches if one["row_sources"][0] == "topic"])
    firsts = torch.cat(
        [
            one["input_ids"][one["cu_seqlens"][one["targets"][:, 0]].long() + 1]
            for one in microbatches
            if one["row_sources"][0] == "topic"
        ]
    )
    assert of_topic[:, 1].tolist() == (firsts % 2).tolist()  # the label that the corpus gives, still at its document


def test_the_loss_counts_examples_and_in_text_the_predicted_tokens(objective):
    samples = rows("topic", "names", "pick", "text")
    batch = batch_of(objective, samples)
    counted = dict(zip(batch["row_sources"], batch["row_predicted"], strict=True))
    topic, names, pick, _ = samples
    assert counted["topic"] == len(topic["lengths"]) and counted["names"] == len(names["lengths"])
    assert counted["pick"] == 2 and len(pick["lengths"]) > 2
    assert counted["text"] == int((batch["labels"] >= 0).sum()) > 0
    assert num_tokens(batch)["loss_generating"] == sum(counted.values())


def test_noise_has_the_published_shares_comes_in_pairs_and_spares_special_tokens(objective):
    tokens = np.random.default_rng(0).integers(5, VOCABULARY, 400_000)
    tokens[::50] = 2
    noisy = with_noise(tokens, 0.15, TOKENIZER, np.random.default_rng(1))
    assert (noisy[::50] == 2).all()
    masked = noisy == ROLES["mask_token"]
    assert masked.mean() == pytest.approx(0.15 * 0.8 * 0.96, rel=0.03)  # special tokens break some pairs
    changed = (noisy != tokens) & ~masked
    assert changed.mean() == pytest.approx(0.15 * 0.18 * 0.96, rel=0.05)
    ends = np.diff(np.flatnonzero(np.diff(np.r_[False, masked, False].astype(int))).reshape(-1, 2), axis=1)
    assert (ends % 2 == 0).mean() > 0.99  # masks come two by two


def test_held_out_rows_have_no_noise(objective):
    objective.input_noise = 0.5
    (sample,) = rows("topic")
    assert batch_of(objective, [sample])["input_ids"].tolist() == sample["tokens"].tolist()


@pytest.mark.parametrize(
    ("targets", "says"),
    [([0, 3, 0, 0, 1, 0, 0, 0], "label 3"), ([], "targets of 0 numbers"), (None, "no column 'targets'")],
)
def test_a_row_whose_targets_are_not_its_tasks_is_refused(objective, targets, says):
    row = {"tokens": np.full(11, 9, np.uint16), "lengths": np.array([5, 6], np.uint32), "source": "topic", "row": 4}
    if targets is not None:
        row["targets"] = np.array(targets, float)
    with pytest.raises(DataError, match=rf"topic: row 4 .*{says}.*prepare the data again"):
        batch_of(objective, [row])
