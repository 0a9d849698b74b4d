"""A compiled run makes a graph for each size of a stage, and a few for the loss: counted with a GPU's guards, on CPU.

The layers are one graph each, as on a GPU: torch's own `varlen_attn` is traced, on exact kernels in the place of
torch's (tests/models/flash_stand_in.py). What makes a graph anew is dynamo's, so the backend need not generate code.
"""

import json
from functools import partial
from itertools import pairwise
from pathlib import Path
from unittest import mock

import pytest
import torch
from composer.core import Callback

from rotary_foundry.models.layers import attention, cross_entropy
from rotary_foundry.runs.record_files import read_lines
from rotary_foundry.runs.run_folder import RunFolder
from tests.models.flash_stand_in import torch_kernels
from tests.ranks import on_ranks

from .runs import column, digests, train_recipe

VOCABULARY, CHUNK = 300, 16  # of the loss; a chunk in tokens
KINDS = 2  # of layers: the first, whose input comes normed, and local ones


class CountGraphs(Callback):
    """Writes how many graphs the process has made after each update and each evaluation."""

    def __init__(self, file: str):
        self.file = Path(file)

    def batch_end(self, state, logger):
        self._write("train", state)

    def eval_end(self, state, logger):
        self._write("evaluate", state)

    def _write(self, what, state):
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        entry = {"what": what, "stage": state.model.stage, "batch": state.timestamp.batch.value, "graphs": graphs}
        with self.file.open("a") as lines:
            lines.write(json.dumps(entry) + "\n")


def train_as_on_a_gpu(recipe: Path, overrides: list[str]) -> None:
    with torch_kernels(), mock.patch.object(attention, "choose", lambda *asked: "varlen"):
        train_recipe(recipe, overrides)


@pytest.fixture(scope="module")
def counted(tiny, tmp_path_factory) -> list[dict]:
    """The counts of a run of one rank whose updates have 4, 8 and 12 rows in microbatches of 3, and a rollback."""
    folder = tmp_path_factory.mktemp("recompiles")
    count = {f"{CountGraphs.__module__}.{CountGraphs.__name__}": {"file": str(folder / "graphs.jsonl")}}
    overrides = [
        *("run_name=recompiles", "precision=amp_bf16", f"callbacks={json.dumps(count)}"),
        "compile_config={dynamic: false, backend: eager}",
    ]
    on_ranks(1, folder, train_as_on_a_gpu, tiny.recipe, overrides)
    return read_lines(folder / "graphs.jsonl")


def test_graphs_are_made_in_the_first_update_and_evaluation_of_a_row_length_only(counted):
    """Not for a ramp, a last microbatch, other documents, a stage of the same size, or a rollback's second Trainer."""
    batches = [entry["batch"] for entry in counted if entry["what"] == "train"]
    assert any(later <= earlier for earlier, later in pairwise(batches)), "no rollback"
    made, before = [], 0
    for entry in counted:
        if entry["graphs"] > before:
            made.append((entry["what"], entry["stage"], entry["graphs"] - before))
        before = entry["graphs"]
    assert made == [
        ("train", "pretrain", KINDS),
        ("evaluate", "pretrain", KINDS),
        ("train", "extend", KINDS),
        ("evaluate", "extend", KINDS),
    ]
    assert {entry["stage"] for entry in counted if entry["what"] == "evaluate"} == {"pretrain", "extend", "decay"}


def test_filling_is_neither_drawn_nor_counted(counted, tiny, undisturbed):
    run = tiny.folder / "runs/recompiles"
    assert digests(run) == digests(undisturbed)
    for key in ("batch", "token", "rows", "tokens_by_source", "lr"):
        assert column(run, key) == column(undisturbed, key), key
    assert column(run, "loss") == pytest.approx(column(undisturbed, "loss"), rel=0.02)  # bfloat16
    ours, others = (read_lines(RunFolder(folder).evaluations) for folder in (run, undisturbed))
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in others], rel=0.02)


@pytest.fixture
def graphs_of_loss(monkeypatch) -> list:
    """The graphs of the loss's chunk, compiled as on a GPU except that no code is generated; one is added when made."""
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 4 * VOCABULARY * CHUNK)
    with mock.patch.object(torch, "compile", partial(torch.compile, backend=count)):
        compiled = cross_entropy._compiled.__wrapped__(cross_entropy._of_chunk)
    monkeypatch.setattr(cross_entropy, "_of_chunk", compiled)
    return graphs


def test_the_loss_makes_a_graph_with_and_without_gradients_and_one_each_for_a_chunk_of_one_token(graphs_of_loss):
    """However many tokens a microbatch predicts; the compiler takes a size of one for a constant."""

    def graphs_after(differentiate: bool, *predicted: int) -> int:
        hidden, weight, bias = (
            torch.randn(shape, requires_grad=True) for shape in ((max(predicted), 8), (VOCABULARY, 8), (VOCABULARY,))
        )
        for tokens in predicted:
            targets = torch.arange(tokens)
            with torch.set_grad_enabled(differentiate), torch.autocast("cpu", torch.bfloat16):
                loss = cross_entropy.linear_cross_entropy(hidden[:tokens], weight, bias, targets).cross_entropy
            if differentiate:
                loss.backward()
        return len(graphs_of_loss)

    assert graphs_after(True, 2 * CHUNK, 2 * CHUNK + 7) == 1
    assert graphs_after(True, 2 * CHUNK + 1) == 2
    assert graphs_after(False, 2 * CHUNK + 7) == 3
    assert graphs_after(False, 2 * CHUNK + 1) == 4
    for differentiate in (True, False):
        assert graphs_after(differentiate, 3 * CHUNK, 5 * CHUNK + 2, CHUNK - 1, CHUNK + 1, 4 * CHUNK + 1) == 4
