"""Our network computes what transformers' ModernBertForMaskedLM computes with the same weights."""

import pytest
import torch
import torch.nn.functional as F

from tests.models.peers import masked, our_network, pack, their_logits, their_network

BATCHES = {
    "one short document": (37,),
    "one document beyond the window": (700,),
    "mixed lengths": (5, 300, 64, 1, 129, 700, 128, 2),
}


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("rope_theta", [10_000.0, 160_000.0])
@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES.keys())
@torch.no_grad()
def test_logits_equal(lengths, rope_theta, attn_implementation):
    ours = our_network(rope_theta).eval()
    theirs = their_network(ours, attn_implementation).eval()
    batch = pack(*lengths)
    torch.testing.assert_close(ours(*batch), their_logits(theirs, *batch), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "shape",
    [
        {"num_attention_heads": 1},
        {"num_attention_heads": 8, "hidden_size": 128, "vocab_size": 320},
        {"num_hidden_layers": 1},
        {"num_hidden_layers": 7, "global_attn_every_n_layers": 2},
        {"local_attention": 16},
        {"global_attn_every_n_layers": 1, "local_attention": None},
        {"local_attention": 400},
        {"local_rope_theta": 500.0, "norm_eps": 1e-3},
    ],
    ids=str,
)
@torch.no_grad()
def test_logits_equal_in_other_shapes(shape):
    ours = our_network(160_000.0, **shape).eval()
    batch = pack(300, 20, 430)
    torch.testing.assert_close(ours(*batch), their_logits(their_network(ours).eval(), *batch), rtol=0, atol=1e-4)


def test_gradients_equal():
    ours = our_network(160_000.0)
    theirs = their_network(ours)
    input_ids, cu_seqlens = pack(40, 300, 7, 129)
    labels = masked(input_ids)
    loss = ours(input_ids, cu_seqlens, labels=labels)
    expected = F.cross_entropy(their_logits(theirs, input_ids, cu_seqlens), labels, ignore_index=-100)
    (loss.cross_entropy / loss.tokens).backward()
    expected.backward()
    torch.testing.assert_close(loss.cross_entropy / loss.tokens, expected, rtol=1e-5, atol=0)
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        error = (parameter.grad - expected[name].grad).norm() / expected[name].grad.norm()
        assert error < 1e-5, f"{name}: {error:.1e}"


def test_parameter_names_are_those_transformers_saves():
    ours = our_network()
    assert ours.state_dict().keys() == their_network(ours).state_dict().keys() - {"decoder.weight"}


@torch.no_grad()
def test_theta_takes_effect_at_the_next_forward_and_is_not_saved():
    network, batch = our_network(10_000.0).eval(), pack(500)
    before = network(*batch)
    network.set_knob("rope_theta", 160_000.0)
    after = network(*batch)
    assert (after - before).abs().max() > 0.1
    fresh = our_network(160_000.0).eval()
    fresh.load_state_dict(network.state_dict())
    assert torch.equal(after, fresh(*batch))
