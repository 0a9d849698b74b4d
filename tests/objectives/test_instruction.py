"""What counts of a conversation and how much; sums of loss and gradient that do not depend on how rows were packed."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from rotary_foundry import load_recipe
from rotary_foundry.data.batches import collate, num_tokens, split
from rotary_foundry.data.corpus import TokenizerFacts
from rotary_foundry.data.row_preparation import HeldOutPrepared, nothing_to_predict
from rotary_foundry.models.composer_model import PerPredictedToken
from rotary_foundry.objectives.instruction import Instruction
from rotary_foundry.objectives.objective import IGNORE_INDEX
from rotary_foundry.utils.errors import ConfigurationError, DataError
from tests.models.llama.peers import our_network

VOCABULARY, ROW_LENGTH = 192, 64
TOKENIZER = TokenizerFacts(VOCABULARY, {"bos_token": 0, "eos_token": 1}, "")
TURNS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=3)  # tokens asked, and said
WEIGHT = 0.3
CONVERSATIONS = [[(12, 8)], [(3, 2), (2, 2)], [(20, 10)], [(2, 1)], [(6, 3), (1, 2)], [(30, 10)], [(1, 1)], [(20, 5)]]


def conversation(turns: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, and which of them the assistant says."""
    responses = np.concatenate([np.repeat([0, 1], turn) for turn in turns]).astype(np.uint8)
    return np.random.default_rng(len(responses)).integers(2, VOCABULARY, len(responses)).astype(np.uint16), responses


def samples_of(rows: list[list]) -> list[dict]:
    made = [[conversation(turns) for turns in row] for row in rows]
    return [
        {
            "row": number,
            "tokens": np.concatenate([tokens for tokens, _ in row]),
            "responses": np.concatenate([responses for _, responses in row]),
            "lengths": np.array([len(tokens) for tokens, _ in row]),
        }
        for number, row in enumerate(made)
    ]


class Prepared:
    """Prepares rows as in training, with one weight of prompts."""

    def __init__(self, objective: Instruction, weight: float = WEIGHT):
        self.objective, self.weight = objective, weight

    def __call__(self, sample: dict):
        knobs = {"prompt_loss_weight": self.weight}
        return self.objective.prepare(sample, TOKENIZER, np.random.default_rng(0), knobs)


def batch_of(rows: list[list], objective: Instruction, prepare=None) -> dict:
    return collate(samples_of(rows), prepare or Prepared(objective), ROW_LENGTH, VOCABULARY)


@given(
    st.lists(TURNS, min_size=1, max_size=3),
    st.sampled_from(["all", "last"]),
    st.sampled_from(["none", "all", "length>=9"]),
    st.sampled_from(["tokens", "rows"]),
)
def test_a_label_has_the_weight_of_the_token_that_it_is(turns, target_responses, target_prompts, mean):
    objective = Instruction(target_responses=target_responses, target_prompts=target_prompts, mean=mean)
    (sample,) = samples_of([turns])
    tokens, labels, weights, scored = Prepared(objective)(sample)
    expected, expected_scored = [], []
    for of_conversation in turns:
        length = sum(map(sum, of_conversation))
        prompts = {"none": 0, "all": WEIGHT, "length>=9": WEIGHT if length >= 9 else 0}[target_prompts]
        for number, (asked, said) in enumerate(of_conversation):
            counts = target_responses == "all" or number == len(of_conversation) - 1
            expected += asked * [prompts] + said * [float(counts)]
            expected_scored += asked * [False] + said * [counts]
    first = np.cumsum([0, *sample["lengths"]])
    expected, expected_scored = [*expected[1:], 0.0], [*expected_scored[1:], False]
    for end in first[1:] - 1:  # the next conversation's first token
        expected[end], expected_scored[end] = 0.0, False
    expected = np.array(expected, np.float32)
    assert ((labels != IGNORE_INDEX) == (expected > 0)).all() and scored.tolist() == expected_scored
    assert (labels[expected > 0] == np.roll(tokens, -1)[expected > 0]).all()
    np.testing.assert_allclose(weights, expected / (expected.sum() or 1) if mean == "rows" else expected, rtol=1e-6)
    assert weights.dtype == np.float32


