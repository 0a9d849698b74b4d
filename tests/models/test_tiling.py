"""A grown model is its source in the centre and wrapped around it, head by head, half by half, layer by layer.

Every element of a source here is a number of its own, so that equal numbers mean the same element. What is expected
comes from nested lists: a weight as [part][head][row][column] is wrapped level by level, with no index arithmetic.
"""

from dataclasses import replace
from fractions import Fraction
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rotary_foundry.models.growing import tile_parameter
from rotary_foundry.models.modernbert.network import ModernBert
from rotary_foundry.utils.errors import ConfigurationError, DataError
from tests.models.peers import FAMILY, KNOBS, our_network, pack, small_shape, tile_all

SOURCE = small_shape()
PATTERNS = [
    {"global_attn_every_n_layers": every, "local_attention": window} for every, window in ((1, None), (2, 64), (3, 128))
]
SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")


def numbered(shape):
    """A state dict in which no number comes twice."""
    with torch.device("meta"):
        sizes = {name: tensor.shape for name, tensor in ModernBert(shape, KNOBS).state_dict().items()}
    numbers = torch.arange(sum(map(prod, sizes.values()))).split([prod(size) for size in sizes.values()])
    return {name: part.view(size) for (name, size), part in zip(sizes.items(), numbers, strict=True)}


@st.composite
def pairs(draw):
    """A small shape and one that holds it."""
    head_dim = draw(st.sampled_from([2, 4]))
    sizes = [(draw(st.integers(1, low)), draw(st.integers(0, more))) for low, more in ((3, 4), (5, 9), (4, 7))]
    shapes = []
    for heads, intermediate, layers in (s for s, _ in sizes), (s + more for s, more in sizes):
        shapes.append(
            replace(
                SOURCE,
                vocab_size=5,
                hidden_size=heads * head_dim,
                intermediate_size=intermediate,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                **draw(st.sampled_from(PATTERNS)),
            )
        )
    return shapes


def wrapped(source, size):
    """A list between copies of itself, cut to `size` so that it is in the middle; an odd place goes after it."""
    before, after = (size - len(source)) // 2, size - len(source) - (size - len(source)) // 2
    left, right = [], []
    while len(left) < before:
        left = source + left
    while len(right) < after:
        right = right + source
    return left[len(left) - before :] + source + right[:after]


def expected_matrix(name, weight, source, target):
    """What a matrix of a layer grows to, as nested lists. weight: [rows, columns]"""
    hidden, inner, heads = target.hidden_size, target.intermediate_size, target.num_attention_heads
    match name.split(".", 3)[3]:
        case "attn.Wqkv.weight":
            parts = weight.view(3, source.num_attention_heads, -1, source.hidden_size).tolist()
            return [wrapped(row, hidden) for part in parts for head in wrapped(part, heads) for row in head]
        case "attn.Wo.weight":
            rows = weight.view(source.hidden_size, source.num_attention_heads, -1).tolist()
            return [[column for head in wrapped(row, heads) for column in head] for row in wrapped(rows, hidden)]
        case "mlp.Wi.weight":
            halves = weight.view(2, source.intermediate_size, source.hidden_size).tolist()
            return [wrapped(row, hidden) for half in halves for row in wrapped(half, inner)]
        case "mlp.Wo.weight":
            return [wrapped(row, inner) for row in wrapped(weight.tolist(), hidden)]


def expected_parameter(name, state, source, target):
    hidden = target.hidden_size
    if name.startswith("model.layers."):
        layer, rest = name.removeprefix("model.layers.").split(".", 1)
        layer = round(Fraction(int(layer) * source.num_hidden_layers, target.num_hidden_layers))
        name = f"model.layers.{min(layer, source.num_hidden_layers - 1)}.{rest}"
        if name == "model.layers.0.attn_norm.weight":
            name = "model.embeddings.norm.weight"
    if name.endswith("norm.weight"):
        return wrapped(state[name].tolist(), hidden)
    if name == "model.embeddings.tok_embeddings.weight":
        return [wrapped(row, hidden) for row in state[name].tolist()]
    if name == "head.dense.weight":
        return [wrapped(row, hidden) for row in wrapped(state[name].tolist(), hidden)]
    if name == "decoder.bias":
        return state[name].tolist()
    return expected_matrix(name, state[name], source, target)


@settings(max_examples=60)
@given(pair=pairs())
def test_every_element_is_the_one_that_wrapping_names(pair):
    source, target = pair
    state = numbered(source)
    grown = tile_all(state, source, target)
    assert grown.keys() == numbered(target).keys()
    for name, tensor in grown.items():
        assert tensor.tolist() == expected_parameter(name, state, source, target), name


