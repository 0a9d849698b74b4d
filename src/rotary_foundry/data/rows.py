"""The format of stored rows and of the manifest beside the shards, shared by preparation and training.

A row is one MDS sample with three columns. `tokens` are its documents one after the other, each in its FRAME. `lengths`
are the tokens of each document; unlike boundaries, they stay valid when a row is cut or joined. `documents` are line
numbers in the parquet table of documents that preparation writes for the same part. Training reads only tokens and
lengths, so it also reads older shards without `documents`.

A corpus may have another column, `word_starts`, which is 1 where a token begins a word and 0 inside a word. Special
tokens are words of their own, and a document's first content token begins a word, so no word crosses a document's end.

Rows of conversations have a column `responses`, which is 1 for the tokens that the assistant says, and 0 for others. A
document is a conversation without a FRAME, because its chat template writes the special tokens.

Rows of a task's labelled examples have a column `targets` and some a column `allowed`, which `task_file.py` describes.

Tokens are uint16, which halves the data to read, or uint32 if the vocabulary has more than 65,536 ids. Only the
vocabulary decides, so every shard of a corpus has the same type. numpy silently wraps an id that is too large, so each
row is checked when it is encoded.

This module imports only numpy and the standard library, because the trainer reads manifests before it imports torch.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rotary_foundry.data.targets import targets_complaint
from rotary_foundry.data.task_file import Task
from rotary_foundry.utils.errors import DataError
from rotary_foundry.utils.json_text import parse_json, read_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MANIFEST = "manifest.json"
SHARD_HASH = "xxh64"  # the hash that detects damaged shards

# The special tokens of a tokenizer that is trained here, by their roles in transformers; they are BERT's.
SPECIAL_TOKENS = {
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "mask_token": "[MASK]",
}


@dataclass(frozen=True)
class Frame:
    """The special tokens before and after each document of a row, as token ids or as role names."""

    before: tuple[int | str, ...]
    after: tuple[int | str, ...]

    @property
    def slots(self) -> int:
        """The number of special tokens around each document."""
        return len(self.before) + len(self.after)

    def ids(self, special_ids: Mapping[str, int]) -> "Frame":
        """Return the frame with token ids in place of role names; see OF_DECODERS."""

        def of(roles: tuple[str, ...]) -> tuple[int, ...]:
            return tuple(special_ids[role if role in special_ids else OF_DECODERS[role]] for role in roles)

        return Frame(of(self.before), of(self.after))

    @classmethod
    def of(cls, tokenizer: "Tokenizer") -> "Frame":
        """Return the token ids that a tokenizer adds around a text; they may be none."""
        around = tuple(tokenizer.encode("").ids)
        return cls(around[: len(around) // 2], around[len(around) // 2 :])


FRAME = Frame(("cls_token",), ("sep_token",))  # around every document in a row: [CLS] … [SEP], in any spelling
OF_DECODERS = {"cls_token": "bos_token", "sep_token": "eos_token"}  # used for roles that a tokenizer does not have
SHORTEST = FRAME.slots + 1  # tokens of the shortest document: the frame and one content token
LONGEST = 2**31 - 1  # tokens of a row; kernels count them with 32 bits


def lies_inside(name: object) -> bool:
    """Return whether a file name in an index stays inside the folder; otherwise it could be anywhere on the disk."""
    return isinstance(name, str) and not name.startswith("/") and ".." not in name.split("/")


class Row(NamedTuple):
    """One row before it is stored."""

    tokens: np.ndarray  # integers [tokens]: the documents one after the other, each in its frame
    lengths: np.ndarray  # uint32 [documents]: tokens of each document
    documents: np.ndarray  # uint32 [documents]: number of each document in its part; pieces of one document share it
    word_starts: np.ndarray | None = None  # uint8 [tokens]: 1 where a token begins a word; None: unknown
    targets: np.ndarray | None = None  # float64 [targets × 4]: what to predict; None: not labelled
    allowed: np.ndarray | None = None  # uint8 [tokens]: 1 where a span may lie; None: there are no spans
    responses: np.ndarray | None = None  # uint8 [tokens]: 1 for the assistant's tokens; None: no conversations


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the integer type in which rows are stored, for a vocabulary of `vocab_size` ids."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


LABELLED = {"targets": "ndarray:float64", "allowed": "ndarray:uint8"}


def columns(
    dtype: np.dtype, word_starts: bool = False, task: Task | None = None, responses: bool = False
) -> dict[str, str]:
    """Return the MDS columns of rows, in the form that `streaming.MDSWriter` takes.

    Args:
        dtype: the type of the tokens.
        word_starts, responses: whether rows have this column.
        task: the task whose labelled examples the rows hold.
    """
    every = {"tokens": f"ndarray:{dtype.name}", "lengths": "ndarray:uint32", "documents": "ndarray:uint32"}
    labelled = {column: LABELLED[column] for column in task.columns} if task else {}
    of_tokens = {"word_starts": word_starts, "responses": responses}
    return every | {column: "ndarray:uint8" for column, there in of_tokens.items() if there} | labelled


def encode_row(row: Row, dtype: np.dtype, task: Task | None = None) -> dict[str, np.ndarray]:
    """Make an MDS sample from a row, with the tokens as `dtype`, and the columns of a task's kind.

    Raises:
        DataError: an id does not fit `dtype`, a document is empty, the arrays do not match, or a target does not fit
            the task.
    """
    tokens, lengths, documents, word_starts = row[:4]
    if not len(lengths) or not lengths.all():
        raise DataError("expected documents of at least one token, got an empty one")
    if lengths.sum() != len(tokens) or len(documents) != len(lengths):
        raise DataError(
            f"a row of {len(tokens)} tokens has {len(documents)} document numbers and {len(lengths)} lengths, "
            f"whose sum is {lengths.sum()}; expected equally many of both, and lengths that add up to the tokens"
        )
    if not np.can_cast(tokens.dtype, dtype):
        smallest, largest = int(tokens.min()), int(tokens.max())
        if smallest < 0 or largest > np.iinfo(dtype).max:
            wrong = smallest if smallest < 0 else largest
            raise DataError(
                f"token id {wrong} does not fit {dtype.name} (0 to {np.iinfo(dtype).max}): "
                "the tokenizer gives ids beyond the vocabulary size for which the type was chosen"
            )
    sample = {"tokens": tokens.astype(dtype), "lengths": lengths, "documents": documents}
    if task is not None:
        sample |= {column: getattr(row, column) for column in task.columns}
        if complaint := targets_complaint(sample, task):
            raise DataError(f"a row has {complaint}")
    if row.responses is not None:
        if complaint := responses_complaint(row.responses, lengths):
            raise DataError(f"a row has {complaint}")
        sample["responses"] = row.responses
    if word_starts is None:
        return sample
    if complaint := word_starts_complaint(word_starts, lengths):
        raise DataError(f"a row has {complaint}")
    return sample | {"word_starts": word_starts}


def decode_row(sample: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Split a stored row into its documents, in order: views `[tokens]` in the stored type."""
    return np.split(sample["tokens"], np.cumsum(sample["lengths"])[:-1])


