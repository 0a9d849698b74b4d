"""The statistics of a prepared corpus: counts per source and split, and the unigram entropy to compare a loss with.

The unigram entropy is the held-out loss of the best model without any context, because it is computed from the token
frequencies of the held-out text itself. A model whose loss is not clearly below it has not learned to use context.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from rotary_foundry.data_prep.conversations.conversation_counts import ConversationStatistics
from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.json_text import parse_json

FILE = "statistics.json"


@dataclass
class Counts:
    """Counts of one source in one split."""

    documents: int
    bytes: int  # of UTF-8 text
    tokens: int  # without special tokens
    rows: dict[str, int]  # by row length
    fill: dict[str, float]  # the share of the rows' slots that hold tokens, by row length


@dataclass
class SourceStatistics:
    """Statistics of one source."""

    left_out: dict[str, int]  # documents, by reason
    train: Counts
    validation: Counts
    special_tokens: int = 0  # spelled in its texts, where they are text


@dataclass
class TaskCounts:
    """Counts of one labelled task in one split."""

    examples: int
    documents: int  # texts, windows of passages, or choices
    tokens: int  # of all documents, special tokens included
    lengths: list[int]  # tokens of a document: the least, the median, the 95th percentile, the most
    labels: dict[str, float]  # number of targets per label; for a regression, the least, mean and largest number
    truncated: int  # examples that were cut to max_seq_len
    first_truncated: str | None  # the place of the first of them
    rows: dict[str, int]  # by row length
    fill: dict[str, float]  # the share of the rows' slots that hold tokens, by row length
    unmatched: int = 0  # entities that begin or end within a token, so they cannot be learned
    first_unmatched: str | None = None  # the place of the first of them
    special_tokens: int = 0  # spelled in the texts, where they are text


@dataclass
class TaskStatistics:
    """Statistics of one labelled task."""

    kind: str
    weight: float
    dropped: int  # training examples whose texts are held out by a task
    train: TaskCounts
    validation: TaskCounts


@dataclass
class Statistics:
    """Statistics of a prepared corpus, and the settings that it was made with."""

    configuration: dict  # the settings that determine the shards, from `pipeline.settings`
    corpus: str  # digest of all texts, before duplicates were dropped
    tokenizer: str  # fingerprint
    vocab_size: int
    unigram_entropy: float | None  # nats per content token of all sources' validation split; None without sources
    sources: dict[str, SourceStatistics]
    tasks: dict[str, TaskStatistics] = field(default_factory=dict)  # those with labelled examples
    conversations: dict[str, ConversationStatistics] = field(default_factory=dict)  # of the sources that hold them

    @property
    def folders(self) -> list[str]:
        """The names of the folders of rows: sources or, in a corpus with tasks, tasks."""
        return list(self.configuration.get("tasks") or self.sources)

    def write(self, directory: Path) -> None:
        """Write `statistics.json` into `directory`."""
        (directory / FILE).write_text(self.text(), encoding="utf-8")

    def text(self) -> str:
        """Return the content of `statistics.json`."""
        content = asdict(self)
        for later in ("tasks", "conversations"):
            if not content[later]:
                del content[later]
        return json.dumps(content, indent=2) + "\n"

    @classmethod
    def read(cls, directory: str | Path) -> "Statistics":
        """Read `statistics.json` from `directory`.

        Raises:
            DataError: the file is missing or broken.
        """
        path = f"{directory}/{FILE}"
        try:
            content = parse_json(_text(path))
            sources = {
                name: SourceStatistics(**source | {split: Counts(**source[split]) for split in ("train", "validation")})
                for name, source in content.pop("sources").items()
            }
            tasks = {
                name: TaskStatistics(**task | {split: TaskCounts(**task[split]) for split in ("train", "validation")})
                for name, task in content.pop("tasks", {}).items()
            }
            conversations = content.pop("conversations", {}).items()
            if not isinstance(content["configuration"], dict):
                raise TypeError(f"configuration: {content['configuration']!r}")
            of_conversations = {name: ConversationStatistics.from_json(counts) for name, counts in conversations}
            return cls(**content, sources=sources, tasks=tasks, conversations=of_conversations)
        except FileNotFoundError:
            raise DataError(f"{path}: no such file, so this is not a folder that `python data_prep` finished") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: broken ({error!r})") from None


def _text(path: str) -> str:
    if "://" not in path:
        return Path(path).read_text(encoding="utf-8")
    from rotary_foundry.utils import object_store  # datatrove and obstore: seldom needed to read statistics

    return object_store.read_text(path)


def unigram_entropy(counts: np.ndarray) -> float:
    """Return the entropy in nats per token of a text whose ids occur `counts` times, int64 `[vocab_size]`."""
    frequencies = counts[counts > 0] / counts.sum()
    return float(-(frequencies * np.log(frequencies)).sum())


def rows_and_fill(parts: Sequence[Mapping], row_length: int) -> tuple[int, float]:
    """Return the number of rows that were written to the parts, and the share of their slots that holds tokens."""
    rows, tokens = (sum(part["rows"][str(row_length)][key] for part in parts) for key in ("rows", "tokens"))
    return rows, tokens / max(1, rows * row_length)
