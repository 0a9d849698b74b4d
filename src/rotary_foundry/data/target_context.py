"""Count the context that predicted tokens see, and how often a stage draws each source.

Under the document mask a token attends only to its own document, so most tokens of a row of 32,768 may see only a few
hundred others (EXACT, arXiv 2605.10544, reports this share). The figures are exact sums over all stored rows, cuts of
the packer included. Preparation counts them into each manifest, and nothing else is read. Imports no torch.

A causal target at place i of its document, counted from 0, sees i tokens; place 0 is not predicted. So n - c targets of
a document of n tokens see at least c > 0 tokens. A masked token sees the rest of its document, n - 1 tokens.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from rotary_foundry.data.rows import FRAME, Manifest

SHORTEST = 128  # tokens; the first of the counted lengths. Each next one is twice as long


def counted_lengths(row_length: int) -> list[int]:
    """Return 128, 256, … below the row length. For each of these lengths, the longer documents are counted."""
    lengths = [SHORTEST]
    while lengths[-1] * 2 < row_length:
        lengths.append(lengths[-1] * 2)
    return [length for length in lengths if length < row_length]


def count_longer(lengths: np.ndarray, row_length: int) -> np.ndarray:
    """Count the documents of a row that are longer than each of `counted_lengths`, and their tokens.

    Args:
        lengths: integers `[documents]`: the tokens of each, its frame included.
        row_length: the most tokens of a row.

    Returns:
        int64 `[lengths, 2]`: documents, tokens.
    """
    longer = np.asarray(lengths, dtype=np.int64) > np.array(counted_lengths(row_length), dtype=np.int64)[:, None]
    return np.stack([longer.sum(axis=1), longer @ np.asarray(lengths, dtype=np.int64)], axis=1)


def count_responses(responses: np.ndarray, lengths: np.ndarray, row_length: int) -> np.ndarray:
    """Count the response tokens of a row that see at least 0, 128, 256, … tokens of their conversation before them.

    Args:
        responses: uint8 `[tokens]`: 1 for the tokens of responses. The first of a conversation is not predicted.
        lengths: integers `[documents]`: the tokens of each conversation.
        row_length: the most tokens of a row.

    Returns:
        int64 `[1 + lengths]`, where the lengths are those of `counted_lengths`.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    seen = np.arange(len(responses)) - np.repeat(lengths.cumsum() - lengths, lengths)
    bounds = np.array([1, *counted_lengths(row_length)], dtype=np.int64)
    return (seen[responses == 1] >= bounds[:, None]).sum(axis=1)


def targets_with_context(
    manifest: Manifest, at_least: int, causal: bool, document_mask: bool, responses: bool = False
) -> float:
    """Return how many targets in the rows of a manifest see at least `at_least` other tokens.

    Args:
        manifest: the manifest of the rows, with `longer`.
        at_least: 0, or one of `counted_lengths`.
        causal: whether a token sees only those before it. If not, every content token counts as a target.
        document_mask: whether a token sees only its own document. If not, rows count as full.
        responses: whether only the tokens of responses are targets.
    """
    if responses:
        if document_mask:
            return manifest.responses[str(at_least)]
        return manifest.responses["0"] * max(0.0, 1 - at_least / manifest.row_length)
    if causal and not document_mask:
        return (manifest.tokens - manifest.documents) * max(0.0, 1 - at_least / manifest.row_length)
    documents, tokens = (manifest.documents, manifest.tokens) if at_least == 0 else manifest.longer[str(at_least)]
    return tokens - documents * (max(1, at_least) if causal else FRAME.slots)


def context_shares(
    rows: Mapping[str, float],
    manifests: Mapping[str, Manifest],
    causal: bool,
    document_mask: bool,
    responses: bool = False,
) -> dict[int, float]:
    """Return the share of the targets of a mixture that see at least 0, 128, 256, … other tokens.

    Args:
        rows: rows drawn of each source, or each source's share of all rows.
        manifests: the manifests of these sources, for rows of one length.
        causal, document_mask, responses: as for `targets_with_context`.
    """
    (row_length,) = {manifest.row_length for manifest in manifests.values()}

    sees = causal, document_mask, responses

    def drawn(at_least: int) -> float:
        return sum(
            count * targets_with_context(manifests[source], at_least, *sees) / manifests[source].rows
            for source, count in rows.items()
        )

    return {at_least: drawn(at_least) / drawn(0) for at_least in (0, *counted_lengths(row_length))}


def rows_drawn(
    rows: int, mixture: Mapping[str, float] | None, manifests: Iterable[tuple[str, Manifest]]
) -> dict[str, float]:
    """Divide the rows of a stage over its sources: by the mixture, or, without one, in proportion to their rows."""
    weights = mixture or {source: manifest.rows for source, manifest in manifests}
    return {source: rows * weight / sum(weights.values()) for source, weight in weights.items()}
