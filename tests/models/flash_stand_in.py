"""FlashAttention for tests without a GPU: functions of the recorded signatures, exact, and strict in what they take.

The signatures were recorded from the sources that PyPI has of flash-attn: FlashAttention 2 in `flash_attn`, and
FlashAttention 3, which is 3.0.0b1 in all of them, in `hopper`. test_attention_flash.py compares them with these.
"""

import importlib.machinery
import sys
import types

import torch

RECORDED_FROM = "2.8.3.post2"


def flash_attention_2(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    block_table=None,
):
    assert (dropout_p, softmax_scale, causal, softcap, alibi_slopes, block_table) == (0.0, None, False, 0.0, None, None)
    assert not return_attn_probs
    return _exact(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, window_size)[0]


def flash_attention_3(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    seqused_q=None,
    seqused_k=None,
    softmax_scale=None,
    causal=False,
    qv=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    num_splits=1,
    pack_gqa=None,
    deterministic=False,
    sm_margin=0,
):
    assert (seqused_q, seqused_k, softmax_scale, causal, qv) == (None, None, None, False, None)
    assert (q_descale, k_descale, v_descale, attention_chunk, softcap) == (None, None, None, 0, 0.0)
    return _exact(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, window_size)[0]


def flash_attention_3_of_2_8_0(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, window_size=(-1, -1)):
    """The parameters are those of 2.8.3; this one returned the logsumexp as well."""
    return _exact(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, window_size)


def install(monkeypatch, package, function):
    """Make `function` the `flash_attn_varlen_func` of a package that is not installed."""
    module = types.ModuleType(package)
    module.__spec__ = importlib.machinery.ModuleSpec(package, loader=None)
    module.flash_attn_varlen_func = function
    monkeypatch.setitem(sys.modules, package, module)


def _exact(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, window_size):
    """Softmax under the mask in float32, document by document, and its logsumexp [heads, tokens]."""
    for x in (q, k, v):
        assert x.dtype in (torch.bfloat16, torch.float16) and x.dtype == q.dtype
        assert x.dim() == 3 and x.stride(-1) == 1
        assert x.shape == q.shape and x.shape[2] <= 256
    for cu_seqlens, longest in ((cu_seqlens_q, max_seqlen_q), (cu_seqlens_k, max_seqlen_k)):
        assert cu_seqlens.dtype == torch.int32 and cu_seqlens.is_contiguous() and cu_seqlens.device == q.device
        assert cu_seqlens[0] == 0 and cu_seqlens[-1] == len(q)
        assert type(longest) is int and longest >= cu_seqlens.diff().max()
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    before, after = window_size
    outs, logsumexps = [], []
    for start, end in zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True):
        queries, keys, values = (x[start:end].float() for x in (q, k, v))
        distance = torch.arange(end - start) - torch.arange(end - start)[:, None]  # of the key from the query
        hidden = torch.zeros_like(distance, dtype=torch.bool)
        if before >= 0:
            hidden |= distance < -before
        if after >= 0:
            hidden |= distance > after
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * q.shape[2] ** -0.5
        scores = scores.masked_fill(hidden, float("-inf"))
        outs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), values))
        logsumexps.append(scores.logsumexp(-1))
    return torch.cat(outs).to(q.dtype), torch.cat(logsumexps, dim=1)
