"""Attention by tiles equals softmax under the full mask, and local attention costs the same for every token."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rotary_foundry.models.layers.attention import attention
from rotary_foundry.models.layers.attention_sdpa import elsewhere, global_tiles, local_tiles
from rotary_foundry.models.layers.documents import Documents

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=8)


def documents_of(lengths):
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return Documents(cu_seqlens, max(lengths), sum(lengths))


def by_definition(q, k, v, documents, window):
    index, place = documents.index, torch.arange(documents.tokens)
    sees = index[:, None] == index
    if window is not None:
        sees &= (place[:, None] - place).abs() <= window // 2
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[2] ** 0.5
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~sees, float("-inf")).softmax(-1), v)


def with_gradients(attend, q, k, v, grad):
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    out = attend(*inputs)
    return out.detach(), *torch.autograd.grad(out, inputs, grad)


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, window=st.one_of(st.none(), st.integers(0, 700)), seed=st.integers(0, 99))
def test_output_and_gradients_are_those_of_masked_softmax(lengths, window, seed):
    documents = documents_of(lengths)
    generator = torch.Generator().manual_seed(seed)
    q, k, v, grad = torch.randn(4, documents.tokens, 2, 16, generator=generator)
    ours = with_gradients(lambda *qkv: attention(*qkv, documents, window), q, k, v, grad)
    expected = with_gradients(lambda *qkv: by_definition(*qkv, documents, window), q, k, v, grad)
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("window", [None, 128])
def test_the_way_for_other_devices_agrees(window):
    documents = documents_of([130, 130, 400, 3])
    q, k, v, grad = torch.randn(4, documents.tokens, 2, 16)
    tiles = global_tiles(documents) if window is None else local_tiles(documents, window // 2, q.dtype)
    here = with_gradients(lambda *qkv: attention(*qkv, documents, window), q, k, v, grad)
    there = with_gradients(lambda *qkv: elsewhere(*qkv, tiles), q, k, v, grad)
    torch.testing.assert_close(here, there, rtol=0, atol=2e-5)


@pytest.mark.parametrize("window", [None, 128])
def test_bf16_is_off_by_its_rounding_only(window):
    documents = documents_of([900, 300, 20])
    q, k, v, grad = torch.randn(4, documents.tokens, 2, 32).bfloat16()
    ours = with_gradients(lambda *qkv: attention(*qkv, documents, window), q, k, v, grad)
    expected = with_gradients(
        lambda *qkv: by_definition(*qkv, documents, window), *(x.float() for x in (q, k, v, grad))
    )
    for found, wanted in zip(ours, expected, strict=True):
        assert found.dtype == torch.bfloat16
        assert (found - wanted).norm() / wanted.norm() < 0.01


@given(lengths=LENGTHS, repeats=st.integers(1, 30))
@settings(max_examples=20, deadline=None)
def test_local_attention_scores_at_most_256_keys_for_a_query(lengths, repeats):
    documents = documents_of(lengths * repeats)
    tiles = local_tiles(documents, 64, torch.float32)
    assert sum(tile.count * tile.queries.size for tile in tiles) == documents.tokens
    assert sum(tile.count * tile.queries.size * tile.keys.size for tile in tiles) <= 256 * documents.tokens


def test_documents_of_one_length_share_a_call():
    assert len(global_tiles(documents_of([512] * 16))) == 1
