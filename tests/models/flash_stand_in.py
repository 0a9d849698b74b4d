"""FlashAttention for tests without a GPU: functions of the real signatures, exact, and strict in what they take.

The signatures of the flash-attn package were recorded from the sources that PyPI has of it: FlashAttention 2 in
`flash_attn`, and FlashAttention 3, which is 3.0.0b1 in all of them, in `hopper`. test_attention_flash.py compares them
with these. Those of torch's own kernels are the schemas of the installed torch, which its dispatcher holds calls to:
`torch_kernels` puts exact ones in their place on CPU, so `varlen_attn`, its autograd and its tracing are torch's own.
"""

import importlib.machinery
import inspect
import sys
import types
from contextlib import contextmanager

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
    assert (dropout_p, softmax_scale, softcap, alibi_slopes, block_table) == (0.0, None, 0.0, None, None)
    assert not return_attn_probs
    return _exact(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, window_size, causal)[0]


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
    assert (seqused_q, seqused_k, softmax_scale, qv) == (None, None, None, None)
    assert (q_descale, k_descale, v_descale, attention_chunk, softcap) == (None, None, None, 0, 0.0)
    return _exact(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, window_size, causal)[0]


def flash_attention_3_of_2_8_0(*args, **kwargs):
    """The parameters are those of 2.8.3; this one returned the logsumexp as well."""
    given = inspect.signature(flash_attention_3).bind(*args, **kwargs)
    given.arguments.pop("deterministic", None)
    return _exact(**given.arguments)


def install(monkeypatch, package, function):
    """Make `function` the `flash_attn_varlen_func` of a package that is not installed."""
    module = types.ModuleType(package)
    module.__spec__ = importlib.machinery.ModuleSpec(package, loader=None)
    module.flash_attn_varlen_func = function
    monkeypatch.setitem(sys.modules, package, module)


@contextmanager
def torch_kernels():
    """Let torch's own FlashAttention compute on CPU; yields the list of its calls, as (operator, bound arguments).

    A graph that was compiled meanwhile keeps what it traced, not these kernels.
    """
    calls = []
    library = torch.library.Library("aten", "IMPL")

    def record(name, args, kwargs):
        schema = getattr(torch.ops.aten, name).default._schema
        names = [argument.name for argument in schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        assert given.keys() <= set(names)
        calls.append((name, given))
        for argument in schema.arguments:  # those that we leave to their defaults
            if argument.has_default_value() and not argument.name.startswith("window_size"):
                assert given.get(argument.name, argument.default_value) == argument.default_value, argument.name
        assert (given["dropout_p"], given.get("return_debug_mask", False)) == (0.0, False)
        heads, kv_heads = given["query"].shape[1], given["key"].shape[1]
        assert heads % kv_heads == 0 and given["query"].shape[2] % 8 == 0
        return given

    def bounds(given):
        bounds = [given[name] for name in ("cum_seq_q", "cum_seq_k", "max_q", "max_k")]
        return *bounds, (given["window_size_left"], given["window_size_right"]), given["is_causal"]

    def forward(*args, **kwargs):
        given = record("_flash_attention_forward", args, kwargs)
        out, logsumexp = _exact(given["query"], given["key"], given["value"], *bounds(given))
        return out, logsumexp, torch.zeros(2, dtype=torch.uint64), torch.zeros((), dtype=torch.uint64), out.new_empty(0)

    def backward(*args, **kwargs):
        given = record("_flash_attention_backward", args, kwargs)
        q, k, v = given["query"], given["key"], given["value"]
        group = q.shape[1] // k.shape[1]
        d_q, d_k, d_v = (torch.empty_like(x, dtype=torch.float32) for x in (q, k, v))
        for here, queries, keys, values, scores in _documents(q, k, v, *bounds(given)):
            d_out, out = given["grad_out"][here].float(), given["out"][here].float()
            weights = (scores - given["logsumexp"][:, here, None]).exp()  # [heads, queries, keys]
            d_weights = torch.einsum("qhd,khd->hqk", d_out, values)
            d_scores = weights * (d_weights - (d_out * out).sum(-1).T[:, :, None]) * q.shape[2] ** -0.5
            d_q[here] = torch.einsum("hqk,khd->qhd", d_scores, keys)
            d_k[here] = torch.einsum("hqk,qhd->khd", d_scores, queries).unflatten(1, (-1, group)).sum(2)
            d_v[here] = torch.einsum("hqk,qhd->khd", weights, d_out).unflatten(1, (-1, group)).sum(2)
        return d_q.to(q.dtype), d_k.to(k.dtype), d_v.to(v.dtype)

    library.impl("_flash_attention_forward", forward, "CPU")
    library.impl("_flash_attention_backward", backward, "CPU")
    try:
        yield calls
    finally:
        library._destroy()


def _exact(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, window_size=(-1, -1), causal=False):
    """Softmax under the mask in float32, document by document, and its logsumexp [heads, tokens]."""
    outs, logsumexps = [], []
    bounds = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    for _, _, _, values, scores in _documents(q, k, v, *bounds, window_size, causal):
        outs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), values))
        logsumexps.append(scores.logsumexp(-1))
    return torch.cat(outs).to(q.dtype), torch.cat(logsumexps, dim=1)


def _documents(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, window_size, causal):
    """Of each document: its place, queries, keys and values of as many heads, and masked scores; all in float32."""
    for x in (q, k, v):
        assert x.dtype in (torch.bfloat16, torch.float16) and x.dtype == q.dtype
        assert x.dim() == 3 and x.stride(-1) == 1
        assert len(x) == len(q) and x.shape[2] == q.shape[2] <= 256
    assert k.shape == v.shape and q.shape[1] % k.shape[1] == 0
    for cu_seqlens, longest in ((cu_seqlens_q, max_seqlen_q), (cu_seqlens_k, max_seqlen_k)):
        assert cu_seqlens.dtype == torch.int32 and cu_seqlens.is_contiguous() and cu_seqlens.device == q.device
        assert cu_seqlens[0] == 0 and cu_seqlens[-1] == len(q)
        assert type(longest) is int and longest >= cu_seqlens.diff().max()
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    before, after = window_size[0], 0 if causal else window_size[1]
    for start, end in zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True):
        queries, keys, values = (x[start:end].float() for x in (q, k, v))
        keys, values = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (keys, values))
        distance = torch.arange(end - start) - torch.arange(end - start)[:, None]  # of the key from the query
        hidden = torch.zeros_like(distance, dtype=torch.bool)
        if before >= 0:
            hidden |= distance < -before
        if after >= 0:
            hidden |= distance > after
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * q.shape[2] ** -0.5
        yield slice(start, end), queries, keys, values, scores.masked_fill(hidden, float("-inf"))
