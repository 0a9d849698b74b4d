"""Scores of spans against a loop over pairs, and their losses against the definitions, in float64."""

import math

import pytest
import torch

from rotary_foundry.models.layers.span_scores import (
    HEAD_SIZE,
    EfficientGlobalPointer,
    GlobalPointer,
    many_spans_loss,
    one_span_loss,
)

TOKENS, HIDDEN, KINDS = 7, 10, 3


@pytest.fixture
def case():
    """Hidden states of two rows; the second has two tokens of padding, the first none of its second token."""
    torch.manual_seed(0)
    allowed = torch.ones(2, TOKENS, dtype=torch.bool)
    allowed[0, 1] = allowed[1, 5:] = False
    return torch.randn(2, TOKENS, HIDDEN, dtype=torch.float64), allowed


def turned(vector, place):
    """Dimension i is rotated with i + 32, by place · 10000^(-i / 32)."""
    half = HEAD_SIZE // 2
    result = vector.clone()
    for i in range(half):
        angle = place * 10_000.0 ** (-i / half)
        a, b = vector[i], vector[i + half]
        result[i] = a * math.cos(angle) - b * math.sin(angle)
        result[i + half] = b * math.cos(angle) + a * math.sin(angle)
    return result


def expected(hidden, allowed, score):
    """[rows, kinds, tokens, tokens], with `score(row, kind, first, last)` of each allowed span."""
    scores = torch.full((2, KINDS, TOKENS, TOKENS), -torch.inf, dtype=torch.float64)
    for row in range(2):
        for first in range(TOKENS):
            for last in range(first, TOKENS):
                if allowed[row, first] and allowed[row, last]:
                    for kind in range(KINDS):
                        scores[row, kind, first, last] = score(row, kind, first, last)
    return scores


def test_global_pointer_has_a_query_and_a_key_for_each_kind(case):
    hidden, allowed = case
    pointer = GlobalPointer(HIDDEN, KINDS).double()
    weights = pointer.dense.weight.view(KINDS, 2, HEAD_SIZE, HIDDEN)

    def score(row, kind, first, last):
        query = turned(weights[kind, 0] @ hidden[row, first], first)
        key = turned(weights[kind, 1] @ hidden[row, last], last)
        return query @ key / math.sqrt(HEAD_SIZE)

    torch.testing.assert_close(pointer(hidden, allowed), expected(hidden, allowed, score), rtol=1e-9, atol=1e-10)
    assert sum(parameter.numel() for parameter in pointer.parameters()) == KINDS * 2 * 64 * HIDDEN


def test_efficient_global_pointer_shares_the_product_and_adds_a_start_and_an_end_for_each_kind(case):
    hidden, allowed = case
    pointer = EfficientGlobalPointer(HIDDEN, KINDS).double()

    def score(row, kind, first, last):
        starting, ending = pointer.dense.weight @ hidden[row, first], pointer.dense.weight @ hidden[row, last]
        product = turned(starting[:HEAD_SIZE], first) @ turned(ending[HEAD_SIZE:], last) / math.sqrt(HEAD_SIZE)
        return product + (pointer.kinds.weight[kind] @ starting + pointer.kinds.weight[KINDS + kind] @ ending) / 2

    torch.testing.assert_close(pointer(hidden, allowed), expected(hidden, allowed, score), rtol=1e-9, atol=1e-10)
    assert sum(parameter.numel() for parameter in pointer.parameters()) == 2 * 64 * HIDDEN + 2 * KINDS * 2 * 64


def test_the_loss_of_one_span_is_the_cross_entropy_over_all_spans_of_the_row(case):
    scores = GlobalPointer(HIDDEN, 1).double()(*case)
    spans = torch.tensor([[2, 4], [0, 0]])
    by_hand = [
        -math.log(math.exp(scores[row, 0, first, last]) / sum(math.exp(score) for score in scores[row].flatten()))
        for row, (first, last) in enumerate(spans.tolist())
    ]
    assert one_span_loss(scores, spans).item() == pytest.approx(sum(by_hand) / 2, rel=1e-12)


def test_the_loss_of_many_spans_is_its_definition(case):
    scores = EfficientGlobalPointer(HIDDEN, KINDS).double()(*case) * 3
    right = torch.zeros(scores.shape, dtype=torch.bool)
    right[0, 1, 2, 4] = right[0, 1, 3, 3] = right[1, 2, 0, 4] = True  # and none of other kinds
    total = 0.0
    for row in range(2):
        for kind in range(KINDS):
            of_kind, truth = scores[row, kind].flatten().tolist(), right[row, kind].flatten().tolist()
            total += math.log(1 + sum(math.exp(s) for s, true in zip(of_kind, truth, strict=True) if not true))
            total += math.log(1 + sum(math.exp(-s) for s, true in zip(of_kind, truth, strict=True) if true))
    assert many_spans_loss(scores, right).item() == pytest.approx(total / 6, rel=1e-12)


@pytest.mark.parametrize("size", [1.0, 1e4, 1e30])
def test_no_loss_and_no_gradient_is_nan_with_excluded_spans_and_large_scores(case, size):
    hidden, allowed = (case[0].float() * size**0.5).requires_grad_(), case[1]
    pointer = EfficientGlobalPointer(HIDDEN, KINDS)
    right = torch.zeros(2, KINDS, TOKENS, TOKENS, dtype=torch.bool)
    right[0, 1, 2, 4] = True
    scores = pointer(hidden, allowed)
    loss = many_spans_loss(scores, right) + one_span_loss(scores[:, :1], torch.tensor([[2, 4], [0, 0]]))
    loss.backward()
    assert loss.isfinite()
    assert hidden.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in pointer.parameters())


def test_scores_of_a_row_do_not_depend_on_its_padding(case):
    hidden, allowed = case
    pointer = EfficientGlobalPointer(HIDDEN, KINDS).double()
    alone = pointer(hidden[1:, :5], allowed[1:, :5])
    torch.testing.assert_close(pointer(hidden, allowed)[1:, :, :5, :5], alone, rtol=1e-9, atol=1e-10)
