"""Nothing in a microbatch waits for a GPU: the code that runs on one, on tensors that have no values."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from composer.core import Event
from composer.devices import DeviceCPU
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._python_dispatch import TorchDispatchMode

from rotary_foundry.algorithms.gradient_combination import GradientCombination
from rotary_foundry.data.batches import collate, filled, split
from rotary_foundry.data.corpus import TokenizerFacts
from rotary_foundry.data.row_preparation import HeldOutPrepared
from rotary_foundry.models.layers.cross_entropy import TokenLoss
from rotary_foundry.models.task_heads import attach_heads
from rotary_foundry.objectives.causal_lm import CausalLM
from rotary_foundry.objectives.instruction import Instruction
from rotary_foundry.objectives.masked_lm import MaskedLM
from rotary_foundry.objectives.multi_task import MultiTask
from rotary_foundry.objectives.objective import IGNORE_INDEX
from tests.fake_gpu import batch_there, fake_gpu, move_there
from tests.models import peers, roformer_v2_peers
from tests.models.llama import peers as llama_peers
from tests.objectives.test_multi_task import ROLES
from tests.task_corpus import TASKS, make_row

ROW_LENGTH, VOCABULARY = 64, 60
LENGTHS = 10, 20, 30
HEADS = {"hidden_size": 64, "num_attention_heads": 4}  # of 16 dimensions, which varlen takes
WAITS = torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default
COPIES = torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default
SHARES = {"mlm_probability": 0.3, "eval_mlm_probability": 0.15, "mask_share": 0.8, "random_share": 0.1}
MASKED = MaskedLM(**SHARES)
BOTH = pytest.mark.parametrize(
    ("family", "objective"),
    [(peers, MASKED), (roformer_v2_peers, MASKED), (llama_peers, CausalLM()), (llama_peers, Instruction())],
    ids=["modernbert", "roformer_v2", "llama", "llama, weighted"],
)


class NoWaits(TorchDispatchMode):
    """Refuse what needs a value on the host, and copies from the host that wait until they are done."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in WAITS, func
        result = func(*args, **(kwargs or {}))
        if func in COPIES and result.is_cuda:
            given = dict(zip((one.name for one in func._schema.arguments), args, strict=False)) | (kwargs or {})
            assert given.get("src", given["self"]).is_cuda or given.get("non_blocking"), func
        return result


def batch(weighted: bool) -> dict:
    generator = np.random.default_rng(0)
    tokens = generator.integers(5, VOCABULARY, sum(LENGTHS))
    samples = [{"row": row, "tokens": tokens.astype(np.uint16), "lengths": np.array(LENGTHS)} for row in range(5)]

    def prepare(_):
        labels = np.where(generator.random(len(tokens)) < 0.3, tokens, IGNORE_INDEX)
        of_labels = (np.ones(len(tokens), np.float32), labels != IGNORE_INDEX) if weighted else ()
        return tokens, labels, *of_labels

    return collate(samples, prepare, ROW_LENGTH, VOCABULARY)


def batch_of_task(name: str) -> tuple[MultiTask, dict]:
    """Return the objective of a multi-task stage, and four rows of one of its tasks."""
    objective = MultiTask(combine="mean", rows_per_block=2, **SHARES)
    objective.tasks = TASKS
    generator = np.random.default_rng(0)
    rows = [make_row(TASKS[name], generator) | {"source": name, "row": row} for row in range(4)]
    for row in rows:
        row["tokens"] %= VOCABULARY
    prepare = HeldOutPrepared(objective, TokenizerFacts(VOCABULARY, ROLES, ""), 17)
    return objective, collate(rows, prepare, ROW_LENGTH, VOCABULARY, by_task=True)


@BOTH
def test_nothing_of_a_forward_pass_on_a_gpu_waits_for_it(family, objective):
    network = family.our_network(**HEADS)
    microbatches = split(batch(objective.weighted), 2)
    with fake_gpu():
        move_there(network)
        for microbatch in microbatches:
            with NoWaits():
                loss = objective.loss(network, filled(batch_there(microbatch), 2))
            assert isinstance(loss, TokenLoss)
            assert (loss.cross_entropy.device.type, loss.tokens) == ("cuda", sum(microbatch["row_predicted"]))
        with pytest.raises(DynamicOutputShapeException):  # without `predicted` it would
            network(*(batch_there(microbatch)[key] for key in ("input_ids", "cu_seqlens", "row_length", "labels")))


@BOTH
def test_nothing_of_a_backward_pass_waits_for_it(family, objective):
    loss = objective.loss(family.our_network(**HEADS), batch(objective.weighted)).cross_entropy
    with NoWaits():
        loss.backward()


@pytest.mark.parametrize("task", TASKS)
def test_nothing_of_a_microbatch_of_a_task_waits_for_the_gpu(task):
    network = roformer_v2_peers.our_network(**HEADS)
    attach_heads(network, TASKS)
    objective, rows = batch_of_task(task)
    microbatches = split(rows, 2)
    for microbatch in microbatches:
        loss = objective.loss(network, microbatch).cross_entropy
        with NoWaits():
            loss.backward()
    with fake_gpu(), NoWaits():
        move_there(network)
        for microbatch in microbatches:
            loss = objective.loss(network, batch_there(microbatch))
            assert (loss.cross_entropy.device.type, loss.tokens) == ("cuda", sum(microbatch["row_predicted"]))


@pytest.mark.parametrize("combine", ["mean", "min_norm", "projected"])
def test_combining_the_gradients_of_tasks_waits_only_at_the_end_of_an_update(combine):
    network = roformer_v2_peers.our_network(**HEADS)
    attach_heads(network, TASKS)
    objective, rows = batch_of_task("topic")
    objective.combine = combine
    microbatches = split(rows, 2)
    model, timestamp = (
        SimpleNamespace(network=network, objective=objective),
        SimpleNamespace(token=SimpleNamespace(value=0)),
    )
    state = SimpleNamespace(batch=rows, model=model, timestamp=timestamp, device=DeviceCPU())
    combination = GradientCombination(17)
    with fake_gpu():
        move_there(network)
        combination.apply(Event.BATCH_START, state, None)
        for state.batch in microbatches:
            for parameter in network.parameters():
                parameter.grad = torch.empty_like(parameter)
            state.outputs = TokenLoss(torch.zeros((), device="cuda"), torch.zeros((), device="cuda"), 1)
            combination.apply(Event.AFTER_BACKWARD, state, None)
        with pytest.raises(DataDependentOutputException):
            combination.apply(Event.AFTER_TRAIN_BATCH, state, None)


def test_a_copy_from_the_host_that_waits_is_seen():
    with fake_gpu(), NoWaits():
        torch.zeros(2).to("cuda", non_blocking=True)
        for copy in (lambda: torch.zeros(2).to("cuda"), lambda: torch.tensor([0, 2], device="cuda")):
            with pytest.raises(AssertionError):
                copy()
        with pytest.raises(AssertionError):
            torch.zeros(2, device="cuda").copy_(torch.zeros(2))
