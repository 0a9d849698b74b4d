"""Scores of all spans of a text, and their losses: GlobalPointer and EfficientGlobalPointer.

Both score the span from token i to token j by the product of i's query and j's key, with rotary positions
(kexue.fm/archives/8373). GlobalPointer has a query and a key for each kind of span. EfficientGlobalPointer has one pair
for all kinds, and for each kind adds a score of the start and one of the end (kexue.fm/archives/8877). As in the
published fine-tuning code (roformer-v2, clue/), there are 64 dimensions and no biases.

Spans that end before they start, or whose first or last token is not in `allowed`, have the score -inf. Neither loss
becomes NaN: an excluded span has probability 0 and gradient 0.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rotary_foundry.models.layers.rotary import first_rotary_tables, rotate

HEAD_SIZE = 64
THETA = 10_000.0


class GlobalPointer(nn.Module):
    """Map hidden [rows, tokens, hidden] and allowed [rows, tokens] (bool) to scores [rows, kinds, first, last]."""

    def __init__(self, hidden_size: int, kinds: int):
        super().__init__()
        self.kinds = kinds
        self.dense = _linear(hidden_size, kinds * 2 * HEAD_SIZE)

    def forward(self, hidden: Tensor, allowed: Tensor) -> Tensor:
        queries, keys = self.dense(hidden).unflatten(-1, (self.kinds, 2, HEAD_SIZE)).unbind(-2)
        return _only(_products(queries, keys), allowed)


class EfficientGlobalPointer(nn.Module):
    """Like GlobalPointer, but with few parameters for each further kind."""

    def __init__(self, hidden_size: int, kinds: int):
        super().__init__()
        self.dense = _linear(hidden_size, 2 * HEAD_SIZE)
        self.kinds = _linear(2 * HEAD_SIZE, 2 * kinds)

    def forward(self, hidden: Tensor, allowed: Tensor) -> Tensor:
        shared = self.dense(hidden)  # [rows, tokens, 2 * HEAD_SIZE]
        queries, keys = shared.unflatten(-1, (1, 2, HEAD_SIZE)).unbind(-2)
        starts, ends = (self.kinds(shared).transpose(1, 2) / 2).chunk(2, dim=1)  # [rows, kinds, tokens]
        return _only(_products(queries, keys) + starts[..., :, None] + ends[..., None, :], allowed)


def _linear(rows: int, columns: int) -> nn.Linear:
    linear = nn.Linear(rows, columns, bias=False)
    nn.init.normal_(linear.weight, std=rows**-0.5)
    return linear


def _products(queries: Tensor, keys: Tensor) -> Tensor:
    """Multiply queries and keys, each [rows, tokens, kinds, HEAD_SIZE], to scores [rows, kinds, tokens, tokens]."""
    tables = first_rotary_tables(queries.shape[1], HEAD_SIZE, THETA, queries.dtype, queries.device)
    queries, keys = rotate(queries, *tables), rotate(keys, *tables)
    return torch.einsum("rikd,rjkd->rkij", queries, keys) / HEAD_SIZE**0.5


def _only(scores: Tensor, allowed: Tensor) -> Tensor:
    spans = (allowed[:, :, None] & allowed[:, None, :]).triu()[:, None]
    return scores.masked_fill(~spans, -torch.inf)


def one_span_loss(scores: Tensor, span: Tensor) -> Tensor:
    """Return the mean cross entropy of the right span among all spans of its row.

    Args:
        scores: [rows, 1, tokens, tokens].
        span: [rows, 2], the first and the last token of an allowed span.
    """
    return F.cross_entropy(scores.flatten(1), span[:, 0] * scores.shape[-1] + span[:, 1])


def many_spans_loss(scores: Tensor, right: Tensor) -> Tensor:
    """Return the multi-label cross entropy (kexue.fm/archives/7359), the mean over rows and kinds.

    For one row and kind it is log(1 + Σ exp(s)) over the wrong spans + log(1 + Σ exp(-s)) over the right ones. This
    pushes right spans above 0 and all others below. The 1 is a score of 0 in a log-sum-exp that cannot overflow.

    Args:
        scores: [rows, kinds, tokens, tokens].
        right: the same shape, bool; only allowed spans are right.
    """
    zero = scores.new_zeros(*scores.shape[:2], 1)
    wrong = scores.masked_fill(right, -torch.inf).flatten(2)
    missed = scores.neg().masked_fill(~right, -torch.inf).flatten(2)
    return sum(torch.cat((zero, part), dim=2).logsumexp(dim=2) for part in (wrong, missed)).mean()
