"""What a model cannot be made of, and what it cannot be given, is refused with the value."""

import re
from math import inf, nan

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rotary_foundry.models.modernbert.network import ModernBert
from rotary_foundry.utils.errors import ConfigurationError, DataError
from tests.models.peers import KNOBS, our_network, pack, small_shape

NETWORK = our_network().eval()  # a vocabulary of 192
THETAS = [0, -1.0, inf, nan, "1e4", True]
IDS, BOUNDS, LABELS = [5, 6, 7, 8, 9, 10], [0, 2, 2, 6], [-100, 6, -100, 191, 0, -100]


def tensors(input_ids, cu_seqlens, labels):
    return torch.tensor(input_ids), torch.tensor(cu_seqlens, dtype=torch.int32), torch.tensor(labels)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_attention_heads": 5}, "num_attention_heads: 5 heads do not divide a hidden size of 64"),
        ({"num_attention_heads": 64}, "num_attention_heads: 64 heads of 1;"),
        ({"num_attention_heads": 0}, "num_attention_heads: 0 is not positive"),
        ({"hidden_size": 64.0}, r"hidden_size: 64\.0 is not of type int"),
        ({"local_attention": None}, "local_attention: null, but with global_attn_every_n_layers 3"),
        ({"global_attn_every_n_layers": 1}, "local_attention: 128, but with global_attn_every_n_layers 1"),
        ({"local_attention": 33}, "local_attention: 33 is odd"),
        ({"norm_eps": 0.0}, r"norm_eps: 0\.0 is not positive"),
    ],
    ids=str,
)
def test_a_shape_that_no_model_can_have_is_refused(change, says):
    with pytest.raises(ConfigurationError, match=f"^model.{says}"):
        ModernBert(small_shape(**change), KNOBS)


def test_a_window_that_only_depth_leaves_unused_is_none_too_many():
    ModernBert(small_shape(num_hidden_layers=1), KNOBS)


def test_an_unknown_attention_is_refused():
    with pytest.raises(ConfigurationError, match="attn_implementation: 'eager' is not known"):
        our_network(attn_implementation="eager")(*pack(5))


@pytest.mark.parametrize(
    ("knob", "value", "says"),
    [
        *((knob, value, "above 0") for knob in ("rope_theta", "local_rope_theta") for value in THETAS),
        *(("attn_out_dropout", value, r"in \[0, 1\)") for value in (1.0, 1.5, -0.1, nan, "0.1", True, None)),
    ],
)
def test_an_impossible_knob_is_refused_when_it_is_set(knob, value, says):
    refusal = rf"^{knob}: {re.escape(repr(value))} is not a (finite )?number {says}$"
    with pytest.raises(ConfigurationError, match=refusal):
        ModernBert(small_shape(), KNOBS | {knob: value})
    network = our_network(500.0, local_rope_theta=400.0, attn_out_dropout=0.25)
    with pytest.raises(ConfigurationError, match=refusal):
        network.set_knob(knob, value)
    assert network.knobs == {"rope_theta": 500.0, "local_rope_theta": 400.0, "attn_out_dropout": 0.25}
    assert all(layer.attn.out_drop.p == 0.25 for layer in network.blocks)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"input_ids": [[5, 6], [7, 8]]}, r"input_ids: expected one dimension, .* got shape \[2, 2\]"),
        ({"input_ids": [5.0, 6.0]}, r"input_ids: expected torch\.int64, got torch\.float32"),
        ({"input_ids": [5, 6, 192, 8, -1, 10]}, r"input_ids: 192 at 2 is not in the vocabulary, \[0, 192\)"),
        ({"input_ids": [5, 6, 7, 8, -100, 10]}, "input_ids: -100 at 4"),
        ({"cu_seqlens": [[0, 6]]}, r"cu_seqlens: expected one dimension, .* got shape \[1, 2\]"),
        ({"cu_seqlens": []}, "cu_seqlens: expected to begin with 0, got nothing"),
        ({"cu_seqlens": [1, 6]}, "cu_seqlens: expected to begin with 0, got 1"),
        ({"cu_seqlens": [0, 4, 2, 6]}, "cu_seqlens: expected .* falls from 4 to 2 at 2"),
        (
            {"cu_seqlens": [0, 2**31 - 1, -(2**31), 6]},
            "cu_seqlens: expected .* falls from 2147483647 to -2147483648 at 2",
        ),
        ({"cu_seqlens": [0, 2, 5]}, "cu_seqlens: expected to end with 6, the number of input_ids, got 5"),
        ({"cu_seqlens": [0, 2, 7]}, "cu_seqlens: expected to end with 6, .* got 7"),
        ({"cu_seqlens": [0]}, "cu_seqlens: expected to end with 6, .* got 0"),
        ({"max_seqlen": 3}, "max_seqlen: 3 is less than the 4 tokens"),
        ({"labels": [5]}, r"labels: expected the shape of input_ids, \[6\], got \[1\]"),
        ({"labels": [0, 1, 2, 3, -1, 5]}, "labels: -1 at 4"),
        ({"labels": [0, 1, 2, 3, 4, 192]}, "labels: 192 at 5"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_named(changed, says):
    given = {"input_ids": IDS, "cu_seqlens": BOUNDS, "max_seqlen": 4, "labels": LABELS} | changed
    input_ids, cu_seqlens, labels = tensors(given["input_ids"], given["cu_seqlens"], given["labels"])
    with pytest.raises(DataError, match=says):
        NETWORK(input_ids, cu_seqlens, given["max_seqlen"], labels if "labels" in changed else None)


def test_int64_boundaries_are_refused_with_the_cast_that_flash_attention_wants():
    with pytest.raises(DataError, match=r"cu_seqlens: .*got torch\.int64; .*\.to\(torch\.int32\)"):
        NETWORK(torch.tensor(IDS), torch.tensor(BOUNDS))


@settings(max_examples=200)
@given(
    input_ids=st.lists(st.integers(-1, 192), max_size=6),
    cu_seqlens=st.lists(st.integers(-1, 7), max_size=5),
    max_seqlen=st.none() | st.integers(0, 7),
    labels=st.lists(st.sampled_from([-100, -1, 0, 191, 192]), min_size=6, max_size=6),
)
@torch.no_grad()
def test_anything_else_is_computed(input_ids, cu_seqlens, max_seqlen, labels):
    """No call ends in any other error: what was not refused is finite, for each token."""
    input_ids, cu_seqlens, labels = tensors(input_ids, cu_seqlens, labels[: len(input_ids)])
    try:
        logits = NETWORK(input_ids.long(), cu_seqlens, max_seqlen)
        loss = NETWORK(input_ids.long(), cu_seqlens, max_seqlen, labels.long())
    except DataError as error:
        assert "\n" not in str(error)
        return
    assert logits.shape == (len(input_ids), 192)
    assert logits.isfinite().all() and loss.cross_entropy.isfinite()
