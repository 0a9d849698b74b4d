"""A shape says what its network's parameters are without building one."""

import pytest
import torch

from rotary_foundry import load_recipe
from rotary_foundry.models.modernbert.network import ModernBert
from tests.models import roformer_v2_peers
from tests.models.peers import KNOBS, kept_for_backward, our_network, small_shape

PATTERNS = [{"global_attn_every_n_layers": 1, "local_attention": None}, {"num_hidden_layers": 1}]


@pytest.mark.parametrize("size", ["nano", "base", "large"])
def test_the_parameters_of_a_recipe_are_those_of_its_network(size):
    model = load_recipe(f"yamls/main/{size}.yaml", ["init_from=null"]).model
    check(model.shape)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_parameters_of_other_patterns_are_those_of_the_network(pattern):
    check(small_shape(**pattern))


def test_published_sizes():
    shapes = [load_recipe(f"yamls/main/{size}.yaml", ["init_from=null"]).model.shape for size in ("base", "large")]
    assert [shape.parameters for shape in shapes] == [149_655_232, 395_881_664]


def check(shape):
    """Names, order and shapes are the state dict's; no parameter is tied, so all of them count."""
    with torch.device("meta"):
        network = ModernBert(shape, KNOBS)
    state = network.state_dict()
    assert list(shape.parameter_shapes().items()) == [(name, tuple(value.shape)) for name, value in state.items()]
    assert state.keys() == dict(network.named_parameters()).keys()
    assert shape.parameters == sum(value.numel() for value in state.values())


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("family", ["modernbert", "roformer_v2"])
def test_the_activations_counted_are_what_autograd_keeps(family, itemsize):
    network = our_network() if family == "modernbert" else roformer_v2_peers.our_network()
    shape, forward = network.shape, network.model if family == "modernbert" else network.hidden_states
    measured = kept_for_backward(network, forward, 500, itemsize)
    assert shape.activation_bytes(500, itemsize, False) == pytest.approx(measured, rel=0.06)
    assert shape.activation_bytes(500, itemsize, True) < 0.6 * measured
