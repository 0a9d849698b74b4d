"""The loss and the right answers of each head, against the definition, one example at a time."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rotary_foundry.data.task_file import Task
from rotary_foundry.models.layers.span_scores import EfficientGlobalPointer, GlobalPointer
from rotary_foundry.models.task_heads import HEADS, TaskHeads, attach_heads, head_value
from rotary_foundry.recipe import compile_plan
from rotary_foundry.runs.recipes import load_recipe
from tests.models.peers import initialise

HIDDEN = 12
LENGTHS = (5, 30, 7, 40, 6)
TASKS = {
    "a.b": Task("classification", ("x", "y", "z"), 1.0),
    "keys": Task("regression", (), 1.0),  # the name of a method of ModuleDict
    "choice": Task("choice", (), 1.0),
    "answer": Task("answer", (), 1.0),
    "entities": Task("entities", ("one", "two"), 1.0),
    "text": Task("masked_lm", (), 1.0),
}
TARGETS = {
    "a.b": [(0, 2, 0, 0), (1, 0, 0, 0), (2, 1, 0, 0), (3, 1, 0, 0), (4, 0, 0, 0)],
    "keys": [(0, 0.25, 0, 0), (3, -1.5, 0, 0)],
    "choice": [(0, 2, 1, 0), (2, 3, 0, 0)],
    "answer": [(0, 1, 3, 0), (1, 0, 0, 0), (2, 2, 2, 0), (3, 5, 30, 0), (4, 0, 0, 0)],
    "entities": [(0, 1, 1, 3), (0, 0, 2, 2), (1, -1, 0, 0), (3, 0, 4, 9), (4, 1, 1, 1)],
}


@pytest.fixture
def heads() -> TaskHeads:
    made = TaskHeads(TASKS, HIDDEN)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(head_value(f"heads.{name}", tuple(parameter.shape), 17))
    return made


def _expected(head: torch.nn.Module, task: str, documents: list, allowed: list) -> tuple[float, int, int]:
    """Loss, right ones and number of the examples."""
    firsts = torch.stack([document[0] for document in documents])
    total, right = 0.0, 0
    if task == "entities":
        scores = [
            EfficientGlobalPointer.forward(head, one[None], may[None])[0]
            for one, may in zip(documents, allowed, strict=True)
        ]
        texts = sorted({document for document, *_ in TARGETS[task]})
        for text in texts:
            spans = {span for document, *span in map(list, TARGETS[task]) if document == text for span in [tuple(span)]}
            correct = True
            for kind, of_kind in enumerate(scores[text]):
                wrong = missed = 1.0
                for i, j in of_kind.isfinite().nonzero().tolist():
                    is_right = (kind, i, j) in spans
                    missed += math.exp(-of_kind[i, j]) if is_right else 0
                    wrong += 0 if is_right else math.exp(of_kind[i, j])
                    correct &= (of_kind[i, j].item() > 0) == is_right
                total += (math.log(wrong) + math.log(missed)) / len(scores[text])
            right += correct
        return total, right, len(texts)
    for document, a, b, _ in TARGETS[task]:
        if task == "keys":
            error = (F.linear(firsts[document], head.weight, head.bias) - a).item()
            total, right = total + error**2, right + (abs(error) < 0.5)
            continue
        if task == "a.b":
            scores, label = F.linear(firsts[document], head.weight, head.bias), a
        elif task == "choice":
            scores, label = F.linear(firsts[document : document + a], head.weight).squeeze(1), b
        else:
            square = GlobalPointer.forward(head, documents[document][None], allowed[document][None])[0, 0]
            scores, label = square.flatten(), a * len(square) + b
        total -= F.log_softmax(scores, 0)[label].item()
        right += scores.argmax().item() == label
    return total, right, len(TARGETS[task])


@pytest.mark.parametrize("task", TARGETS)
def test_a_heads_sums_are_those_of_its_examples(heads, task):
    torch.manual_seed(0)
    hidden = torch.randn(sum(LENGTHS), HIDDEN, requires_grad=True)
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    allowed = torch.ones(sum(LENGTHS), dtype=torch.uint8)
    allowed[bounds[1:].long() - 1] = 0
    targets = np.array(TARGETS[task], np.float64)
    found = heads.of(task)(hidden, LENGTHS, targets, allowed)
    documents, may = hidden.split(LENGTHS), allowed.bool().split(LENGTHS)
    with torch.no_grad():
        loss, right, examples = _expected(heads.of(task), task, documents, may)
    assert found.cross_entropy.item() == pytest.approx(loss, rel=1e-5)
    assert (found.correct.item(), found.tokens) == (right, examples)
    found.cross_entropy.backward()
    assert hidden.grad.isfinite().all() and hidden.grad.abs().sum() > 0
    empty = heads.of(task)(hidden, LENGTHS, targets[:0], allowed)
    assert (empty.cross_entropy, empty.correct, empty.tokens) == (0, 0, 0)


def test_the_entities_counted_are_those_with_a_score_above_0_and_those_of_the_targets(heads):
    torch.manual_seed(1)
    hidden, head = torch.randn(sum(LENGTHS), HIDDEN), heads.of("entities")
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    allowed = torch.ones(sum(LENGTHS), dtype=torch.uint8)
    texts, found = (0, 1, 3, 4), set()
    with torch.no_grad():
        for text in texts:
            tokens = slice(bounds[text], bounds[text + 1])
            scores = EfficientGlobalPointer.forward(head, hidden[None, tokens], allowed[None, tokens].bool())[0]
            found |= {(text, *span) for span in (scores > 0).nonzero().tolist()}
        missed = next((text, 0, 1, 1) for text in texts if (text, 0, 1, 1) not in found)
        there = {*sorted(found)[:5], missed}
        targets = np.array([*sorted(there), *((text, -1, 0, 0) for text in texts)], np.float64)
        assert head.spans(hidden, LENGTHS, targets, allowed) == (5, len(found), 6)
        assert len(found) > 5


@pytest.mark.parametrize("name", ["nano", "roformer_v2_nano"])
def test_heads_stand_on_the_hidden_states_of_every_family_of_encoders(name):
    recipe = load_recipe(f"yamls/main/{name}.yaml")
    plan = compile_plan(recipe)
    network = recipe.family.network(recipe.model.shape.rehearsal(), plan.at(plan.total_tokens // 2).knobs).eval()
    with torch.no_grad():
        initialise(network, 17, recipe.family)
        attach_heads(network, TASKS)
        for parameter_name, parameter in network.heads.named_parameters(HEADS.rstrip(".")):
            parameter.copy_(head_value(parameter_name, tuple(parameter.shape), 17))
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    batch = {"input_ids": torch.arange(5, 5 + sum(LENGTHS)), "cu_seqlens": bounds, "row_length": 64}
    targets = np.array(TARGETS["a.b"], np.float64)
    batch |= {"lengths": LENGTHS, "targets": targets, "allowed": None, "row_sources": ["a.b"]}
    found = network.heads.loss(network, batch)
    hidden = network.hidden_states(batch["input_ids"], bounds, 64)
    assert found == network.heads.of("a.b")(hidden, LENGTHS, targets, None)
    found.cross_entropy.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.blocks[-1].parameters())


def test_a_task_of_masked_lm_has_no_head_and_values_follow_from_seed_and_name(heads):
    assert heads.of("text") is None and len(heads) == 5
    name, size = "heads.of_x.weight", (3, HIDDEN)
    assert torch.equal(head_value(name, size, 17), head_value(name, size, 17))
    assert not torch.equal(head_value(name, size, 17), head_value(name, size, 18))
    assert not torch.equal(head_value(name, size, 17), head_value("heads.of_y.weight", size, 17))
