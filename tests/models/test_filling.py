"""A microbatch that is filled for compiled layers has the loss, the counts and the gradients that it has without."""

import pytest
import torch

from rotary_foundry.data.batches import filled, num_rows, num_tokens, split
from rotary_foundry.models.composer_model import FoundryModel
from rotary_foundry.objectives.objective import IGNORE_INDEX
from tests.models.test_host_waits import BOTH, ROW_LENGTH, batch


@BOTH
def test_loss_counts_and_gradients_are_those_of_the_rows_alone(family, objective):
    """Microbatches of two rows, of two, of one, and of none, in the slots of three."""
    network = family.our_network()
    rows = batch(objective.weighted)
    microbatches = [*split(rows, 2), split({**rows, "most_rows": 6}, 1)[-1]]
    assert list(map(num_rows, microbatches)) == [2, 2, 1, 0]
    for microbatch in microbatches:
        outcomes = []
        for static_rows in (None, {"only": 3}):
            model = FoundryModel(network, {"only": objective}, "only", cpu_autocast=False, static_rows=static_rows)
            network.zero_grad()
            outputs = model(microbatch)
            model.loss(outputs, microbatch).backward()
            gradients = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
            outcomes.append((outputs, gradients))
        (ours, of_ours), (alone, of_alone) = reversed(outcomes)
        torch.testing.assert_close(ours.cross_entropy, alone.cross_entropy, rtol=1e-5, atol=0)
        assert (ours.correct, ours.tokens, ours.scored) == (alone.correct, alone.tokens, alone.scored)
        assert (of_ours - of_alone).norm() <= 1e-5 * of_alone.norm()


def test_every_microbatch_of_a_size_has_as_many_tokens_and_documents_no_longer_than_a_row():
    rows = batch(weighted=True)
    for microbatch in split({**rows, "most_rows": 6}, 1):
        full = filled(microbatch, 4)
        assert {len(full[key]) for key in ("input_ids", "labels")} == {4 * ROW_LENGTH}
        assert full["cu_seqlens"].dtype == torch.int32
        assert full["cu_seqlens"].diff().tolist() == [10, 20, 30, ROW_LENGTH, ROW_LENGTH, ROW_LENGTH, 4]
        assert (full["labels"][60:] == IGNORE_INDEX).all() and (full["input_ids"][60:] == 0).all()
        assert num_tokens(full) == num_tokens(microbatch)
        assert {key: full[key] for key in full if key.startswith("row_")} == {
            key: microbatch[key] for key in microbatch if key.startswith("row_")
        }


def test_full_rows_get_no_document_and_more_tokens_than_there_is_room_for_are_an_error():
    (microbatch,) = split(batch(weighted=False), 5)
    whole = {**microbatch, "row_length": 60}
    assert torch.equal(filled(whole, 5)["cu_seqlens"], whole["cu_seqlens"])
    with pytest.raises(RuntimeError):
        filled(whole, 4)
