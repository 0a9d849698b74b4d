"""RoFormerV2 computes what the published model does, and is initialised and trained as published."""

import math
from dataclasses import fields

import pytest
import torch

from rotary_foundry.models.layers import attention as dispatch
from rotary_foundry.models.layers import attention_flash
from rotary_foundry.models.roformer_v2.network import RoFormerV2
from rotary_foundry.recipe.loading import merged
from rotary_foundry.recipe.schema import schema_of
from rotary_foundry.utils.errors import ConfigurationError, DataError
from tests.models import flash_stand_in
from tests.models.peers import initialise, masked, pack, tile_all
from tests.models.roformer_v2_peers import (
    FAMILY,
    KNOBS,
    our_network,
    small_shape,
    their_encoder,
    their_hidden_states,
)

BATCHES = {
    "one short document": (37,),
    "one document beyond 512 tokens": (700,),
    "padded": (300, 20),
    "mixed lengths": (5, 300, 64, 1, 129, 700, 128, 2),
}


def published_shape(size):
    model = merged(f"yamls/models/roformer_v2_{size}.yaml", schema_of("roformer_v2")).model
    return FAMILY.Shape(**{key.name: model[key.name] for key in fields(FAMILY.Shape)})


@pytest.mark.parametrize(
    ("size", "millions"), [("small", 15.23), ("base", 94.15), ("large", 314.28)], ids=lambda value: str(value)
)
def test_published_sizes(size, millions):
    shape = published_shape(size)
    assert round(shape.parameters / 1e6, 2) == millions
    assert shape.head_dim == 64
    assert not list(shape.problems())


@pytest.mark.parametrize("size", ["nano", "small", "base", "large"])
def test_the_parameters_of_a_shape_are_those_of_its_network(size):
    shape = published_shape(size)
    with torch.device("meta"):
        network = RoFormerV2(shape, KNOBS)
    state = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert list(shape.parameter_shapes().items()) == list(state.items())
    assert state.keys() == dict(network.named_parameters()).keys()


@pytest.mark.parametrize("attn_implementation", ["auto", "sdpa"])
@pytest.mark.parametrize("norm_eps", [1e-12, 1e-7])
@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES.keys())
@torch.no_grad()
def test_hidden_states_and_logits_equal(lengths, norm_eps, attn_implementation):
    ours = our_network(norm_eps=norm_eps, attn_implementation=attn_implementation).double().eval()
    batch = pack(*lengths)
    expected = their_hidden_states(their_encoder(ours), *batch)
    hidden = ours.hidden_states(*batch)
    torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-10)
    expected = expected @ ours.embeddings.word_embeddings.weight.T
    torch.testing.assert_close(ours.unembed(hidden), expected, rtol=0, atol=1e-10)
    assert torch.equal(ours(*batch), ours.unembed(hidden))


@pytest.mark.parametrize(
    "shape",
    [
        {"num_attention_heads": 1},
        {"num_attention_heads": 8, "hidden_size": 128, "vocab_size": 320},
        {"num_hidden_layers": 1},
        {"num_hidden_layers": 6, "intermediate_size": 200},
    ],
    ids=str,
)
@torch.no_grad()
def test_hidden_states_equal_in_other_shapes(shape):
    ours, batch = our_network(**shape).double().eval(), pack(300, 20, 430)
    expected = their_hidden_states(their_encoder(ours), *batch)
    torch.testing.assert_close(ours.hidden_states(*batch), expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_segments_are_embedded_and_none_are_zeros():
    ours, (input_ids, cu_seqlens) = our_network().double().eval(), pack(90, 40)
    types = torch.zeros_like(input_ids)
    assert torch.equal(
        ours.hidden_states(input_ids, cu_seqlens), ours.hidden_states(input_ids, cu_seqlens, token_type_ids=types)
    )
    types[50:90] = types[110:] = 1
    expected = their_hidden_states(their_encoder(ours), input_ids, cu_seqlens, types)
    hidden = ours.hidden_states(input_ids, cu_seqlens, token_type_ids=types)
    torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-10)


def test_gradients_equal():
    ours = our_network().double()
    theirs = their_encoder(ours)
    input_ids, cu_seqlens = pack(40, 300, 7, 129)
    labels = masked(input_ids)
    loss = ours(input_ids, cu_seqlens, labels=labels)
    loss.cross_entropy.backward()
    words = theirs.embeddings.word_embeddings.weight
    logits = their_hidden_states(theirs, input_ids, cu_seqlens) @ words.T
    expected = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    expected.backward()
    assert loss.cross_entropy.item() == pytest.approx(expected.item(), rel=1e-6)
    pairs = [(ours.embeddings.word_embeddings.weight.grad, words.grad)]
    for layer, their_layer in zip(ours.layers, theirs.encoder.layer, strict=True):
        pairs += [
            (layer.attn.Wqkv.weight.grad[-64:], their_layer.attention.self.value.weight.grad),
            (layer.mlp.Wi.weight.grad, their_layer.intermediate.dense.weight.grad),
            (layer.mlp.Wo.weight.grad, their_layer.output.dense.weight.grad),
        ]
    for found, wanted in pairs:
        assert (found - wanted).norm() < 1e-5 * wanted.norm()  # the loss sums in float32


