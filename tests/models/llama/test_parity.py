"""Our network computes what transformers' LlamaForCausalLM computes with the same weights."""

import pytest
import torch
import torch.nn.functional as F

from tests.models.llama.peers import (
    SCALED,
    TRAINED_LENGTH,
    next_tokens,
    our_network,
    their_logits,
    their_network,
)
from tests.models.peers import pack

BATCHES = {
    "one short document": (37,),
    "one document beyond the trained length": (3 * TRAINED_LENGTH,),
    "packed": (5, 300, 64, 1, 129, 700, 128, 2),
}
SHAPES = {
    "grouped": {},
    "a key head for each": {"num_key_value_heads": 4},
    "one key head": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "one layer, wide heads": {"num_hidden_layers": 1, "num_attention_heads": 2, "norm_eps": 1e-3},
}


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("rope_theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES.keys())
@torch.no_grad()
def test_logits_equal(lengths, rope_theta, attn_implementation):
    ours = our_network(rope_theta=rope_theta).eval()
    batch = pack(*lengths)
    expected = their_logits(their_network(ours, attn_implementation), *batch)
    torch.testing.assert_close(ours(*batch), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES.keys())
def test_logits_and_gradients_equal_in_float64(lengths, shape):
    ours = our_network(rope_theta=500_000.0, **shape).double()
    theirs, batch = their_network(ours), pack(*lengths)
    labels = next_tokens(*batch)
    found, expected = ours(*batch), their_logits(theirs, *batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    for logits in (found, expected):
        F.cross_entropy(logits, labels).backward()
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_loss_and_its_gradients_equal(tied):
    ours = our_network(tie_word_embeddings=tied)
    theirs, batch = their_network(ours), pack(40, 300, 7, 129)
    labels = next_tokens(*batch)
    loss = ours(*batch, labels=labels)
    assert loss.tokens == 40 + 300 + 7 + 129 - 4
    (loss.cross_entropy / loss.tokens).backward()
    expected = F.cross_entropy(their_logits(theirs, *batch), labels)
    expected.backward()
    torch.testing.assert_close(loss.cross_entropy / loss.tokens, expected, rtol=1e-5, atol=0)
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - wanted[name].grad).norm() < 1e-5 * wanted[name].grad.norm(), name


@pytest.mark.parametrize("method", SCALED)
@torch.no_grad()
def test_logits_equal_with_scaled_positions(method):
    ours, batch = our_network(**SCALED[method]).eval(), pack(700, 90, 1000)
    torch.testing.assert_close(ours(*batch), their_logits(their_network(ours), *batch), rtol=0, atol=1e-4)
    plain = our_network().eval()
    assert (ours(*batch) - plain(*batch)).abs().max() > 0.1


def test_parameter_names_are_those_transformers_saves():
    for tied in (False, True):
        ours = our_network(tie_word_embeddings=tied)
        theirs = dict(their_network(ours).named_parameters())  # which has a tied one once
        assert ours.state_dict().keys() == theirs.keys()


@torch.no_grad()
def test_a_token_sees_none_after_it_and_no_other_document():
    network, (input_ids, cu_seqlens) = our_network().eval(), pack(30, 50)
    changed = input_ids.clone()
    changed[55:] = 3
    before, after = network(input_ids, cu_seqlens), network(changed, cu_seqlens)
    assert torch.equal(before[:55], after[:55]) and not torch.equal(before[55], after[55])
    alone = network(input_ids[30:], torch.tensor([0, 50], dtype=torch.int32))
    torch.testing.assert_close(before[30:], alone, rtol=0, atol=1e-5)


def test_bf16_autocast_agrees_with_float32():
    network, batch = our_network(), pack(300, 20, 600)
    labels = next_tokens(*batch)
    outcomes = []
    for enabled in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = network(*batch)
            network(*batch, labels=labels).cross_entropy.backward()
        outcomes.append((logits.detach().float(), torch.cat([p.grad.flatten() for p in network.parameters()])))
    (logits, grads), (bf16_logits, bf16_grads) = outcomes
    assert (bf16_logits - logits).norm() / logits.norm() < 0.03
    assert (bf16_grads - grads).norm() / grads.norm() < 0.05


@pytest.mark.long
@pytest.mark.timeout(900)
def test_compiled_layers_compute_the_same():
    """By inductor, which compiles C++; tests/models/test_compiled.py counts the graphs."""
    torch._dynamo.reset()
    networks = our_network(), our_network()
    for layer in networks[1].blocks:
        layer.forward = torch.compile(layer.forward, dynamic=True)
    for lengths in ((40, 300), (7, 7, 500)):
        batch = pack(*lengths)
        logits = [network(*batch) for network in networks]
        torch.testing.assert_close(*logits, rtol=0, atol=1e-4)
        for network in networks:
            network.zero_grad()
            network(*batch, labels=next_tokens(*batch)).cross_entropy.backward()
        for eager, compiled in zip(*(network.parameters() for network in networks), strict=True):
            assert (eager.grad - compiled.grad).norm() < 1e-5 * eager.grad.norm()
