"""Documents packed one after another on a flat sequence of tokens, and what follows from their lengths.

Positions, rotary tables and attention masks depend on nothing but the lengths, and every layer wants them. So one
`Documents` is made per forward and passed down; what a layer or an attention backend works out of it is kept on it by
`once`, and goes when it goes. A cache keyed by the lengths lost: it would bring them from the device to the host for
every layer, and keep masks of batches long gone.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Documents:
    cu_seqlens: Tensor  # [documents + 1] int32: the first token of each document, and last the number of tokens
    max_seqlen: int  # tokens of the longest document, or more
    tokens: int
    _derived: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each document, on the host: synchronises with a GPU."""
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
        """What `make` gives, made on the first call for `key` and kept."""
        if key not in self._derived:
            self._derived[key] = make()
        return self._derived[key]
