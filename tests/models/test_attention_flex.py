"""The flex backend on CPU, where torch computes it by the whole matrix of scores: its masks and its numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention.flex_attention import create_block_mask

from rotary_foundry.models.layers import attention_flex
from rotary_foundry.models.layers.attention_flex import block_mask, compiled, flex_attention
from tests.models.peers import our_network, pack
from tests.models.test_attention import LENGTHS, by_definition, documents_of, with_gradients


def assert_exact(lengths, window):
    documents = documents_of(lengths)
    q, k, v, grad = torch.randn(4, documents.tokens, 2, 16)
    ours = with_gradients(lambda *qkv: flex_attention(*qkv, documents, window), q, k, v, grad)
    exact = with_gradients(lambda *qkv: by_definition(*qkv, documents, window), q, k, v, grad)
    torch.testing.assert_close(ours, exact, rtol=0, atol=2e-5)


@pytest.mark.parametrize("window", [None, 128, 0])
@pytest.mark.parametrize("lengths", [[5], [130, 130, 400, 3], [128, 256]], ids=str)
def test_output_and_gradients_are_those_of_masked_softmax(lengths, window):
    assert_exact(lengths, window)


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, reach=st.one_of(st.none(), st.sampled_from((127, 128, 255, 256)), st.integers(0, 700)))
def test_blocks_are_those_that_every_pair_of_tokens_would_give(lengths, reach):
    ours = block_mask(documents_of([*lengths, 300]), reach)
    tokens = ours.shape[-1]
    theirs = create_block_mask(ours.mask_mod, None, None, tokens, tokens, device="cpu")
    for blocks in ("kv", "full_kv", "q", "full_q"):
        found, wanted = (getattr(mask, f"{blocks}_num_blocks") for mask in (ours, theirs))
        assert torch.equal(found, wanted)
        listed = torch.arange(tokens // 128) < wanted[..., None]
        found, wanted = (getattr(mask, f"{blocks}_indices") for mask in (ours, theirs))
        assert torch.equal(found[listed], wanted[listed])


def test_a_window_is_compiled_once_for_all_lengths(monkeypatch):
    graphs = CompileCounterWithBackend("eager")
    kernel = compiled(graphs)
    monkeypatch.setattr(attention_flex, "kernel", lambda device_type: kernel)
    torch._dynamo.reset()
    for lengths in ([130, 130, 400, 3], [64], [900, 300, 20], [128], [5] * 77, [700, 700, 700]):
        for window in (None, 128):
            assert_exact(lengths, window)
    assert graphs.frame_count == 2


def test_the_layers_of_a_window_share_a_block_mask(monkeypatch):
    made = []
    monkeypatch.setattr(attention_flex, "block_mask", lambda *args: made.append(args) or block_mask(*args))
    monkeypatch.setattr("rotary_foundry.models.layers.attention.choose", lambda *asked: "flex")
    network, batch = our_network().eval(), pack(90, 200)
    with torch.no_grad():
        by_flex = network(*batch)
        monkeypatch.undo()
        torch.testing.assert_close(by_flex, network(*batch), rtol=0, atol=1e-4)
    assert [reach for _, reach in made] == [None, 64]
