"""Attention by tiles equals softmax under the full mask, and local attention costs the same for every token."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rotary_foundry.models.layers.attention import attention, window_size
from rotary_foundry.models.layers.attention_sdpa import elsewhere, global_tiles, local_tiles
from rotary_foundry.models.layers.documents import Documents
from rotary_foundry.utils.errors import ConfigurationError

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=8)
MIXED = [300, 1, 1, 20, 129, 20]
HEADS = [(4, 4), (4, 2), (4, 1)]  # of queries, of keys and values


def documents_of(lengths):
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return Documents(cu_seqlens, max(lengths, default=0), sum(lengths))


def qkv_grad(documents, heads=(2, 2), head_dim=16, dtype=torch.float32, generator=None):
    """Random q, k, v, and a gradient for the output."""
    of_queries, of_keys = heads
    shapes = [(documents.tokens, count, head_dim) for count in (of_queries, of_keys, of_keys, of_queries)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def by_definition(q, k, v, documents, window, causal=False):
    index, place = documents.index, torch.arange(documents.tokens)
    sees = index[:, None] == index
    if window is not None:
        sees &= (place[:, None] - place).abs() <= window // 2
    if causal:
        sees &= place[:, None] >= place
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[2] ** 0.5
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~sees, float("-inf")).softmax(-1), v)


def with_gradients(attend, q, k, v, grad):
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    out = attend(*inputs)
    return out.detach(), *torch.autograd.grad(out, inputs, grad)


def assert_close_to_definition(attend, inputs, documents, window, causal, atol=None, relative=None):
    """Output and gradients of `attend(q, k, v)` against the definition in float64."""
    found = with_gradients(attend, *inputs)
    exact = with_gradients(lambda *qkv: by_definition(*qkv, documents, window, causal), *(x.double() for x in inputs))
    for one, wanted in zip(found, exact, strict=True):
        assert one.dtype == inputs[0].dtype and one.shape == wanted.shape
        off = one.cpu().double() - wanted
        if relative is None:
            assert off.abs().max() <= atol
        else:  # a query that sees one key only has no gradient; what is left there is rounding of the given one
            scale = wanted.norm() if wanted.norm() > 1e-9 else inputs[3].double().norm()
            assert off.norm() <= relative * scale


@settings(max_examples=30)
@given(
    lengths=LENGTHS,
    window=st.one_of(st.none(), st.integers(0, 700)),
    causal=st.booleans(),
    heads=st.sampled_from(HEADS),
    seed=st.integers(0, 99),
)
def test_output_and_gradients_are_those_of_masked_softmax(lengths, window, causal, heads, seed):
    documents = documents_of(lengths)
    inputs = qkv_grad(documents, heads, generator=torch.Generator().manual_seed(seed))

    def ours(q, k, v):
        return attention(q, k, v, documents, window, causal=causal)

    assert_close_to_definition(ours, inputs, documents, window, causal, atol=2e-5)


TOLERANCES = {torch.float32: {"atol": 1e-5}, torch.float64: {"atol": 1e-12}, torch.bfloat16: {"relative": 0.01}}


@pytest.mark.parametrize(
    ("heads", "dtype"),
    [
        pytest.param(heads, dtype, marks=[] if dtype == torch.float64 or heads == (4, 2) else pytest.mark.long)
        for heads in HEADS
        for dtype in TOLERANCES
    ],
    ids=str,
)
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("window", [None, 128, 0])
def test_each_dtype_is_off_by_its_rounding_only(window, causal, heads, dtype):
    for lengths in (MIXED, [600, 150, 20], [1]):
        documents = documents_of(lengths)
        inputs = qkv_grad(documents, heads, 32, dtype, torch.Generator().manual_seed(0))
        assert_close_to_definition(
            lambda q, k, v, documents=documents: attention(q, k, v, documents, window, "sdpa", causal),
            inputs,
            documents,
            window,
            causal,
            **TOLERANCES[dtype],
        )


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("window", [None, 128])
def test_the_way_for_other_devices_agrees(window, causal, heads):
    documents = documents_of([130, 130, 400, 3])
    before, after = window_size(window, causal)
    tiles = global_tiles(documents, causal) if window is None else local_tiles(documents, before, after, torch.float32)
    inputs = qkv_grad(documents, heads)
    here = with_gradients(lambda *qkv: attention(*qkv, documents, window, causal=causal), *inputs)
    there = with_gradients(lambda *qkv: elsewhere(*qkv, tiles), *inputs)
    torch.testing.assert_close(here, there, rtol=0, atol=2e-5)


@pytest.mark.parametrize("window", [None, 128])
def test_a_batch_without_a_token_gives_an_empty_output_and_gradients(window):
    for lengths in ([], [0], [0, 0]):
        documents = documents_of(lengths)
        out, *grads = with_gradients(lambda *qkv, d=documents: attention(*qkv, d, window), *qkv_grad(documents, (4, 2)))
        assert out.shape == (0, 4, 16)
        assert [grad.shape for grad in grads] == [(0, 4, 16), (0, 2, 16), (0, 2, 16)]


@pytest.mark.parametrize(
    ("window", "causal", "expected"),
    [(None, False, (-1, -1)), (None, True, (-1, 0)), (128, False, (64, 64)), (128, True, (64, 0)), (0, True, (0, 0))],
)
def test_a_window_lies_half_to_each_side_and_causal_attention_keeps_the_half_before(window, causal, expected):
    assert window_size(window, causal) == expected


def test_key_heads_that_do_not_divide_the_query_heads_are_refused():
    documents = documents_of([8])
    with pytest.raises(ConfigurationError, match="3 key/value heads do not divide 4 query heads"):
        attention(*qkv_grad(documents, (4, 3))[:3], documents, None)


@given(lengths=LENGTHS, repeats=st.integers(1, 30))
@settings(max_examples=20)
def test_local_attention_scores_at_most_256_keys_for_a_query(lengths, repeats):
    documents = documents_of(lengths * repeats)
    for after, keys in ((64, 256), (0, 192)):
        tiles = local_tiles(documents, 64, after, torch.float32)
        assert sum(tile.count * tile.queries.size for tile in tiles) == documents.tokens
        assert sum(tile.count * tile.queries.size * tile.keys.size for tile in tiles) <= keys * documents.tokens


def test_documents_of_one_length_share_a_call():
    assert len(global_tiles(documents_of([512] * 16))) == 1
