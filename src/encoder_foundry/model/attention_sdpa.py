import torch
import torch.nn.functional as F
from torch import Tensor
from encoder_foundry.model.documents import Documents


def sdpa_attention(q, k, v, documents, window):
    if window is None:
        return global_attention(q, k, v, documents)
    return LocalAttention.apply(q, k, v, documents, window // 2)


def global_attention(q, k, v, documents):
    dt = q.dtype
    with torch.autocast("cpu", enabled=False):
        return ga(*(x.float() if FP32 else x for x in (q, k, v)), documents).to(dt)


FP32 = True


def ga(q, k, v, documents):
    out = [
        F.scaled_dot_product_attention(*(x.transpose(0, 1).unsqueeze(0) for x in document)).squeeze(0).transpose(0, 1)
        for document in zip(*(x.split(documents.lengths) for x in (q, k, v)), strict=True)
    ]
    return torch.cat(out)


CHUNK = 1 << 20


def _blocked(x, block, margin):
    T, H, D = x.shape
    n = -(-T // block)
    out = x.new_zeros(n + 2 * margin, H, block, D) if (T % block or margin) else x.new_empty(n, H, block, D)
    full = T // block
    out[margin : margin + full] = x[: full * block].view(full, block, H, D).transpose(1, 2)
    if T % block:
        out[margin + full, :, : T - full * block] = x[full * block :].transpose(0, 1)
    return out


def _flat(x, T):
    n, H, B, D = x.shape
    return x.transpose(1, 2).reshape(n * B, H, D)[:T]


def _bias(documents, half, block, dtype):
    T = documents.tokens
    n = -(-T // block)
    ids = torch.full(((n + 2) * block,), -1, dtype=torch.int32)
    ids[block : block + T] = documents.index
    ids = ids.view(n + 2, block)
    kid = torch.cat((ids[:-2], ids[1:-1], ids[2:]), 1)
    i = torch.arange(block)
    j = torch.arange(3 * block) - block
    near = (i[:, None] - j).abs() <= half
    see = (ids[1:-1, :, None] == kid[:, None]) & near
    return torch.zeros(see.shape, dtype=dtype).masked_fill_(~see, torch.finfo(dtype).min / 2).unsqueeze(1)


def _three(x, a, b):
    return torch.cat((x[a:b], x[a + 1 : b + 1], x[a + 2 : b + 2]), dim=2)


class LocalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, documents, half):
        T, H, D = q.shape
        block = max(half, 64)
        bias = documents.once(("blocks", half, q.dtype), lambda: _bias(documents, half, block, q.dtype))
        qb = _blocked(q * D**-0.5, block, 0)
        kb, vb = _blocked(k, block, 1), _blocked(v, block, 1)
        n = qb.shape[0]
        step = max(1, CHUNK // (H * 3 * block * block))
        out = torch.empty_like(qb)
        for a in range(0, n, step):
            b = min(a + step, n)
            s = torch.bmm(qb[a:b].flatten(0, 1), _three(kb, a, b).flatten(0, 1).transpose(1, 2))
            s.view(b - a, H, block, 3 * block).add_(bias[a:b])
            p = torch.softmax(s, -1)
            torch.bmm(p, _three(vb, a, b).flatten(0, 1), out=out[a:b].flatten(0, 1))
        ctx.save_for_backward(qb, kb, vb, bias)
        ctx.T = T
        ctx.step = step
        return _flat(out, T)

    @staticmethod
    def backward(ctx, do):
        qb, kb, vb, bias = ctx.saved_tensors
        n, H, block, D = qb.shape
        dob = _blocked(do, block, 0)
        dq, dk, dv = torch.empty_like(qb), torch.zeros_like(kb), torch.zeros_like(vb)
        for a in range(0, n, ctx.step):
            b = min(a + ctx.step, n)
            qc, dc = qb[a:b].flatten(0, 1), dob[a:b].flatten(0, 1)
            kc, vc = _three(kb, a, b).flatten(0, 1), _three(vb, a, b).flatten(0, 1)
            s = torch.bmm(qc, kc.transpose(1, 2))
            s.view(b - a, H, block, 3 * block).add_(bias[a:b])
            p = torch.softmax(s, -1)
            dvc = torch.bmm(p.transpose(1, 2), dc).view(b - a, H, 3, block, D)
            ds = torch._softmax_backward_data(torch.bmm(dc, vc.transpose(1, 2)), p, -1, p.dtype)
            torch.bmm(ds, kc, out=dq[a:b].flatten(0, 1))
            dkc = torch.bmm(ds.transpose(1, 2), qc).view(b - a, H, 3, block, D)
            for i in range(3):
                dk[a + i : b + i] += dkc[:, :, i]
                dv[a + i : b + i] += dvc[:, :, i]
        dq *= D**-0.5
        return _flat(dq, ctx.T), _flat(dk[1:-1], ctx.T), _flat(dv[1:-1], ctx.T), None, None


def local_b(q, k, v, documents, window, block=128, fp32=True):
    dt = q.dtype
    half = window // 2
    T, H, D = q.shape
    n = -(-T // block)
    bias = documents.once(("b", half, fp32, dt), lambda: _bias2(documents, half, block, torch.float32 if fp32 else dt))
    if fp32:
        q, k, v = q.float(), k.float(), v.float()
    pad = n * block - T
    q = F.pad(q, (0, 0, 0, 0, 0, pad)).view(n, block, H, D).transpose(1, 2)

    def over(x):
        x = F.pad(x, (0, 0, 0, 0, half, half + pad))
        return torch.cat(
            (x[: n * block].view(n, block, H, D), x[block : block + 0 + n * block].view(n, block, H, D)[:, : 2 * half])
            if False
            else (
                x[: n * block].view(n, block, H, D),
                F.pad(x[block:], (0, 0, 0, 0, 0, block - 2 * half)).view(n, block, H, D)[:, : 2 * half],
            ),
            1,
        ).transpose(1, 2)

    with torch.autocast("cpu", enabled=False):
        o = F.scaled_dot_product_attention(q, over(k), over(v), attn_mask=bias)
    return o.transpose(1, 2).reshape(n * block, H, D)[:T].to(dt)


def _bias2(documents, half, block, dtype):
    T = documents.tokens
    n = -(-T // block)
    ids = torch.full((n * block + 2 * half,), -1, dtype=torch.int32)
    ids[half : half + T] = documents.index
    kid = ids.unfold(0, block + 2 * half, block)
    qid = ids[half : half + n * block].view(n, block)
    i = torch.arange(block)
    j = torch.arange(block + 2 * half) - half
    see = (qid[:, :, None] == kid[:, None]) & ((i[:, None] - j).abs() <= half)
    return torch.zeros(see.shape, dtype=dtype).masked_fill_(~see, torch.finfo(dtype).min / 2).unsqueeze(1)


import os

VAR = os.environ.get("VAR")
if VAR:
    bb, f = VAR.split(",")

    def sdpa_attention(q, k, v, documents, window):
        if window is None:
            return global_attention(q, k, v, documents)
        return local_b(q, k, v, documents, window, int(bb), f == "1")
