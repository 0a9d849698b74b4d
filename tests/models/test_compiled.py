"""Compiled layers stay compiled through a whole recipe: lengths, theta, training and evaluation."""

import pytest
import torch

from tests.models import peers, roformer_v2_peers
from tests.models.llama import peers as llama_peers
from tests.models.peers import masked, pack

CHANGES = {  # what a recipe may change between updates, as several steps
    peers: [{"rope_theta": 10_000.0}, {"rope_theta": 160_000.0}],
    roformer_v2_peers: [{"residual_scale": scale, "rope_theta": 1000 / (1 + scale)} for scale in (0.0, 0.25, 0.5, 1.0)],
    llama_peers: [{"rope_theta": 10_000.0}, {"rope_theta": 500_000.0}],
}


@pytest.mark.parametrize(
    "family",
    [peers, *(pytest.param(family, marks=pytest.mark.long) for family in CHANGES if family is not peers)],
    ids=lambda family: family.FAMILY.name,
)
def test_no_change_of_a_recipe_exhausts_the_graphs_that_torch_allows_a_function(family):
    """Beyond eight it would go on without compiling, and only a warning would say so."""
    network = family.our_network(num_hidden_layers=7)
    torch._dynamo.reset()
    graphs = 0

    def count(graph, inputs):
        nonlocal graphs
        graphs += 1
        return graph.forward

    for layer in network.blocks:
        layer.forward = torch.compile(layer.forward, dynamic=True, backend=count)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for step, knobs in enumerate(CHANGES[family]):
            for name, value in knobs.items():
                network.set_knob(name, value)
            for lengths in ((40, 300), (7, 7, 500), (1000,)):
                input_ids, cu_seqlens = pack(*lengths)
                network.train()
                network(input_ids, cu_seqlens, labels=masked(input_ids)).cross_entropy.backward()
                network.eval()
                with torch.no_grad():
                    network(input_ids, cu_seqlens)
            if step == 0:
                first = graphs
    assert graphs == first, "a knob alone is no reason to compile anew"
