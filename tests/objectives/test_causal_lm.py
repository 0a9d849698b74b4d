"""The next token: labels of packed rows, and sums of loss and gradient that do not depend on how rows were packed."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rotary_foundry import load_recipe
from rotary_foundry.data.batches import collate, num_tokens, split
from rotary_foundry.data.corpus import TokenizerFacts
from rotary_foundry.data.row_preparation import HeldOutPrepared
from rotary_foundry.objectives.causal_lm import CausalLM
from rotary_foundry.objectives.objective import IGNORE_INDEX
from rotary_foundry.utils.errors import ConfigurationError
from tests.models.llama.peers import our_network

VOCABULARY, ROW_LENGTH = 192, 64
BOS, EOS = 0, 1
TOKENIZER = TokenizerFacts(VOCABULARY, {"bos_token": BOS, "eos_token": EOS}, "")
LENGTHS = st.lists(st.integers(1, 16), min_size=1, max_size=4)  # of a row's documents, in tokens


def batch_of(rows: list[list[np.ndarray]], document_mask: bool = True) -> dict:
    samples = [
        {"row": number, "tokens": np.concatenate(row), "lengths": np.array([len(document) for document in row])}
        for number, row in enumerate(rows)
    ]
    objective = CausalLM(document_mask)
    return collate(samples, HeldOutPrepared(objective, TOKENIZER, 17), ROW_LENGTH, VOCABULARY, objective.document_mask)


def documents_of(lengths: list[int]) -> list[np.ndarray]:
    generator = np.random.default_rng(sum(lengths))
    return [np.r_[BOS, generator.integers(2, VOCABULARY, length - 1)].astype(np.uint16) for length in lengths]


@given(st.lists(LENGTHS, min_size=1, max_size=4), st.booleans(), st.integers(1, 4))
def test_every_token_but_a_documents_first_is_predicted_from_the_one_before_it(rows, document_mask, microbatch_size):
    documents = [documents_of(lengths) for lengths in rows]
    batch = batch_of(documents, document_mask)
    flat = [document for row in documents for document in row]
    places = np.cumsum([len(document) for document in flat])[:-1]
    inputs, labels = (np.split(batch[key].numpy(), places) for key in ("input_ids", "labels"))
    for document, seen, next_ones in zip(flat, inputs, labels, strict=True):
        assert seen.tolist() == document.tolist()
        assert next_ones.tolist() == [*document[1:], IGNORE_INDEX]
    assert num_tokens(batch)["loss_generating"] == pytest.approx(sum(len(document) - 1 for document in flat))
    attended = rows if document_mask else [[sum(lengths)] for lengths in rows]
    assert batch["cu_seqlens"].diff().tolist() == [length for row in attended for length in row]
    parts = split(batch, microbatch_size)
    assert [len(part["cu_seqlens"]) - 1 for part in parts] == [
        sum(map(len, attended[start : start + microbatch_size])) for start in range(0, len(rows), microbatch_size)
    ]
    assert all(int(part["cu_seqlens"][-1]) == len(part["input_ids"]) for part in parts)


def sums(network, batches: list[dict]) -> tuple[torch.Tensor, int, int, torch.Tensor]:
    """The loss, what is right, the predicted tokens, and the gradient of the loss's sum."""
    network.zero_grad()
    losses = [CausalLM().loss(network, batch) for batch in batches]
    total = sum(loss.cross_entropy for loss in losses)
    total.backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    return total.detach(), sum(int(loss.correct) for loss in losses), sum(loss.tokens for loss in losses), gradient


