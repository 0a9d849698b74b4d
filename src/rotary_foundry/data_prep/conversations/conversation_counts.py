"""Count conversations, their lengths, and the share of the loss by length and by source, before anything is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from rich import box
from rich.table import Table

from rotary_foundry.utils.errors import DataError


@dataclass
class ConversationCounts:
    """The conversations of one source in one split."""

    examples: int
    tokens: int
    responses: int  # tokens of the assistant
    lengths: list[int]  # tokens of a conversation: the least, the median, the 95th percentile, the most
    by_length: dict[str, list[int]]  # [examples, tokens, responses]; the key 4 is for 4 to 7 tokens, 8 for 8 to 15, …
    left_out: dict[str, int]  # conversations that do not fit a row, by row length
    cut: dict[str, int]  # conversations that were cut from the left to fit a row, by row length

    @classmethod
    def of(cls, tokens: np.ndarray, responses: np.ndarray, left_out: dict[str, int], cut: dict[str, int]) -> Self:
        """Count conversations by their tokens and response tokens, int64 `[conversations]` each."""
        bins = np.frexp(np.maximum(tokens, 1).astype(np.float64))[1] - 1
        by_length = {}
        for number in np.unique(bins):
            its = bins == number
            by_length[str(1 << int(number))] = [int(its.sum()), int(tokens[its].sum()), int(responses[its].sum())]
        lengths = np.quantile(tokens, [0, 0.5, 0.95, 1], method="lower").tolist() if len(tokens) else []
        return cls(len(tokens), int(tokens.sum()), int(responses.sum()), lengths, by_length, left_out, cut)


@dataclass
class ConversationStatistics:
    """The conversations of one source."""

    train: ConversationCounts
    validation: ConversationCounts

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Make the statistics from plain JSON types."""
        return cls(**{split: ConversationCounts(**counts) for split, counts in content.items()})


def check_conversations(source: str, documents: Mapping[str, int], left_out: Sequence[str]) -> None:
    """Check that each split of a source has conversations.

    Args:
        source: the name of the source.
        documents: the number of its conversations by split.
        left_out: the conversations that were left out when they were encoded, and why.

    Raises:
        DataError: a split has no conversations.
    """
    for split, count in documents.items():
        if not count:
            first = f", the first of them {left_out[0]}" if left_out else ""
            raise DataError(
                f"source '{source}': no conversation is left in the {split} split; {len(left_out):,} were left out"
                f"{first}; longer rows, `too_long: cut_left` or more data would keep some"
            )


def loss_table(counts: Mapping[str, ConversationCounts], split: str) -> Table:
    """Make a table by source and by length: counts, the share of the loss, and of all tokens, prompts included."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(f"conversations ({split})")
    for heading in ("examples", "tokens", "responses", "of the loss", "with prompts"):
        table.add_column(heading, justify="right")
    by_length: dict[int, np.ndarray] = {}
    for each in counts.values():
        for least, numbers in each.by_length.items():
            by_length[int(least)] = by_length.get(int(least), 0) + np.array(numbers)
    lines = {name: [each.examples, each.tokens, each.responses] for name, each in counts.items()}
    lines |= {f"{least:,} – {2 * least - 1:,} tokens": by_length[least].tolist() for least in sorted(by_length)}
    tokens, responses = (sum(getattr(each, key) for each in counts.values()) for key in ("tokens", "responses"))
    for name, numbers in lines.items():
        shares = numbers[2] / max(1, responses), numbers[1] / max(1, tokens)
        table.add_row(name, *(f"{number:,}" for number in numbers), *(f"{share:.1%}" for share in shares))
    return table
