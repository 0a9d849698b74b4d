"""Documents packed one after another on a flat sequence of tokens, and what is worked out from their lengths.

Positions, rotary tables and attention masks depend on nothing but the document lengths, and every layer wants them.
So one `Documents` is made per forward and passed down; what a layer or an attention backend derives from it is kept
on it by `once`, and dies with it. A cache keyed by content was the alternative: it would bring every layer's lengths
from the device to the host, and outlive its use.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Documents:
    cu_seqlens: Tensor  # [documents + 1] int32: where each document begins, and at last the number of tokens
    max_seqlen: int  # tokens of the longest document, or more
    tokens: int
    _derived: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each document, on the host (a synchronisation on GPU: for backends that cannot do without)."""
        return self.cu_seqlens.diff().tolist()

    @cached_property
    def index(self) -> Tensor:
        """Which document each token belongs to. [tokens] int64"""
        lengths = self.cu_seqlens.diff()
        number = torch.arange(len(lengths), device=lengths.device)
        return number.repeat_interleave(lengths, output_size=self.tokens)

    @cached_property
    def positions(self) -> Tensor:
        """Place of each token in its document. [tokens] int64"""
        return torch.arange(self.tokens, device=self.cu_seqlens.device) - self.cu_seqlens[self.index]

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The value made for `key`: on the first call by `make`, later the same."""
        if key not in self._derived:
            self._derived[key] = make()
        return self._derived[key]