def test_loss_and_gradient_do_not_depend_on_where_documents_fall_or_on_microbatches():
    """In float64; the documents are packed into four rows, into three in another order, and one a row."""
    network = our_network(vocab_size=VOCABULARY).double()
    documents = documents_of([20, 9, 30, 1, 12, 40, 2, 25, 17])
    packings = (
        [documents[:3], documents[3:5], documents[5:7], documents[7:]],
        [[documents[8], documents[0], documents[7]], [documents[5], documents[6], documents[1]],
         [documents[2], documents[4], documents[3]]],
        [[document] for document in documents],
    )  # fmt: skip
    expected, *others = [sums(network, [batch_of(rows)]) for rows in packings]
    others.append(sums(network, split(batch_of(packings[0]), 1)))
    assert expected[2] == sum(map(len, documents)) - len(documents)
    for found in others:
        assert found[1:3] == expected[1:3]
        torch.testing.assert_close(found[0], expected[0], rtol=1e-9, atol=0)
        assert (found[3] - expected[3]).norm() <= 1e-8 * expected[3].norm()


def test_without_the_mask_a_token_attends_to_the_documents_before_it_in_its_row_only():
    network, documents = our_network(vocab_size=VOCABULARY), documents_of([20, 30, 10])
    masked, whole = (batch_of([documents[:2], documents[2:]], document_mask) for document_mask in (True, False))
    assert torch.equal(masked["labels"], whole["labels"]) and torch.equal(masked["input_ids"], whole["input_ids"])
    within, across = (network(batch["input_ids"], batch["cu_seqlens"]) for batch in (masked, whole))
    torch.testing.assert_close(within[:20], across[:20])
    torch.testing.assert_close(within[50:], across[50:])
    assert (within[20:50] - across[20:50]).abs().amax(dim=1).min() > 1e-3
    as_one = torch.tensor([0, 50], dtype=torch.int32)
    torch.testing.assert_close(network(whole["input_ids"][:50], as_one), across[:50])


def test_a_row_of_documents_of_one_token_has_no_loss_and_no_gradient():
    network = our_network(vocab_size=VOCABULARY)
    total, _, predicted, gradient = sums(network, [batch_of([documents_of([1, 1])])])
    assert (total, predicted) == (0, 0) and (gradient == 0).all()


@pytest.mark.parametrize(
    ("recipe", "override", "says"),
    [
        (
            "nano",
            "objective={name: causal_lm}",
            r"nano\.yaml: 'objective\.name': 'causal_lm' needs attention to earlier",
        ),
        (
            "roformer_v2_nano",
            "stages.pretrain.objective=causal_lm",
            r"'stages\.pretrain\.objective\.name': 'causal_lm'",
        ),
        (
            "llama_nano",
            "objective={name: masked_lm, mlm_probability: 0.3, eval_mlm_probability: 0.15, mask_share: 0.8,"
            "random_share: 0.1}",
            r"llama_nano\.yaml: 'objective\.name': 'masked_lm' needs attention in both directions, and llama has "
            r"attention to earlier tokens only; choose an objective for it \(causal_lm, instruction\)",
        ),
        (
            "llama_nano",
            "objective.document_mask=maybe",
            r"'objective\.document_mask': Value 'maybe' is not a valid bool",
        ),
        ("llama_nano", "stages.pretrain.mlm_probability=0.3", "neither llama nor causal_lm has it"),
        ("llama_nano", "objective.dokument_mask=true", r"unknown key 'objective\.dokument_mask'"),
    ],
)
def test_an_objective_that_the_family_cannot_serve_is_refused_by_file_and_key(recipe, override, says):
    with pytest.raises(ConfigurationError, match=says):
        load_recipe(f"yamls/main/{recipe}.yaml", ["init_from=null", override])


def test_the_nano_recipes_take_as_many_tokens_an_update_before_and_after_the_length_is_raised():
    nano, long = (load_recipe(f"yamls/main/{name}.yaml") for name in ("llama_nano", "llama_nano_long"))
    (first,), (second,) = (recipe.stages.values() for recipe in (nano, long))
    tokens = [stage.global_train_batch_size * stage.row_length for stage in (first, second)]
    assert tokens == [8192, 8192] and second.row_length == 4 * first.row_length
    assert nano.model.shape == long.model.shape
    assert not list(long.model.shape.remarks(long.knobs_of("extend"), second.row_length))  # theta is large enough
