"""The statistics of a prepared corpus: counts per source and split, and the unigram entropy to compare a loss with.

The unigram entropy is the held-out loss of the best model without any context, because it is computed from the token
frequencies of the held-out text itself. A model whose loss is not clearly below it has not learned to use context.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rotary_foundry.utils.errors import DataError

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


@dataclass
class Statistics:
    """Statistics of a prepared corpus, and the settings that it was made with."""

    configuration: dict  # the settings that the shards follow from, as `pipeline.settings` gives them
    corpus: str  # digest of all texts, before duplicates were dropped
    tokenizer: str  # fingerprint
    vocab_size: int
    unigram_entropy: float  # nats per content token of the validation split, all sources together
    sources: dict[str, SourceStatistics]

    def write(self, directory: Path) -> None:
        """Write `statistics.json` into `directory`."""
        (directory / FILE).write_text(self.text(), encoding="utf-8")

    def text(self) -> str:
        """Return the content of `statistics.json`."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, directory: str | Path) -> "Statistics":
        """Read `statistics.json` from `directory`.

        Raises:
            DataError: the file is missing or broken.
        """
        path = f"{directory}/{FILE}"
        try:
            content = json.loads(_text(path))
            sources = {
                name: SourceStatistics(**source | {split: Counts(**source[split]) for split in ("train", "validation")})
                for name, source in content.pop("sources").items()
            }
            return cls(**content, sources=sources)
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
