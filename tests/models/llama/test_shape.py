"""Sizes, first weights and growth of a Llama; what it cannot be is refused by key."""

from dataclasses import fields

import pytest
import torch

from rotary_foundry.models.llama.network import Llama
from rotary_foundry.recipe.loading import merged
from rotary_foundry.recipe.schema import schema_of
from rotary_foundry.utils.errors import ConfigurationError
from tests.models.llama.peers import FAMILY, KNOBS, our_network, small_shape
from tests.models.peers import initialise, pack, tile_all

PUBLISHED = {
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama2_34b": 33_743_970_304,  # of Code Llama 34B
    "llama2_70b": 68_976_648_192,
    "llama_nano": 4_458_752,
}


def published_shape(size):
    model = merged(f"yamls/models/{size}.yaml", schema_of("llama")).model
    assert {name: model[name] for name in KNOBS} == KNOBS
    return FAMILY.Shape(**{key.name: model[key.name] for key in fields(FAMILY.Shape)})


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_parameters_of_a_shape_are_those_of_its_network(size):
    shape = published_shape(size)
    assert not list(shape.problems())
    assert shape.head_dim == (64 if size == "llama_nano" else 128)
    with torch.device("meta"):
        network = Llama(shape, KNOBS)
    state = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert list(shape.parameter_shapes().items()) == list(state.items())
    assert state.keys() == dict(network.named_parameters()).keys()
    assert shape.parameters == PUBLISHED[size]


def test_operations_count_the_causal_half_of_attention():
    shape = small_shape()
    # scores, and the values that they weigh: 2 products of 2 operations, three times, in 3 layers of width 64
    assert shape.attention_flops([4, 1]) == 3 * 2 * 2 * 3 * 64 * (10 + 1)
    per_token = 3 * (2 * 64 * (64 + 32) + 3 * 64 * 96)
    assert shape.matmul_flops(10, 7) == 6 * (10 * per_token + 7 * 64 * 192)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3 key/value heads do not divide 4 heads of queries"),
        ({"num_attention_heads": 5}, "num_attention_heads: 5 heads do not divide a hidden size of 64"),
        ({"num_key_value_heads": 0}, "num_key_value_heads: 0 is not positive"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings: 1 is not of type bool"),
        ({"hidden_size": True}, "hidden_size: True is not of type int"),
        ({"rope_scaling": "yarm"}, "rope_scaling: 'yarm' is not known; did you mean 'yarn'"),
        ({"rope_scaling": "yarn"}, "original_max_position_embeddings: null, but 'yarn' needs"),
        ({"original_max_position_embeddings": 64}, "original_max_position_embeddings: 64, but only 'yarn' uses it"),
        ({"rope_scaling": "ntk", "num_attention_heads": 32}, "rope_scaling: 'ntk' needs heads of more than 2"),
    ],
    ids=str,
)
def test_a_shape_that_no_model_can_have_is_refused(change, says):
    with pytest.raises(ConfigurationError, match=f"^model.{says}"):
        Llama(small_shape(**change), KNOBS)


@pytest.mark.parametrize(("knob", "value"), [("rope_theta", 1.0), ("rope_factor", 0.5), ("rope_factor", "4")])
def test_a_knob_out_of_its_range_is_refused(knob, value):
    with pytest.raises(ConfigurationError, match=f"^{knob}: {value!r} is not a finite number"):
        our_network(**{knob: value})


def test_a_factor_without_a_method_is_a_problem():
    assert list(small_shape().knob_problems({"rope_factor": 1})) == []
    for factor in (4.0, {"start": 1, "end": 4}):
        ((key, says),) = small_shape().knob_problems({"rope_factor": factor})
        assert key == "rope_factor" and "has no effect with rope_scaling 'none'" in says


