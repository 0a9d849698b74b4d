"""The bytes of activations that `plan` counts are what autograd keeps."""

from functools import partial

import pytest
import torch
from torch import nn

from rotary_foundry.training.sharding import recomputed
from tests.models import peers, roformer_v2_peers
from tests.models.llama import peers as llama_peers

TOKENS = 512
FAMILIES = pytest.mark.parametrize(
    "family", [peers, roformer_v2_peers, llama_peers], ids=lambda family: family.FAMILY.name
)
ITEMSIZES = pytest.mark.parametrize("itemsize", [2, 4])


def dropouts_of(module: nn.Module) -> int:
    return sum(isinstance(part, nn.Dropout) for part in module.modules())


def kept_of(network: nn.Module, itemsize: int, checkpointed: int = 0) -> int:
    """The bytes that a forward pass keeps, where the first layers keep their input only."""
    kept = {}
    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    sizes = {tuple(weight.shape) for weight in network.parameters()}
    dropouts = dropouts_of(network.eval())
    for layer in list(network.blocks)[:checkpointed]:
        layer.forward = partial(recomputed, layer.forward)
        dropouts -= dropouts_of(layer)

    def keep(tensor):
        storage = tensor.untyped_storage()  # held, so that no later one has its address
        cast = {tuple(tensor.shape), tuple(tensor.shape[::-1])} & sizes  # a weight in bf16
        if storage.data_ptr() not in weights and not cast:
            kept[storage.data_ptr()] = storage
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=itemsize == 2),
    ):
        network.hidden_states(torch.arange(TOKENS) % 192, torch.tensor([0, TOKENS], dtype=torch.int32))
    others = 8 + dropouts  # bytes: of the loss, and of masks, which are not bytes on a CPU
    return sum(storage.nbytes() for storage in kept.values()) + others * TOKENS * network.shape.hidden_size


@FAMILIES
@ITEMSIZES
def test_the_activations_counted_are_what_autograd_keeps(family, itemsize):
    network = family.our_network()
    counted = network.shape.activation_bytes(TOKENS, itemsize, recomputed=False, compiled=False)
    assert counted == pytest.approx(kept_of(network, itemsize), rel=0.06)


@FAMILIES
@ITEMSIZES
def test_layers_that_are_recomputed_keep_their_input_and_one_of_them_all_of_it(family, itemsize):
    """The whole one is the last, as when the backward pass begins and has recomputed it; its input is counted twice."""
    network = family.our_network()
    shape = network.shape
    twice = TOKENS * 4 * shape.hidden_size
    counted = shape.activation_bytes(TOKENS, itemsize, recomputed=True, compiled=False) - twice
    assert counted == pytest.approx(kept_of(network, itemsize, shape.num_hidden_layers - 1), rel=0.06)
