"""Nothing in a microbatch waits for a GPU: the code that runs on one, on tensors that have no values."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException
from torch.utils._python_dispatch import TorchDispatchMode

from rotary_foundry.data.batches import collate, filled, split
from rotary_foundry.models.layers.cross_entropy import TokenLoss
from rotary_foundry.objectives.causal_lm import CausalLM
from rotary_foundry.objectives.instruction import Instruction
from rotary_foundry.objectives.masked_lm import MaskedLM
from rotary_foundry.objectives.objective import IGNORE_INDEX
from tests.fake_gpu import batch_there, fake_gpu, move_there
from tests.models import peers, roformer_v2_peers
from tests.models.llama import peers as llama_peers

ROW_LENGTH, VOCABULARY = 64, 60
LENGTHS = 10, 20, 30
HEADS = {"hidden_size": 64, "num_attention_heads": 4}  # of 16 dimensions, which varlen takes
WAITS = torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default
MASKED = MaskedLM(mlm_probability=0.3, eval_mlm_probability=0.15, mask_share=0.8, random_share=0.1)
BOTH = pytest.mark.parametrize(
    ("family", "objective"),
    [(peers, MASKED), (roformer_v2_peers, MASKED), (llama_peers, CausalLM()), (llama_peers, Instruction())],
    ids=["modernbert", "roformer_v2", "llama", "llama, weighted"],
)


class NoWaits(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in WAITS, func
        return func(*args, **(kwargs or {}))


def batch(weighted: bool) -> dict:
    generator = np.random.default_rng(0)
    tokens = generator.integers(5, VOCABULARY, sum(LENGTHS))
    samples = [{"row": row, "tokens": tokens.astype(np.uint16), "lengths": np.array(LENGTHS)} for row in range(5)]

    def prepare(_):
        labels = np.where(generator.random(len(tokens)) < 0.3, tokens, IGNORE_INDEX)
        of_labels = (np.ones(len(tokens), np.float32), labels != IGNORE_INDEX) if weighted else ()
        return tokens, labels, *of_labels

    return collate(samples, prepare, ROW_LENGTH, VOCABULARY)


@BOTH
def test_nothing_of_a_forward_pass_on_a_gpu_waits_for_it(family, objective):
    network = family.our_network(**HEADS)
    rows = batch(objective.weighted)
    with fake_gpu():
        move_there(network)
        for microbatch in split(batch_there(rows), 2):
            loss = objective.loss(network, filled(microbatch, 2))
            assert isinstance(loss, TokenLoss)
            assert (loss.cross_entropy.device.type, loss.tokens) == ("cuda", sum(microbatch["row_predicted"]))
        with pytest.raises(DynamicOutputShapeException):  # without `predicted` it would
            network(*(microbatch[key] for key in ("input_ids", "cu_seqlens", "row_length", "labels")))


@BOTH
def test_nothing_of_a_backward_pass_waits_for_it(family, objective):
    loss = objective.loss(family.our_network(**HEADS), batch(objective.weighted)).cross_entropy
    with NoWaits():
        loss.backward()
