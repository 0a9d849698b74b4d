"""Flat batches: rows collated without padding, split into microbatches, counted for Composer's clock.

A batch is a dict: `input_ids` and `labels` int64 [tokens], `cu_seqlens` int32 [documents + 1], `row_length` int, and
four lists with an entry a row: `row_tokens` and `row_documents` (so that a batch can be split between rows),
`row_sources` and `row_digests`. No document is longer than a row, so `row_length` serves as `max_seqlen`, one constant
for a compiler.
"""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import accumulate

import numpy as np
import torch

from rotary_foundry.data.rows import check_row
from rotary_foundry.objectives.objective import IGNORE_INDEX, Prepared

Batch = dict

# Composer divides by the predicted tokens of an update on all ranks, which may be none. Added to a whole number, this
# is lost in rounding.
ALMOST_NOTHING = 1e-30


def collate(
    samples: Sequence[dict],
    prepare: Callable[[dict], Prepared],
    row_length: int,
    vocab_size: int,
    document_mask: bool = True,
) -> Batch:
    """Prepare rows for an objective and join them to one flat batch.

    Args:
        samples: rows, each with `row` (its index in the data set), `tokens` and `lengths` (of its documents) as in MDS,
            and, from the training stream, `source`.
        prepare: makes input ids and labels of a sample.
        row_length: the slots that a row counts for, filled or not.
        vocab_size: of the tokenizer.
        document_mask: whether `cu_seqlens` are the bounds of documents; if not, they are those of rows.

    Raises:
        DataError: naming a row that does not fit `row_length` or the vocabulary.
    """
    for sample in samples:
        check_row(sample, row_length, vocab_size)
    prepared = [prepare(sample) for sample in samples]
    of_rows = [sample["lengths"] if document_mask else [len(sample["tokens"])] for sample in samples]
    lengths = np.concatenate(of_rows).astype(np.int32)
    return {
        "input_ids": torch.from_numpy(np.concatenate([input_ids for input_ids, _ in prepared])),
        "labels": torch.from_numpy(np.concatenate([labels for _, labels in prepared])),
        "cu_seqlens": torch.from_numpy(np.concatenate([[0], lengths.cumsum()]).astype(np.int32)),
        "row_length": row_length,
        "row_tokens": [len(sample["tokens"]) for sample in samples],
        "row_documents": [len(of_row) for of_row in of_rows],
        "row_sources": [sample.get("source") for sample in samples],
        "row_digests": [_digest(sample["row"], *arrays) for sample, arrays in zip(samples, prepared, strict=True)],
    }


def split(batch: Batch, microbatch_size: int) -> list[Batch]:
    """Cut a batch into microbatches of at most `microbatch_size` rows."""
    token_ends = [0, *accumulate(batch["row_tokens"])]
    document_ends = [0, *accumulate(batch["row_documents"])]
    microbatches = []
    for start in range(0, num_rows(batch), microbatch_size):
        end = min(start + microbatch_size, num_rows(batch))
        tokens = slice(token_ends[start], token_ends[end])
        cu_seqlens = batch["cu_seqlens"][document_ends[start] : document_ends[end] + 1]
        microbatches.append(
            {
                "input_ids": batch["input_ids"][tokens],
                "labels": batch["labels"][tokens],
                "cu_seqlens": cu_seqlens - cu_seqlens[0],
                "row_length": batch["row_length"],
                **{key: batch[key][start:end] for key in ("row_tokens", "row_documents", "row_sources", "row_digests")},
            }
        )
    return microbatches


def num_rows(batch: Batch) -> int:
    """Rows: Composer's samples."""
    return len(batch["row_tokens"])


def num_tokens(batch: Batch) -> dict[str, float]:
    """Return Composer's token counts: `total` are slots (the token clock), `loss_generating` the predicted tokens."""
    return {
        "total": num_rows(batch) * batch["row_length"],
        "loss_generating": int((batch["labels"] != IGNORE_INDEX).sum()) + ALMOST_NOTHING,
    }


def update_digest(row_digests: list[str]) -> str:
    """Return one hash of all rows and masks of an update, independent of their order."""
    return blake2b("".join(sorted(row_digests)).encode(), digest_size=8).hexdigest()


def _digest(row: int, input_ids: np.ndarray, labels: np.ndarray) -> str:
    digest = blake2b(int(row).to_bytes(8, "little"), digest_size=8)
    digest.update(input_ids.tobytes())
    digest.update(labels.tobytes())
    return digest.hexdigest()