# residual_scale


@torch.no_grad()
def test_at_residual_scale_0_the_output_is_the_normed_embedding():
    network, (input_ids, cu_seqlens) = our_network(residual_scale=0.0).double(), pack(40, 300)
    embedded = network.embeddings(input_ids, None)
    torch.testing.assert_close(network.hidden_states(input_ids, cu_seqlens), embedded, rtol=0, atol=1e-10)


def test_at_residual_scale_0_the_gradients_of_the_layers_are_0():
    network, (input_ids, cu_seqlens) = our_network(residual_scale=0.0), pack(40, 300)
    network(input_ids, cu_seqlens, labels=masked(input_ids)).cross_entropy.backward()
    for name, parameter in network.named_parameters():
        assert bool(parameter.grad.any()) == name.startswith("embeddings."), name


def test_at_residual_scale_1_it_is_the_plain_model_to_the_bit():
    """Compared with the layer as it would be written without the factor."""
    network, (input_ids, cu_seqlens) = our_network(), pack(40, 300)

    def plain(layer, hidden, documents, rotary, scale):
        hidden = layer.norm(hidden + layer.attn(hidden, documents, rotary))
        return layer.norm(hidden + layer.mlp(hidden))

    outcomes = []
    for _ in range(2):
        network.zero_grad()
        loss = network(input_ids, cu_seqlens, labels=masked(input_ids)).cross_entropy
        loss.backward()
        outcomes.append([loss.detach(), *(parameter.grad.clone() for parameter in network.parameters())])
        for layer in network.layers:
            layer.forward = plain.__get__(layer)
    assert all(torch.equal(*pair) for pair in zip(*outcomes, strict=True))


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, "1", True, None])
def test_a_residual_scale_outside_0_to_1_is_refused(value):
    with pytest.raises(ConfigurationError, match=r"^residual_scale: .* is not a number in \[0, 1\]$"):
        our_network(residual_scale=value)
    network = our_network(residual_scale=0.25)
    with pytest.raises(ConfigurationError, match=r"^residual_scale: "):
        network.set_knob("residual_scale", value)
    assert network.knobs["residual_scale"] == 0.25


# initialisation


@pytest.mark.parametrize(("exponent", "depth"), [(0.5, 6**-0.5), (0.0, 1.0)])
def test_matrices_begin_with_the_published_deviation(exponent, depth):
    shape = small_shape(
        vocab_size=1024, hidden_size=128, intermediate_size=512, num_hidden_layers=6, init_depth_exponent=exponent
    )
    network = RoFormerV2(shape, KNOBS)
    initialise(network, 17, FAMILY)
    for name, parameter in network.named_parameters():
        fan_in = 512 if name.endswith("mlp.Wo.weight") else 128  # that of a table is the hidden size
        std = depth / fan_in**0.5
        assert parameter.abs().max() <= 2 * 1.13684723 * std, name
        if "token_type" not in name:
            assert parameter.std().item() == pytest.approx(std, rel=0.03), name
            assert abs(parameter.mean().item()) < 0.03 * std, name


@pytest.mark.parametrize(("exponent", "excess"), [(0.5, 1 / 12), (0.0, 1 / 2)])
@torch.no_grad()
def test_the_first_loss_is_that_of_the_logits_variance(exponent, excess):
    """Labels that the input does not show: ln V, and half the variance of the logits, N^-2·exponent."""
    shape = small_shape(vocab_size=2048, hidden_size=128, num_hidden_layers=6, init_depth_exponent=exponent)
    network = RoFormerV2(shape, KNOBS)
    initialise(network, 17, FAMILY)
    input_ids, cu_seqlens = pack(*[64] * 16, vocab_size=2048)
    labels, _ = pack(*[64] * 16, vocab_size=2048, seed=1)
    loss = network(input_ids, cu_seqlens, labels=labels)
    assert loss.cross_entropy.item() / loss.tokens == pytest.approx(math.log(2048) + excess, abs=0.05)


def test_the_seed_and_the_name_decide_a_first_value():
    shape = small_shape()
    name, other = (f"layers.{layer}.mlp.Wi.weight" for layer in (0, 1))
    value = FAMILY.initial_value(name, shape, 17)
    assert torch.equal(value, FAMILY.initial_value(name, shape, 17))
    assert not torch.equal(value, FAMILY.initial_value(name, shape, 18))
    assert not torch.equal(value, FAMILY.initial_value(other, shape, 17))


