"""Documents packed one after another in a flat sequence of tokens, and values derived from their lengths.

Positions, rotary tables and attention masks depend only on the lengths, and every layer needs them. So one `Documents`
object is made per forward pass and passed to all layers. `once` caches on it what a layer or an attention backend
derives, and the cache is freed with the object. A cache keyed by the lengths was rejected: it would copy them from the
device to the host for every layer, and keep masks of old batches.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from rotary_foundry.objectives.objective import IGNORE_INDEX
from rotary_foundry.utils.errors import DataError


@dataclass(frozen=True, eq=False)
class Documents:
    cu_seqlens: Tensor  # [documents + 1] int32: the index of each document's first token, then the number of tokens
    max_seqlen: int  # tokens of the longest document, or more
    tokens: int
    _derived: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def lengths(self) -> list[int]:
        """The number of tokens of each document, on the host; synchronises with a GPU."""
        return self.cu_seqlens.diff().tolist()

    @cached_property
    def index(self) -> Tensor:
        """The document that each token belongs to. [tokens] int64"""
        lengths = self.cu_seqlens.diff()
        return torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths, output_size=self.tokens)

    @cached_property
    def positions(self) -> Tensor:
        """The place of each token in its document. [tokens] int64"""
        return torch.arange(self.tokens, device=self.cu_seqlens.device) - self.cu_seqlens[self.index]

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return the result of `make`, which is called only once for each `key`."""
        if key not in self._derived:
            self._derived[key] = make()
        return self._derived[key]


def checked_documents(input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int | None, vocab_size: int) -> Documents:
    """Check the arguments of a forward pass and return their documents.

    Args:
        input_ids: [tokens] int64.
        cu_seqlens: [documents + 1] int32.
        max_seqlen: at least the tokens of the longest document. If None it is computed, which waits for a GPU.
        vocab_size: the model's.

    Raises:
        DataError: as for `check_documents`.
    """
    check_documents(input_ids, cu_seqlens, max_seqlen, vocab_size)
    if max_seqlen is None:
        max_seqlen = int(cu_seqlens.diff().max()) if len(cu_seqlens) > 1 else 0
    return Documents(cu_seqlens, max_seqlen, tokens=len(input_ids))


@torch.compiler.disable  # it branches on values, so it must run on the host
def check_documents(input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int | None, vocab_size: int) -> None:
    """Check that the arguments of a forward pass fit each other; cheap compared with a layer.

    On a GPU it checks only shapes and dtypes. Checking values would make the host wait for the GPU at every forward
    pass; training checks them when it collates a batch.

    Raises:
        DataError: names the argument, the first wrong value and its index.
    """
    _check_flat("input_ids", input_ids, torch.int64)
    _check_flat("cu_seqlens", cu_seqlens, torch.int32)
    if input_ids.device.type == "cpu":
        _check_ids("input_ids", input_ids, (input_ids < 0) | (input_ids >= vocab_size), vocab_size)
    if cu_seqlens.device.type != "cpu":
        return
    bounds = cu_seqlens.tolist()
    if not bounds or bounds[0] != 0:
        raise DataError(f"cu_seqlens: expected to begin with 0, got {bounds[0] if bounds else 'nothing'}")
    longest = 0
    for place, (start, end) in enumerate(pairwise(bounds), 1):
        if end < start:
            raise DataError(f"cu_seqlens: expected increasing values, but it falls from {start} to {end} at {place}")
        longest = max(longest, end - start)
    if bounds[-1] != len(input_ids):
        raise DataError(f"cu_seqlens: expected to end with {len(input_ids)}, the number of input_ids, got {bounds[-1]}")
    if max_seqlen is not None and max_seqlen < longest:
        raise DataError(f"max_seqlen: {max_seqlen} is less than the {longest} tokens of the longest document")


@torch.compiler.disable
def check_labels(labels: Tensor, input_ids: Tensor, vocab_size: int) -> None:
    """Check that labels fit the tokens and the vocabulary; values are checked only on the CPU. Raises DataError."""
    _check_flat("labels", labels, torch.int64)
    if labels.shape != input_ids.shape:
        raise DataError(f"labels: expected the shape of input_ids, {list(input_ids.shape)}, got {list(labels.shape)}")
    if labels.device.type == "cpu":
        wrong = ((labels < 0) | (labels >= vocab_size)) & (labels != IGNORE_INDEX)
        _check_ids("labels", labels, wrong, vocab_size)


@torch.compiler.disable
def check_token_types(token_type_ids: Tensor, input_ids: Tensor, types: int) -> None:
    """Check that segment ids fit the tokens and lie in 0 … types - 1; values only on the CPU. Raises DataError."""
    _check_flat("token_type_ids", token_type_ids, torch.int64)
    if token_type_ids.shape != input_ids.shape:
        raise DataError(
            f"token_type_ids: expected the shape of input_ids, {list(input_ids.shape)}, got "
            f"{list(token_type_ids.shape)}"
        )
    if token_type_ids.device.type == "cpu":
        wrong = (token_type_ids < 0) | (token_type_ids >= types)
        if wrong.any():
            place = int(wrong.nonzero()[0])
            raise DataError(f"token_type_ids: {int(token_type_ids[place])} at {place} is not in [0, {types})")


def _check_flat(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dim() != 1:
        raise DataError(
            f"{name}: expected one dimension, with the documents one after another, got shape {list(tensor.shape)}"
        )
    if tensor.dtype != dtype:
        raise DataError(f"{name}: expected {dtype}, got {tensor.dtype}; convert it with .to({dtype})")


def _check_ids(name: str, ids: Tensor, wrong: Tensor, vocab_size: int) -> None:
    if wrong.any():
        place = int(wrong.nonzero()[0])
        raise DataError(f"{name}: {int(ids[place])} at {place} is not in the vocabulary, [0, {vocab_size})")
