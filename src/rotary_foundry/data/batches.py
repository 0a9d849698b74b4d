"""Make flat batches: collate rows without padding, split them into microbatches, and count for Composer's clock.

A batch is a dict: `input_ids` and `labels` int64 [tokens], `predicted` int64 [predicted tokens] (the places of labels
other than IGNORE_INDEX), `cu_seqlens` int32 [documents + 1], `lengths` (a list: the tokens of each document),
`row_length` int, `most_rows` int, and six lists with an entry per row: `row_tokens`, `row_documents`, `row_labels` (a
batch is split between rows by these three), `row_sources`, `row_digests`, and `row_predicted`, the number of
predictions that the loss counts. No document is longer than a row, so `row_length` serves as `max_seqlen` and is
constant for a compiler. What depends on values is computed here, on the host, so no forward pass waits for a GPU.

The batches of two ranks may differ by one row, and `most_rows` is the number of the larger one. All ranks make as many
microbatches as that needs, because they gather parameters together. The last one may predict nothing.

A batch with weighted labels also has `weights` float32 [tokens], `scored` bool [tokens], and `row_scored`, the number
of scored tokens per row. `row_predicted` is then the sum of the weights of a row.

A batch of a multi-task stage also has `targets` float64 [targets, 4], in which documents are numbered over the whole
batch, `allowed` uint8 [tokens], and `row_targets`. `targets` is a NumPy array on the host (models/task_heads.py).
The rows are sorted by task, and no microbatch has rows of two tasks. All ranks have the same number of rows of each
task, so they work on the same task at the same time.

Rows are not quite full, and the last microbatch of an update may have fewer rows. If layers are compiled, the model
fills each microbatch directly before its forward pass (`filled`), so that all have the same number of tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from rotary_foundry.data.rows import check_row
from rotary_foundry.objectives.objective import IGNORE_INDEX, Prepared

Batch = dict

# Composer divides by the predicted tokens of an update on all ranks, which may be none. This is added to avoid a
# division by 0; rounding removes it from any other whole number.
ALMOST_NOTHING = 1e-30
OF_ROWS = (
    "row_tokens",
    "row_documents",
    "row_labels",
    "row_sources",
    "row_digests",
    "row_predicted",
    "row_targets",
    "row_scored",
)
OF_TOKENS = ("input_ids", "labels", "weights", "scored", "allowed")
NO_TARGETS = np.empty((0, 4))


def collate(
    samples: Sequence[dict],
    prepare: Callable[[dict], Prepared],
    row_length: int,
    vocab_size: int,
    document_mask: bool = True,
    by_task: bool = False,
    most_rows: int | None = None,
) -> Batch:
    """Prepare rows for an objective and join them into one flat batch.

    Args:
        samples: rows, each with `row` (its index in the data set), `tokens` and `lengths` (of its documents) as in MDS,
            and, from the training stream, `source`.
        prepare: makes input ids and labels from a sample.
        row_length: slots per row, filled or not.
        vocab_size: the vocabulary size of the tokenizer.
        document_mask: whether `cu_seqlens` are the bounds of documents; if not, they are the bounds of rows.
        by_task: whether the batch belongs to a multi-task stage, where a source is a task.
        most_rows: the most rows that the batch of any rank has; None: as many as this one.

    Raises:
        DataError: a row does not fit `row_length` or the vocabulary; the message names the row.
    """
    for sample in samples:
        check_row(sample, row_length, vocab_size)
    if by_task:
        samples = sorted(samples, key=lambda sample: sample["source"])
    prepared = [prepare(sample) for sample in samples]
    of_rows = [sample["lengths"] if document_mask else [len(sample["tokens"])] for sample in samples]
    lengths = np.concatenate(of_rows).astype(np.int32)
    labels = np.concatenate([labels for _, labels, *_ in prepared])
    batch = {
        "input_ids": torch.from_numpy(np.concatenate([input_ids for input_ids, *_ in prepared])),
        "labels": torch.from_numpy(labels),
        "predicted": torch.from_numpy(np.flatnonzero(labels != IGNORE_INDEX)),
        "cu_seqlens": torch.from_numpy(np.concatenate([[0], lengths.cumsum()]).astype(np.int32)),
        "lengths": lengths.tolist(),
        "row_length": row_length,
        "most_rows": most_rows or len(samples),
        "row_tokens": [len(sample["tokens"]) for sample in samples],
        "row_documents": [len(of_row) for of_row in of_rows],
        "row_labels": [int((labels != IGNORE_INDEX).sum()) for _, labels, *_ in prepared],
        "row_sources": [sample.get("source") for sample in samples],
        "row_digests": [_digest(sample["row"], *arrays) for sample, arrays in zip(samples, prepared, strict=True)],
        "row_predicted": [_predicted(*arrays) if by_task else _counted(*arrays) for arrays in prepared],
    }
    if by_task:
        return batch | _targets(prepared, batch["row_documents"])
    return batch | _weights(prepared) if len(prepared[0]) > 2 else batch


def _counted(_: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None, *__: np.ndarray) -> float:
    """Count the predicted tokens of a row, or add up their weights."""
    predicted = labels != IGNORE_INDEX
    return int(predicted.sum()) if weights is None else float(weights[predicted].sum(dtype=np.float64))


def _weights(prepared: Sequence[Prepared]) -> Batch:
    """Join the weights of labels, and the marks of the labels that the accuracy counts."""
    weights, scored = ([arrays[place] for arrays in prepared] for place in (2, 3))
    return {
        "weights": torch.from_numpy(np.concatenate(weights)),
        "scored": torch.from_numpy(np.concatenate(scored)),
        "row_scored": [int(of_row.sum()) for of_row in scored],
    }


def _predicted(input_ids: np.ndarray, labels: np.ndarray, targets: np.ndarray = NO_TARGETS, *_: np.ndarray) -> int:
    """Count the predictions of a row that the loss counts: examples or predicted tokens."""
    return len(np.unique(targets[:, 0])) + int((labels != IGNORE_INDEX).sum())


def _targets(prepared: Sequence[Prepared], row_documents: Sequence[int]) -> Batch:
    """Join the targets of rows, with documents numbered over the batch, and the marks of where spans may lie."""
    targets, allowed = [], []
    for (input_ids, _, *of_task), documents in zip(prepared, accumulate([0, *row_documents[:-1]]), strict=True):
        of_row, may_be_in_span = of_task or (NO_TARGETS, np.zeros(len(input_ids), np.uint8))
        targets.append(of_row + np.array([documents, 0, 0, 0]))
        allowed.append(may_be_in_span)
    return {
        "targets": np.concatenate(targets),
        "allowed": torch.from_numpy(np.concatenate(allowed)),
        "row_targets": list(map(len, targets)),
    }


def split(batch: Batch, microbatch_size: int) -> list[Batch]:
    """Cut a batch into microbatches of at most `microbatch_size` rows; in a multi-task stage, each of one task."""
    token_ends = [0, *accumulate(batch["row_tokens"])]
    document_ends = [0, *accumulate(batch["row_documents"])]
    label_ends = [0, *accumulate(batch["row_labels"])]
    target_ends = [0, *accumulate(batch.get("row_targets", ()))]
    microbatches = []
    for start, end in _cuts(batch, microbatch_size):
        if start == end:
            microbatches.append(_of_nothing(batch))
            continue
        tokens = slice(token_ends[start], token_ends[end])
        cu_seqlens = batch["cu_seqlens"][document_ends[start] : document_ends[end] + 1]
        microbatch = {
            **{key: batch[key][tokens] for key in OF_TOKENS if key in batch},
            "predicted": batch["predicted"][label_ends[start] : label_ends[end]] - token_ends[start],
            "cu_seqlens": cu_seqlens - cu_seqlens[0],
            "lengths": batch["lengths"][document_ends[start] : document_ends[end]],
            "row_length": batch["row_length"],
            "most_rows": end - start,
            **{key: batch[key][start:end] for key in OF_ROWS if key in batch},
        }
        if "targets" in batch:
            targets = batch["targets"][target_ends[start] : target_ends[end]]
            microbatch["targets"] = targets - np.array([document_ends[start], 0, 0, 0])
        microbatches.append(microbatch)
    return microbatches


def _cuts(batch: Batch, microbatch_size: int) -> Iterator[tuple[int, int]]:
    """Yield the first row and the end of each microbatch; the last may be empty."""
    start, sources = 0, batch["row_sources"]
    while start < len(sources):
        end = min(start + microbatch_size, len(sources))
        if "targets" in batch:
            end = next((row for row in range(start, end) if sources[row] != sources[start]), end)
        yield start, end
        start = end
    if batch["most_rows"] > len(sources) and len(sources) % microbatch_size == 0:
        yield start, start


def _of_nothing(batch: Batch) -> Batch:
    """Return the first row of a batch as a microbatch in which nothing is predicted and which counts as no row."""
    (first, *_) = split({**batch, "most_rows": len(batch["row_tokens"])}, 1)
    return {
        **first,
        "labels": torch.full_like(first["labels"], IGNORE_INDEX),
        "predicted": first["predicted"][:0],
        **{key: [] for key in OF_ROWS if key in first},
    }


def filled(batch: Batch, rows: int) -> Batch:
    """Fill a microbatch to the slots of `rows` rows with a dummy document, or several if more than a row is missing.

    Its tokens are not predicted, and no other token attends to them. The counts of the batch do not change.

    Raises:
        RuntimeError: the microbatch has more tokens.
    """
    row_length, tokens, slots = batch["row_length"], len(batch["input_ids"]), rows * batch["row_length"]
    # made on the device of the batch, from numbers that the host has, so that the host does not wait for a GPU
    ends = torch.arange(tokens + row_length, slots + row_length, row_length, device=batch["cu_seqlens"].device)
    return {
        **batch,
        "input_ids": F.pad(batch["input_ids"], (0, slots - tokens)),
        "labels": F.pad(batch["labels"], (0, slots - tokens), value=IGNORE_INDEX),
        "cu_seqlens": torch.cat((batch["cu_seqlens"], ends.clamp_(max=slots).int())),
    }


def count_microbatches(batch: Batch, microbatch_size: int) -> int:
    """Return the number of microbatches that `split` cuts a batch into."""
    return sum(1 for _ in _cuts(batch, microbatch_size))


def num_rows(batch: Batch) -> int:
    """Return the number of rows, which are Composer's samples."""
    return len(batch["row_tokens"])


def num_tokens(batch: Batch) -> dict[str, float]:
    """Return Composer's token counts: `total` slots (the token clock), and `loss_generating`, which the loss counts."""
    return {
        "total": num_rows(batch) * batch["row_length"],
        "loss_generating": sum(batch["row_predicted"]) + ALMOST_NOTHING,
    }


def update_digest(row_digests: Sequence[str]) -> str:
    """Return one hash of all rows and masks of an update, independent of their order."""
    return digest_of_numbers(np.array([int(digest, 16) for digest in row_digests], np.uint64))


def digest_of_numbers(row_digests: NDArray[np.uint64]) -> str:
    """Return the same hash as `update_digest` from row digests given as numbers."""
    in_order = np.sort(row_digests).astype(">u8").tobytes().hex()
    return blake2b(in_order.encode(), digest_size=8).hexdigest()


def _digest(row: int, *arrays: np.ndarray) -> str:
    digest = blake2b(int(row).to_bytes(8, "little"), digest_size=8)
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()