def test_a_theta_under_the_bound_is_remarked_with_one_that_will_do():
    shape = small_shape(hidden_size=512)  # heads of 128
    knobs = {"rope_theta": 10_000.0, "rope_factor": 1.0}
    (remark,) = shape.remarks(knobs, 4096)
    assert remark.startswith("rope_theta 10,000 is small for rows of 4,096 tokens: with heads of 128")
    assert "needs 29,000 (arXiv 2405.14591)" in remark
    assert not list(shape.remarks(knobs | {"rope_theta": 29_000.0}, 4096))
    assert not list(small_shape(hidden_size=512, rope_scaling="linear").remarks(knobs | {"rope_factor": 4.0}, 4096))
    assert not list(small_shape(hidden_size=512, rope_scaling="ntk").remarks(knobs | {"rope_factor": 4.0}, 4096))


def test_rows_longer_than_yarn_reaches_are_a_problem_with_the_factor_that_will_do():
    shape = small_shape(rope_scaling="yarn", original_max_position_embeddings=4096)
    for factor in (4.0, {"start": 1, "end": 4}):
        ((key, says),) = shape.knob_problems({"rope_factor": factor}, 32_768)
        assert key == "rope_factor" and says.endswith("16,384 positions, and row_length is 32,768; give at least 8")
        assert not list(shape.knob_problems({"rope_factor": factor}, 16_384))
    assert not list(shape.knob_problems({"rope_factor": 4.0}))  # an evaluation may go beyond
    assert not list(shape.knob_problems({"rope_factor": "4"}, 32_768))  # told by itself
    assert not list(small_shape(rope_scaling="yarn").knob_problems({"rope_factor": 4.0}, 32_768))  # as is this


def test_first_weights_follow_the_cut_normal():
    network = Llama(small_shape(vocab_size=1024, hidden_size=128, intermediate_size=256), KNOBS)
    initialise(network, 17, FAMILY)
    for name, parameter in network.named_parameters():
        if parameter.dim() == 1:
            assert torch.equal(parameter, torch.ones(128)), name
            continue
        std = 0.02 / 6**0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
        assert parameter.abs().max() <= 2 * std, name
        assert parameter.std().item() == pytest.approx(0.8796 * std, rel=0.03), name


@torch.no_grad()
def test_a_grown_model_has_the_heads_of_its_source_with_their_keys():
    source = our_network(tie_word_embeddings=True)
    target = small_shape(hidden_size=96, intermediate_size=128, num_hidden_layers=4, num_attention_heads=6)
    target = type(target)(**vars(target) | {"num_key_value_heads": 3})
    grown = tile_all(source.state_dict(), source.shape, target, FAMILY)
    network = Llama(target, KNOBS)
    network.load_state_dict(grown)
    assert network(*pack(40)).isfinite().all()
    assert torch.equal(grown["lm_head.weight"], grown["model.embed_tokens.weight"])
    layer = "layers.0.self_attn."
    queries, keys = (grown[f"model.{layer}{name}_proj.weight"].view(3, -1, 16, 96)[..., 16:80] for name in "qk")
    own = source.model.layers[0].self_attn
    for group, came_from in enumerate((0, 1, 0)):
        assert torch.equal(queries[group], own.q_proj.weight.view(2, 2, 16, 64)[came_from])
        assert torch.equal(keys[group, 0], own.k_proj.weight.view(2, 16, 64)[came_from])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_key_value_heads": 4}, "num_key_value_heads: expected 2 heads of queries for each, .* got 1"),
        (
            {"tie_word_embeddings": True},
            "tie_word_embeddings: true, but the model to grow from has an output of its own",
        ),
        ({"num_key_value_heads": 1}, "num_key_value_heads: expected at least 2"),
    ],
    ids=str,
)
def test_what_cannot_be_grown_is_refused_by_key(change, says):
    with pytest.raises(ConfigurationError, match=rf"^model\.{says}"):
        small_shape(**change).check_growth(small_shape())


def test_the_shapes_of_a_rehearsal_grow_from_one_another():
    for size in ("llama2_7b", "llama2_70b"):
        shape = published_shape(size).rehearsal()
        shape.check()
        shape.smaller().check()
        shape.check_growth(shape.smaller())