def content(document: np.ndarray) -> np.ndarray:
    """Return a document of a row without its frame, as a view."""
    return document[len(FRAME.before) : len(document) - len(FRAME.after)]


def check_row(sample: Mapping[str, np.ndarray], row_length: int, vocab_size: int, task: Task | None = None) -> None:
    """Check that a run can train on a stored row.

    Args:
        sample: `tokens`, `lengths`, `row` (its number, for the error) and, if there are such columns, `word_starts`,
            `responses`, `targets` and `allowed`.
        row_length: the most tokens of the row, and so of any of its documents.
        vocab_size: vocabulary size of the tokenizer.
        task: the task of the row; None: its targets are not checked.

    Raises:
        DataError: its columns contradict each other, it is too long, an id is outside the vocabulary, or a target does
            not fit the task.
    """
    if complaint := row_complaint(sample, row_length, vocab_size, task):
        raise DataError(
            f"row {sample['row']} of the shards for rows of {row_length} has {complaint}; "
            "prepare the data again with `python data_prep CONFIG`"
        )


def row_complaint(
    sample: Mapping[str, np.ndarray], row_length: int, vocab_size: int, task: Task | None = None
) -> str | None:
    """Return why a run cannot train on a stored row; None if it can."""
    tokens, lengths = sample["tokens"], sample["lengths"]
    total, shortest = int(lengths.sum()), lengths.min(initial=1)
    if total != len(tokens) or shortest < 1:
        return f"{len(tokens)} tokens, but documents of {total}, the shortest of {shortest}"
    if len(tokens) > row_length:
        return f"{len(tokens)} tokens, {lengths.max()} of them in one document, but the recipe's rows hold {row_length}"
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocab_size:
        wrong = tokens[(tokens < 0) | (tokens >= vocab_size)][0]
        return f"token id {wrong}, but the tokenizer's ids are in [0, {vocab_size})"
    if task is not None and (complaint := targets_complaint(sample, task)):
        return complaint
    if "responses" in sample and (complaint := responses_complaint(sample["responses"], lengths)):
        return complaint
    return word_starts_complaint(sample["word_starts"], lengths) if "word_starts" in sample else None


