"""Compiled layers stay compiled through a whole recipe: lengths, theta, training and evaluation."""

import torch

from tests.models.peers import masked, our_network, pack


def test_no_change_of_a_recipe_exhausts_the_graphs_that_torch_allows_a_function():
    """Beyond eight it would go on without compiling, and only a warning would say so."""
    network = our_network(num_hidden_layers=7)
    torch._dynamo.reset()
    graphs = 0

    def count(graph, inputs):
        nonlocal graphs
        graphs += 1
        return graph.forward

    for layer in network.blocks:
        layer.forward = torch.compile(layer.forward, dynamic=True, backend=count)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for theta in (10_000.0, 160_000.0):
            network.set_knob("rope_theta", theta)
            for lengths in ((40, 300), (7, 7, 500), (1000,)):
                input_ids, cu_seqlens = pack(*lengths)
                network.train()
                network(input_ids, cu_seqlens, labels=masked(input_ids)).cross_entropy.backward()
                network.eval()
                with torch.no_grad():
                    network(input_ids, cu_seqlens)
            if theta == 10_000.0:
                first = graphs
    assert graphs == first, "theta alone is no reason to compile anew"
