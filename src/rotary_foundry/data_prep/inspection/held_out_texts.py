"""Read held-out documents as text, so that any tokenizer can encode them.

The documents are decoded from the longest rows. A document that is longer than a row is stored in pieces, in order;
they are joined again. With a `stride`, pieces repeat text, so each piece is taken as a document instead. Labelled
tasks of a multi-task stage are left out, because their documents are windows, choices and joined parts, not texts.

The held-out data of a corpus may be large, and it is stored by parts of the input. So this module draws parts at
random, and documents in them, and reads only those parts of each source. It cannot take the first documents, because
the rows of a part begin with its longest documents.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rotary_foundry.data.rows import Manifest, content, decode_row
from rotary_foundry.data.task_file import TASK_FILE, Task
from rotary_foundry.data_prep.inspection.source_folders import Folder, Texts, local_folder
from rotary_foundry.data_prep.statistics import FILE, Statistics
from rotary_foundry.utils.errors import DataError

SPLIT = "validation"


@dataclass(frozen=True)
class Text:
    """A held-out document."""

    source: str
    id: str  # unique in the corpus
    text: str
    tokens: int  # content tokens, by the corpus' own tokenizer


def check_held_out(data: str | Path) -> None:
    """Check that a prepared corpus has held-out rows.

    Raises:
        DataError: it has none.
    """
    _folders(local_folder(data))


def held_out(data: str | Path, per_source: int, seed: int, at_least: int = 1) -> list[Text]:
    """Read some held-out documents of each source of a prepared corpus, the same ones for every model.

    Args:
        data: a folder that `python data_prep` wrote.
        per_source: the most documents from each source.
        seed: the seed of the draw, if a source has more.
        at_least: the fewest content tokens of a document, by the corpus' own tokenizer.

    Raises:
        DataError: the folder is missing, has no held-out rows or no document of this length, or a file is damaged.
    """
    found = [text for folder in _folders(local_folder(data)) for text in _of_source(folder, per_source, seed, at_least)]
    if not found:
        wanted = f" of at least {at_least:,} tokens" if at_least > 1 else ""
        raise DataError(
            f"{data}: no held-out document{wanted} found; raise `validation` when preparing, or ask for fewer tokens"
        )
    return found


def describe(data: str | Path, texts: list[Text]) -> dict:
    """Describe the data of a result: the digest of the corpus, and how much of it was used."""
    data = local_folder(data)
    corpus = Statistics.read(data).corpus if (data / FILE).is_file() else None
    return {
        "folder": str(data),
        "corpus": corpus,
        "split": SPLIT,
        "documents": {source: sum(text.source == source for text in texts) for source in _sources(texts)},
        "bytes": sum(len(text.text.encode()) for text in texts),
    }


def _sources(texts: list[Text]) -> list[str]:
    return list(dict.fromkeys(text.source for text in texts))


def _folders(data: Path) -> list[Path]:
    """Return the folder of each source's longest held-out rows.

    Raises:
        DataError: there are none.
    """
    if not data.is_dir():
        raise DataError(f"{data}: no such folder; `python data_prep` writes one, and data=FOLDER names it")
    found: dict[str, list[Path]] = defaultdict(list)
    for index in sorted(data.glob(f"*/[0-9]*/{SPLIT}/index.json")):
        found[index.parents[2].name].append(index.parent)
    if found and all(_is_labelled(data / name) for name in found):
        raise DataError(
            f"{data}: no held-out text there, only labelled tasks ({', '.join(found)}); give a folder of text"
        )
    found = {name: folders for name, folders in found.items() if not _is_labelled(data / name)}
    if not found:
        raise DataError(f"{data}: no held-out rows there; give a folder that `python data_prep` wrote, as data=FOLDER")
    return [max(folders, key=lambda folder: int(folder.parent.name)) for folders in found.values()]


def _is_labelled(source: Path) -> bool:
    return (source / TASK_FILE).is_file() and "targets" in Task.read(source).columns


def _of_source(path: Path, per_source: int, seed: int, at_least: int) -> list[Text]:
    from rotary_foundry.data_prep.inspection.shard_folder import ShardFolder  # imports Streaming, which takes seconds

    source = Manifest.read(path).source
    generator = np.random.default_rng(seed)
    folder = ShardFolder(path)
    wanted = _drawn(folder, folder.columns, per_source, generator, at_least)
    pieces: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
    for shard in folder.shards:
        if wanted is not None and shard.part not in wanted:
            continue
        for number, sample in enumerate(folder.rows(shard), shard.first_row):
            for place, document in enumerate(decode_row(sample)):
                key = _key(sample, shard.part, number, place, wanted is not None)
                if wanted is None or key[1] in wanted[shard.part or ""]:
                    pieces[key].append(document if "responses" in sample else content(document))
    joined = {key: np.concatenate(parts) for key, parts in pieces.items()}
    kept = [(key, tokens) for key, tokens in joined.items() if len(tokens) >= at_least]
    if len(kept) > per_source:  # without tables, all documents were read
        kept = [kept[index] for index in sorted(generator.choice(len(kept), per_source, replace=False))]
    texts = Texts(folder.tokenizer_folder).decode([np.concatenate([[0], tokens, [0]]) for _, tokens in kept])
    return [
        Text(source, f"{source}:{part}:{number}", text, len(tokens))
        for ((part, number), tokens), text in zip(kept, texts, strict=True)
    ]


def _drawn(
    folder: Folder, columns: set[str], per_source: int, generator: np.random.Generator, at_least: int
) -> dict[str, set[int]] | None:
    """Draw the numbers of some documents, by part; None for a corpus without tables or numbers, or with a stride."""
    parts = folder.tables()
    if not parts or "documents" not in columns or _stride(folder):
        return None
    candidates: list[tuple[str, int]] = []
    for index in generator.permutation(len(parts)):
        tokens = folder.documents(parts[index], ["tokens"])["tokens"].to_numpy()
        candidates += [(parts[index], int(number)) for number in np.flatnonzero(tokens >= at_least)]
        if len(candidates) >= per_source:
            break
    chosen = generator.permutation(len(candidates))[:per_source]
    drawn: dict[str, set[int]] = defaultdict(set)
    for index in chosen:
        part, number = candidates[index]
        drawn[part].add(number)
    return drawn


def _stride(folder: Folder) -> int:
    """Return the number of tokens that neighbouring pieces of a document share."""
    corpus = folder.path.parents[2]
    return Statistics.read(corpus).configuration.get("stride", 0) if (corpus / FILE).is_file() else 0


def _key(sample: dict, part: str | None, row: int, place: int, whole: bool) -> tuple[str, int]:
    """Return (part, number) of a piece's document, or (part and row, place) if each piece counts as a document."""
    if whole:
        return part or "", int(sample["documents"][place])
    return f"{part or ''}row{row}", place
