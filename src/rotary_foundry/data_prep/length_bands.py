"""Split a source by the length of its documents: each band of lengths becomes a source that a mixture can name.

    books: {reader: text, path: books, length_bands: [4096, 32768]}

makes `books_below_4096`, `books_4096_to_32768` and `books_from_32768`. A document of exactly 4,096 tokens is in the
second one. Lengths are content tokens, as `data stats` counts them, so a document is put into its band when it is
tokenised. Reading, deduplication and the choice of held-out documents apply to the source as a whole.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from rotary_foundry.utils.errors import DataError


def band_names(source: str, bounds: Sequence[int] | None) -> list[str]:
    """Return the names of a source's bands, shortest documents first; the source's own name if there are no bounds."""
    if not bounds:
        return [source]
    between = [f"{source}_{low}_to_{high}" for low, high in pairwise(bounds)]
    return [f"{source}_below_{bounds[0]}", *between, f"{source}_from_{bounds[-1]}"]


def bands_of(lengths: np.ndarray, bounds: Sequence[int] | None) -> np.ndarray:
    """Return the index of each document's band, int64 `[documents]`, from its content tokens, `[documents]`."""
    return np.searchsorted(np.asarray(bounds or (), dtype=np.int64), lengths, side="right")


def bounds_complaint(bounds: Sequence[int]) -> str | None:
    """Return what is wrong with the value of `length_bands`; None if nothing is."""
    if not bounds:
        return "expected at least one length in tokens, as in [4096, 32768], got none"
    if min(bounds) < 1:
        return f"expected lengths of at least 1 token, got {min(bounds)}"
    if any(high <= low for low, high in pairwise(bounds)):
        return f"expected lengths in ascending order, got {list(bounds)}"
    return None


def check_bands(source: str, bounds: Sequence[int], documents: dict[str, Sequence[int]]) -> None:
    """Check that every band of a source has documents of each split.

    Args:
        source: the name of the source.
        bounds: its `length_bands`.
        documents: by split, the number of documents in each band.

    Raises:
        DataError: a band has no documents.
    """
    for split, counts in documents.items():
        for band, (name, count) in enumerate(zip(band_names(source, bounds), counts, strict=True)):
            if not count:
                there = ", ".join(_counts(source, bounds, counts))
                more = " or hold out more documents with validation" if split == "validation" else ""
                raise DataError(
                    f"sources.{source}.length_bands: no document of the {split} split has {_wording(bounds, band)}, so "
                    f"{name} would be empty (documents there: {there}); choose other lengths{more}"
                )


def _counts(source: str, bounds: Sequence[int], counts: Sequence[int]) -> Iterator[str]:
    for name, count in zip(band_names(source, bounds), counts, strict=True):
        yield f"{name} {count:,}"


def _wording(bounds: Sequence[int], band: int) -> str:
    if band == 0:
        return f"fewer than {bounds[0]:,} tokens"
    if band == len(bounds):
        return f"{bounds[-1]:,} tokens or more"
    return f"{bounds[band - 1]:,} to {bounds[band] - 1:,} tokens"