def sums(network, batches: list[dict], objective: Instruction):
    """The mean loss of an update as Composer makes it, what is right of how many, and the gradient."""
    network.zero_grad()
    total = sum(num_tokens(batch)["loss_generating"] for batch in batches)
    losses = [objective.loss(network, batch) for batch in batches]
    mean = sum(
        loss.cross_entropy / (loss.tokens or 1) * (num_tokens(batch)["loss_generating"] / total)
        for loss, batch in zip(losses, batches, strict=True)
    )
    mean.backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    right = sum(int(loss.correct) for loss in losses), sum(loss.count("correct") for loss in losses)
    return mean.detach(), right, gradient


@pytest.mark.parametrize("mean", ["tokens", "rows"])
def test_loss_and_gradient_are_the_weighted_mean_of_the_update_wherever_conversations_fall(mean):
    """In float64, beside plain autograd. With `rows` the rows stay, and only microbatches change."""
    network = our_network(vocab_size=VOCABULARY).double()
    objective = Instruction(target_prompts="length>=13", mean=mean)
    rows = [CONVERSATIONS[:2], CONVERSATIONS[2:5], CONVERSATIONS[5:7], CONVERSATIONS[7:]]
    batch = batch_of(rows, objective)
    network.zero_grad()
    logits = network(batch["input_ids"], batch["cu_seqlens"])
    losses = F.cross_entropy(logits, batch["labels"], reduction="none", ignore_index=IGNORE_INDEX)
    expected = (losses * batch["weights"]).sum() / batch["weights"].double().sum()
    expected.backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    updates = [[batch], split(batch, 1), split(batch, 3)]
    if mean == "tokens":
        updates.append([batch_of([[one] for one in reversed(CONVERSATIONS)], objective)])
    found = [sums(network, update, objective) for update in updates]
    for loss, right, of_update in found:
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=0, check_dtype=False)
        assert right == found[0][1] and right[1] == sum(said for turns in CONVERSATIONS for _, said in turns)
        assert (of_update - gradient).norm() <= 1e-5 * gradient.norm()


def test_held_out_loss_and_accuracy_are_of_responses_only():
    network, rows = our_network(vocab_size=VOCABULARY), [CONVERSATIONS[:3]]
    trained_on_all = Instruction(target_prompts="all")
    batch = batch_of(rows, trained_on_all, HeldOutPrepared(trained_on_all, TOKENIZER, 17))
    logits = network(batch["input_ids"], batch["cu_seqlens"])
    said = torch.from_numpy(np.roll(samples_of(rows)[0]["responses"], -1)).bool()
    expected = F.cross_entropy(logits[said], batch["input_ids"].roll(-1)[said])
    loss = trained_on_all.loss(network, batch)
    right = (logits[said].argmax(1) == batch["labels"][said]).float().mean()
    for metric, value in (("cross_entropy", expected), ("correct", right)):
        measured = PerPredictedToken(metric)
        measured.update(loss)
        torch.testing.assert_close(measured.compute(), value)
    nothing = batch_of(rows, trained_on_all, nothing_to_predict)
    assert trained_on_all.loss(network, nothing).tokens == 0


def test_rows_whose_responses_do_not_fit_are_refused_by_row():
    for change, says in (
        ({"responses": np.ones(3, np.uint8)}, "3 responses for its 20 tokens"),
        ({"responses": np.full(20, 2, np.uint8)}, "a value of 2 in responses"),
        ({"responses": np.zeros(20, np.uint8)}, "a conversation in which the assistant says nothing"),
    ):
        (sample,) = samples_of([CONVERSATIONS[:1]])
        with pytest.raises(DataError, match=f"row 0 of .* has {says}"):
            collate([sample | change], Prepared(Instruction()), ROW_LENGTH, VOCABULARY)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("objective.target_prompts=length>4", r"'objective\.target_prompts': 'length>4' is not none, all, or a length"),
        ("objective.target_responses=first", r"'objective\.target_responses': 'first' is not known"),
        ("objective.mean=row", r"'objective\.mean': 'row' is not known; did you mean 'rows'"),
        (
            "objective.prompt_loss_weight=-1",
            r"'objective\.prompt_loss_weight': -1\.0 is not a finite number of at least 0",
        ),
    ],
)
def test_a_value_that_is_none_is_refused_by_its_key(override, says):
    with pytest.raises(ConfigurationError, match=says):
        load_recipe("yamls/main/llama_nano.yaml", ["objective={name: instruction}", override])