def word_starts_complaint(word_starts: np.ndarray, lengths: np.ndarray) -> str | None:
    """Return why a column `word_starts` does not fit documents of these lengths; None if it fits."""
    total = int(lengths.sum())
    if len(word_starts) != total:
        return f"{len(word_starts)} word_starts for its {total} tokens"
    if word_starts.max(initial=0) > 1:
        return f"a word_starts of {word_starts.max()}, which has to be 0 or 1"
    starts = lengths.cumsum() - lengths
    if not word_starts[starts.astype(np.int64)].all():
        return "a document whose first token does not begin a word"
    return None


def responses_complaint(responses: np.ndarray, lengths: np.ndarray) -> str | None:
    """Return why a column `responses` does not fit documents of these lengths; None if it fits."""
    total = int(lengths.sum())
    if len(responses) != total:
        return f"{len(responses)} responses for its {total} tokens"
    if responses.max(initial=0) > 1:
        return f"a value of {responses.max()} in responses, which has to be 0 or 1"
    starts = (lengths.cumsum() - lengths).astype(np.int64)
    predicted = responses.copy()
    predicted[starts] = 0  # a document's first token is not predicted
    if not np.maximum.reduceat(predicted, starts).all():
        return "a conversation in which the assistant says nothing"
    return None


def fingerprint(tokenizer_dir: str | Path) -> str:
    """Return sixteen hex digits that are equal for two tokenizers if they encode every text to the same ids.

    They are a hash of the content of `tokenizer.json`, independent of its layout. Truncation and padding are left out,
    because transformers saves the settings of the last call there.

    Raises:
        DataError: the directory has no readable tokenizer.
    """
    path = Path(tokenizer_dir) / "tokenizer.json"
    if not path.exists():
        raise DataError(f"{path}: no such file; a Hugging Face fast tokenizer has one")
    content = read_object(path)
    content = {key: value for key, value in content.items() if key not in ("truncation", "padding")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Manifest:
    """The content of a directory of shards: one source, one split, one row length."""

    source: str
    split: str  # "train" or "validation"
    row_length: int  # the most tokens that a row may hold
    rows: int
    documents: int  # as in the rows: a long document counts once for each of its pieces
    tokens: int  # frames included
    fill: float  # tokens / (rows * row_length)
    tokenizer: str  # its fingerprint
    longer: dict | None = None  # by length: [documents, tokens] of longer documents (target_context.py); None: unknown
    responses: dict | None = None  # for conversations, by number n: response tokens after at least n others

    def write(self, directory: str | Path) -> None:
        """Write `manifest.json` into `directory`."""
        content = asdict(self)
        if self.responses is None:
            del content["responses"]
        (Path(directory) / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, directory: str | Path) -> "Manifest":
        """Read `manifest.json` from `directory`.

        Raises:
            DataError: the file is missing or broken, or lacks a key; the message names the file and what to do.
        """
        path = Path(directory) / MANIFEST
        remedy = "prepare the data again with `python data_prep CONFIG`"
        try:
            content = parse_json(path.read_text(encoding="utf-8"))
            required = {field.name: field.type(content[field.name]) for field in fields(cls)[:-2]}
            counted = {key: content.get(key) for key in ("longer", "responses")}
            return cls(**required, **{key: None if value is None else dict(value) for key, value in counted.items()})
        except FileNotFoundError:
            raise DataError(f"{path}: no such file, so the folder has no finished shards; {remedy}") from None
        except KeyError as error:
            raise DataError(f"{path}: key {error} is missing; {remedy}") from None
        except (OSError, ValueError, TypeError, OverflowError) as error:
            raise DataError(f"{path}: broken ({error}); {remedy}") from None
