"""From readers to a corpus: near-empty and duplicate documents dropped, every document on its side of the split.

The side is decided by the hash of a document's text and by nothing else. So a document never changes sides when data
is added, moved between sources or read in another order, and a larger `validation` only adds to what was held out;
drawing a sample would give all of that up. The same hash finds exact duplicates, of which the first in reading order
is kept, across sources too.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from encoder_foundry.errors import DataError
from encoder_foundry.preparation.readers import READERS, Document, SourceConfig

NEAR_EMPTY = 32  # characters, blanks at the ends not counted: less than this has nothing to predict from

SPLITS = ("train", "validation")


@dataclass
class Source:
    """What was read from one source."""

    name: str
    documents: dict[str, list[Document]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    near_empty: int = 0  # documents dropped
    duplicates: int = 0  # documents dropped


@dataclass
class Corpus:
    """All sources, and a digest of all their texts in order."""

    sources: list[Source]
    digest: str


def gather(sources: Mapping[str, SourceConfig], validation: float) -> Corpus:
    """Read all sources, in order, into memory.

    Args:
        sources: by name.
        validation: the fraction of documents to hold out.

    Raises:
        DataError: a source that cannot be read, is empty, or has nothing on one side of the split.
    """
    seen: set[bytes] = set()
    digest = hashlib.sha256()
    gathered = []
    for name, config in sources.items():
        source = Source(name)
        digest.update(f"source {name}\n".encode())
        for document in _read(name, config):
            text_hash = hashlib.sha256(document.text.encode()).digest()
            if len(document.text.strip()) < NEAR_EMPTY:
                source.near_empty += 1
            elif text_hash in seen:
                source.duplicates += 1
            else:
                seen.add(text_hash)
                digest.update(text_hash)
                source.documents[side(text_hash, validation)].append(document)
        _check(source, validation)
        gathered.append(source)
    return Corpus(gathered, digest.hexdigest()[:16])


def _read(name: str, config: SourceConfig) -> Iterator[Document]:
    try:
        yield from READERS[config.reader].read(config)
    except OSError as error:
        raise DataError(f"source '{name}' cannot be read: {error}") from None


def side(text_hash: bytes, validation: float) -> str:
    """The split that a document with the SHA-256 `text_hash` belongs to."""
    return "validation" if int.from_bytes(text_hash[:8]) < validation * 2**64 else "train"


def _check(source: Source, validation: float) -> None:
    documents = {split: len(source.documents[split]) for split in SPLITS}
    if not any(documents.values()):
        dropped = f" ({source.near_empty} near-empty and {source.duplicates} duplicates dropped)"
        raise DataError(f"source '{source.name}' has no documents{dropped if source.near_empty else ''}")
    for split in SPLITS:
        if not documents[split]:
            raise DataError(
                f"source '{source.name}': none of its {sum(documents.values())} documents falls into the {split} split "
                f"at validation={validation}; give it more documents or change 'validation'"
            )
