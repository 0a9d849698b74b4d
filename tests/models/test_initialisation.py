"""Initialisation has the published statistics, and the same seed gives the same weights."""

import math

import pytest
import torch

from rotary_foundry.models.modernbert.network import ModernBert
from tests.models.peers import KNOBS, initialise, small_shape

CUT_AT_2 = 0.8796  # standard deviation of a standard normal cut off at ±2


@pytest.fixture(scope="module")
def network():
    network = ModernBert(small_shape(vocab_size=1024, hidden_size=128), KNOBS)
    initialise(network, seed=17)
    return network


def test_projections_follow_the_cut_normal(network):
    output_std = 0.02 / math.sqrt(2 * 4)
    for name, parameter in network.named_parameters():
        if parameter.dim() == 2:
            std = output_std if ".Wo." in name else 0.02
            assert parameter.abs().max() <= 2 * std, name
            assert parameter.std().item() == pytest.approx(CUT_AT_2 * std, rel=0.03), name
            assert abs(parameter.mean().item()) < 0.03 * std, name


def test_norms_are_one_and_biases_zero(network):
    vectors = {name: parameter for name, parameter in network.named_parameters() if parameter.dim() == 1}
    assert torch.equal(vectors.pop("decoder.bias"), torch.zeros(1024))
    assert vectors and all(torch.equal(vector, torch.ones(128)) for vector in vectors.values())


def test_the_seed_decides_and_nothing_else(network):
    torch.manual_seed(5)
    again, other = (ModernBert(network.shape, KNOBS | {"rope_theta": theta}) for theta in (160_000.0, 10_000.0))
    initialise(again, seed=17)
    initialise(other, seed=18)
    weights, same, different = (dict(n.named_parameters()) for n in (network, again, other))
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert not any(torch.equal(weights[name], different[name]) for name in weights if weights[name].dim() == 2)
    layer_0, layer_1 = (weights[f"model.layers.{i}.attn.Wqkv.weight"] for i in (0, 1))
    assert not torch.equal(layer_0, layer_1)