# bad input


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_attention_heads": 5}, "num_attention_heads: 5 heads do not divide a hidden size of 64"),
        ({"num_attention_heads": 64}, "num_attention_heads: 64 heads of 1;"),
        ({"hidden_size": 64.0}, r"hidden_size: 64\.0 is not of type int"),
        ({"norm_eps": 0.0}, r"norm_eps: 0\.0 is not positive"),
        ({"init_depth_exponent": -0.5}, r"init_depth_exponent: -0\.5 is not in \[0, 1\]"),
    ],
    ids=str,
)
def test_a_shape_that_no_model_can_have_is_refused(change, says):
    with pytest.raises(ConfigurationError, match=f"^model.{says}"):
        RoFormerV2(small_shape(**change), KNOBS)


@pytest.mark.parametrize(
    ("types", "says"),
    [
        ([0, 1, 2, 0], r"token_type_ids: 2 at 2 is not in \[0, 2\)"),
        ([0, 1, 0, -1], r"token_type_ids: -1 at 3"),
        ([0, 1], r"token_type_ids: expected the shape of input_ids, \[4\], got \[2\]"),
        ([0.0, 1.0, 0.0, 1.0], r"token_type_ids: expected torch\.int64, got torch\.float32"),
    ],
    ids=str,
)
def test_segments_that_do_not_exist_are_refused(types, says):
    with pytest.raises(DataError, match=says):
        our_network().hidden_states(*pack(4), token_type_ids=torch.tensor(types))


# packing, dropout, growth


def test_bf16_autocast_agrees_with_float32():
    network, (input_ids, cu_seqlens) = our_network(), pack(300, 20, 600)
    outcomes = []
    for enabled in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = network(input_ids, cu_seqlens)
            network(input_ids, cu_seqlens, labels=masked(input_ids)).cross_entropy.backward()
        outcomes.append((logits.detach().float(), torch.cat([p.grad.flatten() for p in network.parameters()])))
    (logits, grads), (bf16_logits, bf16_grads) = outcomes
    assert (bf16_logits - logits).norm() / logits.norm() < 0.03
    assert (bf16_grads - grads).norm() / grads.norm() < 0.05


def test_varlen_and_flash_compute_what_sdpa_computes(monkeypatch):
    """With exact kernels in place of the GPU's."""
    flash_stand_in.install(monkeypatch, "flash_attn", flash_stand_in.flash_attention_2)
    monkeypatch.setattr(attention_flash, "has_flash_attention_3", lambda device: False)
    network, (input_ids, cu_seqlens) = our_network(), pack(300, 20, 1, 600)
    outcomes = []
    for implementation in ("sdpa", "varlen", "flash"):
        monkeypatch.setattr(dispatch, "choose", lambda *asked, chosen=implementation: chosen)
        network.zero_grad()
        with flash_stand_in.torch_kernels() as calls, torch.autocast("cpu", torch.bfloat16):
            logits = network(input_ids, cu_seqlens)
            torch.nn.functional.cross_entropy(logits.float(), input_ids).backward()
        assert bool(calls) == (implementation == "varlen")
        outcomes.append((logits.detach().float(), torch.cat([p.grad.flatten() for p in network.parameters()])))
    for other in outcomes[1:]:
        for found, with_sdpa in zip(other, outcomes[0], strict=True):
            assert (found - with_sdpa).norm() / with_sdpa.norm() < 0.02


def test_dropout_acts_in_training_only_and_everywhere():
    network, batch = our_network(hidden_dropout=0.5), pack(50)
    places = [module for module in network.modules() if isinstance(module, torch.nn.Dropout)]
    assert [module.p for module in places] == [0.5] * (1 + 1 + 2 * 3)
    assert not torch.equal(network(*batch), network(*batch))
    assert torch.equal(network.eval()(*batch), network(*batch))


@torch.no_grad()
def test_twice_the_heads_and_units_of_the_same_kind_change_no_direction():
    """A model grown to twice its width and depth runs, and its heads are its source's, pairs and all."""
    source = our_network()
    target = small_shape(hidden_size=128, intermediate_size=192, num_hidden_layers=6, num_attention_heads=8)
    grown = tile_all(source.state_dict(), source.shape, target, FAMILY)
    network = RoFormerV2(target, KNOBS)
    network.load_state_dict(grown)
    assert network(*pack(40)).isfinite().all()
    assert grown["embeddings.token_type_embeddings.weight"].shape == (2, 128)
    heads = source.layers[1].attn.Wqkv.weight.view(3, 4, 16, 64)
    found = grown["layers.2.attn.Wqkv.weight"].view(3, 8, 16, 128)[:, 2:6, :, 32:96]  # the centre
    assert torch.equal(found, heads)
