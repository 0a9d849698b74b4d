"""The bytes of activations that `plan` counts are what autograd keeps."""

import pytest
import torch

from tests.models import peers, roformer_v2_peers
from tests.models.llama import peers as llama_peers

TOKENS = 512
FAMILIES = pytest.mark.parametrize(
    "family", [peers, roformer_v2_peers, llama_peers], ids=lambda family: family.FAMILY.name
)


@FAMILIES
@pytest.mark.parametrize("itemsize", [2, 4])
def test_the_activations_counted_are_what_autograd_keeps(family, itemsize):
    network, kept = family.our_network(), {}
    dropouts = sum(isinstance(module, torch.nn.Dropout) for module in network.eval().modules())
    shape = network.shape
    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    sizes = {tuple(weight.shape) for weight in network.parameters()}

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
    measured = sum(storage.nbytes() for storage in kept.values()) + others * TOKENS * shape.hidden_size
    counted = shape.activation_bytes(TOKENS, itemsize, recomputed=False, compiled=False)
    assert counted == pytest.approx(measured, rel=0.06)


@FAMILIES
def test_a_layer_that_is_recomputed_keeps_its_input_only(family):
    shape = family.our_network().shape
    arguments = {"itemsize": 2, "compiled": False}
    whole, recomputed = (shape.activation_bytes(TOKENS, recomputed=again, **arguments) for again in (False, True))
    layers, layer = shape.num_hidden_layers, TOKENS * shape.kept_of_layer(2, False)
    assert whole - recomputed == (layers - 1) * layer - layers * 4 * TOKENS * shape.hidden_size