@settings(max_examples=60)
@given(pair=pairs())
def test_the_source_stands_in_the_centre_of_a_layer(pair):
    source, target = pair
    state = numbered(source)
    grown = tile_all(state, source, target)

    def centre(weight, *dimensions):
        """The middle of [parts, units, …] along the dimensions that grow; an odd one over is left at the end."""
        for dimension, key in dimensions:
            size, whole = getattr(source, key), getattr(target, key)
            weight = weight.narrow(dimension, (whole - size) // 2, size)
        return weight.flatten()

    _, hidden, heads, inner = SIZES
    layer = "model.layers.0."
    for name, shape, *dimensions in (
        ("attn.Wqkv.weight", (3, target.num_attention_heads, -1, target.hidden_size), (1, heads), (3, hidden)),
        ("attn.Wo.weight", (target.hidden_size, target.num_attention_heads, -1), (0, hidden), (1, heads)),
        ("mlp.Wi.weight", (2, target.intermediate_size, target.hidden_size), (1, inner), (2, hidden)),
        ("mlp.Wo.weight", (target.hidden_size, target.intermediate_size), (0, hidden), (1, inner)),
        ("mlp_norm.weight", (target.hidden_size,), (0, hidden)),
    ):
        assert torch.equal(centre(grown[layer + name].view(shape), *dimensions), state[layer + name].flatten()), name


@settings(max_examples=60)
@given(pair=pairs())
def test_a_head_of_the_target_is_one_head_of_the_source(pair):
    """Queries, keys, values and columns of Wo, in their order."""
    source, target = pair
    state, layer = numbered(source), "model.layers.0.attn."
    grown, shift = tile_all(state, source, target), (target.hidden_size - source.hidden_size) // 2

    def heads(state, shape):
        qkv = state[layer + "Wqkv.weight"].view(3, shape.num_attention_heads, -1, shape.hidden_size)
        out = state[layer + "Wo.weight"].view(shape.hidden_size, shape.num_attention_heads, -1)
        start = 0 if shape is source else shift
        qkv, out = qkv.narrow(3, start, source.hidden_size), out.narrow(0, start, source.hidden_size)
        return [(qkv[:, head].tolist(), out[:, head].tolist()) for head in range(shape.num_attention_heads)]

    whole = heads(state, source)
    assert all(head in whole for head in heads(grown, target))


@settings(max_examples=20)
@given(pair=pairs())
def test_equal_sizes_give_the_same_weights(pair):
    source, other = pair
    pattern = {key: getattr(other, key) for key in PATTERNS[0]}
    target = replace(source, **pattern)
    state = numbered(source)
    grown = tile_all(state, source, target)
    assert grown.keys() == state.keys()
    assert all(torch.equal(grown[name], state[name]) for name in state)


def test_large_takes_its_layers_from_base_as_published():
    """round(i × 22 / 28): 7 comes from 5.5 and 21 from 16.5, and ties go to the even layer."""
    base = replace(SOURCE, hidden_size=24, num_attention_heads=12, num_hidden_layers=22)
    large = replace(SOURCE, hidden_size=32, num_attention_heads=16, num_hidden_layers=28)
    state = numbered(base)
    for name in state:
        if name.startswith("model.layers."):
            state[name] = torch.full_like(state[name], int(name.split(".")[2]))
    grown = tile_all(state, base, large)
    layers = [grown[f"model.layers.{layer}.mlp.Wi.weight"].unique().item() for layer in range(28)]
    assert layers == [
        *(0, 1, 2, 2, 3, 4, 5, 6, 6, 7, 8, 9, 9, 10),
        *(11, 12, 13, 13, 14, 15, 16, 16, 17, 18, 19, 20, 20, 21),
    ]


def test_base_grows_to_the_shapes_of_large():
    base, large = (
        replace(SOURCE, vocab_size=50_368, **dict(zip(SIZES, sizes, strict=True)))
        for sizes in ((22, 768, 12, 1152), (28, 1024, 16, 2624))
    )
    with torch.device("meta"):
        grown = tile_all(ModernBert(base, KNOBS).state_dict(), base, large)
        ModernBert(large, KNOBS).load_state_dict(grown)
    assert sum(tensor.numel() for tensor in grown.values()) == 395_881_664


@torch.no_grad()
def test_a_grown_model_loads_and_runs():
    network = our_network().eval()
    target = replace(SOURCE, hidden_size=112, num_attention_heads=7, intermediate_size=250, num_hidden_layers=9)
    grown = ModernBert(target, KNOBS | {"rope_theta": 160_000.0}).eval()
    grown.load_state_dict(tile_all(network.state_dict(), SOURCE, target))
    assert grown(*pack(200, 30)).isfinite().all()


def test_growing_keeps_the_dtype_and_leaves_the_source_alone():
    state = {name: tensor.bfloat16() for name, tensor in our_network().state_dict().items()}
    before = {name: tensor.clone() for name, tensor in state.items()}
    for tensor in tile_all(state, SOURCE, SOURCE).values():
        assert tensor.dtype == torch.bfloat16
        tensor.zero_()
    assert all(torch.equal(state[name], before[name]) for name in state)


def test_one_parameter_needs_one_tensor_of_the_source():
    target = replace(SOURCE, num_hidden_layers=7)
    name = "model.layers.{}.mlp.Wo.weight".format
    needed = {name(1): our_network().state_dict()[name(1)]}
    assert torch.equal(tile_parameter(name(2), needed, FAMILY, SOURCE, target), needed[name(1)])


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"hidden_size": 32, "num_attention_heads": 2}, "model.hidden_size: expected at least 64, .* got 32"),
        ({"intermediate_size": 95}, "model.intermediate_size: expected at least 96, .* got 95"),
        ({"num_attention_heads": 2}, "model.num_attention_heads: expected at least 4, .* got 2"),
        ({"num_hidden_layers": 3}, "model.num_hidden_layers: expected at least 4, .* got 3"),
        ({"vocab_size": 256}, "model.vocab_size: expected 192, .* got 256"),
        ({"hidden_size": 96}, "4 heads have size 24, expected 16"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value),
)
def test_a_target_that_cannot_hold_the_source_is_refused(change, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        tile_all(our_network().state_dict(), SOURCE, replace(SOURCE, **change))


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"num_hidden_layers": 3}, "they have no model.layers.3.attn_norm.weight"),
        ({"intermediate_size": 95}, r"model.layers.0.mlp.Wi.weight: expected shape \[192, 64\], got \[190, 64\]"),
    ],
    ids=str,
)
def test_weights_of_another_model_are_refused(change, complaint):
    with pytest.raises(DataError, match=complaint):
        tile_all(our_network(**change).state_dict(), SOURCE, replace(SOURCE, num_hidden_layers=6))
