"""What a document gets does not depend on what it is packed with, or on bf16."""

import pytest
import torch

from rotary_foundry.objectives.objective import IGNORE_INDEX
from tests.models.peers import masked, our_network, pack


@pytest.mark.parametrize("neighbours", [(1, 40), (128, 128), (300, 2), (63, 700)])
@torch.no_grad()
def test_a_document_alone_has_the_logits_it_has_among_others(neighbours):
    network = our_network().eval()
    before, after = neighbours
    input_ids, cu_seqlens = pack(before, 200, after)
    alone = input_ids[before : before + 200]
    expected = network(alone, torch.tensor([0, 200], dtype=torch.int32))
    torch.testing.assert_close(network(input_ids, cu_seqlens)[before : before + 200], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("predicted", [[], [61]])
def test_documents_of_three_tokens_with_hardly_a_mask_have_a_finite_loss_and_gradient(predicted):
    """Short texts get no mask, and their rows no loss (tokenizers#1193)."""
    network, (input_ids, cu_seqlens) = our_network(), pack(*[3] * 40)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    labels[predicted] = 7
    loss = network(input_ids, cu_seqlens, labels=labels)
    loss.cross_entropy.backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    assert gradients.isfinite().all() and loss.tokens == len(predicted)
    assert bool(gradients.any()) == bool(loss.cross_entropy > 0) == bool(predicted)


@torch.no_grad()
def test_an_empty_document_changes_nothing():
    network = our_network().eval()
    input_ids, cu_seqlens = pack(90, 90, 30)
    with_empty = torch.tensor([0, 0, 90, 90, 180, 210, 210], dtype=torch.int32)
    assert torch.equal(network(input_ids, with_empty), network(input_ids, cu_seqlens))


@torch.no_grad()
def test_a_larger_max_seqlen_changes_nothing():
    network, (input_ids, cu_seqlens) = our_network().eval(), pack(70, 150)
    logits = network(input_ids, cu_seqlens)
    torch.testing.assert_close(network(input_ids, cu_seqlens, max_seqlen=1024), logits, rtol=0, atol=1e-6)


def test_bf16_autocast_agrees_with_float32():
    network, (input_ids, cu_seqlens) = our_network(), pack(300, 20, 600)  # 600: beyond where bf16 goes back in float32
    labels = masked(input_ids)
    outcomes = []
    for enabled in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = network(input_ids, cu_seqlens)
            network(input_ids, cu_seqlens, labels=labels).cross_entropy.backward()
        outcomes.append((logits.detach().float(), torch.cat([p.grad.flatten() for p in network.parameters()])))
    (logits, grads), (bf16_logits, bf16_grads) = outcomes
    assert (bf16_logits - logits).norm() / logits.norm() < 0.03
    assert (bf16_grads - grads).norm() / grads.norm() < 0.05


def test_training_works_after_inference_mode():
    """The rotary tables that inference made are used again."""
    network, batch = our_network(rope_theta=777.0), pack(50)
    with torch.inference_mode():
        network(*batch)
    network(*batch).sum().backward()


def test_dropout_acts_in_training_only():
    network, batch = our_network(attn_out_dropout=0.5), pack(50)
    assert not torch.equal(network(*batch), network(*batch))
    network.eval()
    assert torch.equal(network(*batch), network(*batch))


def test_dropout_is_set_in_every_layer():
    network = our_network(attn_out_dropout=0.5)
    assert [layer.attn.out_drop.p for layer in network.blocks] == [0.5] * 4
    network.set_knob("attn_out_dropout", 0.0)
    assert [layer.attn.out_drop.p for layer in network.blocks] == [0.0] * 4
    assert torch.equal(network(*pack(50)), network.eval()(*pack(50)))
