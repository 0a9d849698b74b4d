"""The row as it is stored, and the manifest beside the shards. What writes shards and what trains on them meet here.

A row is one MDS sample with three columns: `tokens`, its documents end to end, each in its FRAME; `lengths`,
how many tokens each document has; and `documents`, by which each is found again: its line in the parquet of documents
that preparation writes for the same part. Lengths and not boundaries, because they stay true when a row is cut or
joined. Training reads tokens and lengths only, so shards of before `documents` was there still serve.
Tokens are uint16, half of what a training run would otherwise read, or uint32 when the vocabulary holds more than
65,536 ids; the choice follows from the vocabulary alone, so that every shard of a corpus has the same type. numpy wraps
an id that is too large without a word, so each row is checked as it is encoded.

Light on purpose (numpy and the standard library): the trainer reads manifests before it has imported torch.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rotary_foundry.utils.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MANIFEST = "manifest.json"
SHARD_HASH = "xxh64"  # by which damaged shards are told

# The special tokens of a tokenizer that is trained here, by the roles that transformers gives them: BERT's.
SPECIAL_TOKENS = {
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "mask_token": "[MASK]",
}


@dataclass(frozen=True)
class Frame:
    """The special tokens before and after each document of a row, as ids or by the roles that they have."""

    before: tuple[int | str, ...]
    after: tuple[int | str, ...]

    @property
    def slots(self) -> int:
        """How many of a row's slots each document takes on top of its own tokens."""
        return len(self.before) + len(self.after)

    def ids(self, special_ids: Mapping[str, int]) -> "Frame":
        """The frame in a tokenizer's ids, where this one has roles."""
        return Frame(tuple(special_ids[role] for role in self.before), tuple(special_ids[role] for role in self.after))

    @classmethod
    def of(cls, tokenizer: "Tokenizer") -> "Frame":
        """Return what a tokenizer puts around a text, in ids; some put nothing."""
        around = tuple(tokenizer.encode("").ids)
        return cls(around[: len(around) // 2], around[len(around) // 2 :])


FRAME = Frame(("cls_token",), ("sep_token",))  # of every document in a row: [CLS] … [SEP], however these are spelled
SHORTEST = FRAME.slots + 1  # tokens of a document that has any of its own


def lies_inside(name: object) -> bool:
    """Whether a file that an index of shards names is in its folder: it would be written wherever else that says."""
    return isinstance(name, str) and not name.startswith("/") and ".." not in name.split("/")


class Row(NamedTuple):
    """One row before it is stored."""

    tokens: np.ndarray  # integers [tokens]: documents end to end, each in its frame
    lengths: np.ndarray  # uint32 [documents]: how many of the tokens are each one's
    documents: np.ndarray  # uint32 [documents]: the number of each in its part; a long one's pieces have the same


def token_dtype(vocab_size: int) -> np.dtype:
    """The integer type that rows of a vocabulary of `vocab_size` ids are stored in."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def columns(dtype: np.dtype) -> dict[str, str]:
    """The MDS columns of rows whose tokens have type `dtype`, as `streaming.MDSWriter` takes them."""
    return {"tokens": f"ndarray:{dtype.name}", "lengths": "ndarray:uint32", "documents": "ndarray:uint32"}


def encode_row(row: Row, dtype: np.dtype) -> dict[str, np.ndarray]:
    """One MDS sample out of a row, its tokens as `dtype`.

    Raises:
        DataError: an id does not fit `dtype`, a document is empty, or the three parts are not of one row.
    """
    tokens, lengths, documents = row
    if not len(lengths) or not lengths.all():
        raise DataError("a row holds documents of at least one token each; an empty one was given")
    if lengths.sum() != len(tokens) or len(documents) != len(lengths):
        raise DataError(
            f"a row of {len(tokens)} tokens was given with {len(documents)} numbers of documents, "
            f"and with {len(lengths)} lengths, together {lengths.sum()}"
        )
    if not np.can_cast(tokens.dtype, dtype):
        smallest, largest = int(tokens.min()), int(tokens.max())
        if smallest < 0 or largest > np.iinfo(dtype).max:
            wrong = smallest if smallest < 0 else largest
            raise DataError(
                f"token id {wrong} does not fit {dtype.name} (0 to {np.iinfo(dtype).max}): "
                "the tokenizer gives ids beyond the vocabulary that the shards were typed for"
            )
    return {"tokens": tokens.astype(dtype), "lengths": lengths, "documents": documents}


def decode_row(sample: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The documents of a stored row, in order, as views `[tokens]` in the stored type."""
    return np.split(sample["tokens"], np.cumsum(sample["lengths"])[:-1])


def content(document: np.ndarray) -> np.ndarray:
    """A document of a row without its frame, as a view."""
    return document[len(FRAME.before) : len(document) - len(FRAME.after)]


def check_row(sample: Mapping[str, np.ndarray], row_length: int, vocab_size: int) -> None:
    """Whether a stored row is one that a run can train on.

    Args:
        sample: `tokens` and `lengths`, and `row`, by which the row is named.
        row_length: the most tokens that it may hold, and so any of its documents.
        vocab_size: of the tokenizer.

    Raises:
        DataError: its lengths and tokens contradict each other, it is too long, or an id is outside the vocabulary.
    """
    if complaint := row_complaint(sample, row_length, vocab_size):
        raise DataError(
            f"row {sample['row']} of the shards for rows of {row_length} has {complaint}; "
            "prepare the data again with `python data_prep CONFIG`"
        )


def row_complaint(sample: Mapping[str, np.ndarray], row_length: int, vocab_size: int) -> str | None:
    """What a stored row has that a run cannot train on, in words; None if there is nothing."""
    tokens, lengths = sample["tokens"], sample["lengths"]
    total, shortest = int(lengths.sum()), lengths.min(initial=1)
    if total != len(tokens) or shortest < 1:
        return f"{len(tokens)} tokens, but documents of {total}, the shortest of {shortest}"
    if len(tokens) > row_length:
        return f"{len(tokens)} tokens, {lengths.max()} of them in one document, and the recipe's rows {row_length}"
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocab_size:
        wrong = tokens[(tokens < 0) | (tokens >= vocab_size)][0]
        return f"token id {wrong}, and the tokenizer's ids are in [0, {vocab_size})"
    return None


def fingerprint(tokenizer_dir: str | Path) -> str:
    """Sixteen hex digits that two tokenizers share when they turn every text into the same ids.

    Taken over the content of `tokenizer.json`, whatever its layout. Truncation and padding are left out: they are
    what a caller last asked for, and transformers saves them along with the rest.

    Raises:
        DataError: no readable tokenizer there.
    """
    path = Path(tokenizer_dir) / "tokenizer.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; a Hugging Face fast tokenizer has one") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a tokenizer: {error}") from None
    content = {key: value for key, value in content.items() if key not in ("truncation", "padding")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Manifest:
    """What a directory of shards holds: one source, one split, one row length."""

    source: str
    split: str  # "train" or "validation"
    row_length: int  # the most tokens that a row may hold
    rows: int
    documents: int  # as they stand in rows: a long document counts once for each of its pieces
    tokens: int  # with those of the frames
    fill: float  # tokens / (rows * row_length)
    tokenizer: str  # its fingerprint

    def write(self, directory: str | Path) -> None:
        """Write `manifest.json` into `directory`."""
        (Path(directory) / MANIFEST).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, directory: str | Path) -> "Manifest":
        """Read `manifest.json` from `directory`.

        Raises:
            DataError: it is missing, broken, or lacks a key; the message names the file and what to do.
        """
        path = Path(directory) / MANIFEST
        remedy = "prepare the data again with `python data_prep CONFIG`"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{field.name: field.type(content[field.name]) for field in fields(cls)})
        except FileNotFoundError:
            raise DataError(f"{path}: no such file, so there are no finished shards here; {remedy}") from None
        except KeyError as error:
            raise DataError(f"{path}: key {error} is missing; {remedy}") from None
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{path}: broken ({error}); {remedy}") from None
