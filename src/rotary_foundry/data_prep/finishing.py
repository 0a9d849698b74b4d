"""The last stage: join the parts into one prepared folder and move it to `out`."""

import errno
import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from rotary_foundry.data.rows import Manifest, fingerprint
from rotary_foundry.data.target_context import counted_lengths
from rotary_foundry.data_prep.conversations.conversation_counts import (
    ConversationCounts,
    ConversationStatistics,
    check_conversations,
)
from rotary_foundry.data_prep.encoding import CorpusTokenizer
from rotary_foundry.data_prep.length_bands import band_names, check_bands
from rotary_foundry.data_prep.statistics import (
    FILE,
    Counts,
    SourceStatistics,
    Statistics,
    rows_and_fill,
    unigram_entropy,
)
from rotary_foundry.data_prep.task_rows import LABELLED, finish_tasks
from rotary_foundry.data_prep.work import SPLITS, Work
from rotary_foundry.utils import object_store
from rotary_foundry.utils.errors import DataError

log = logging.getLogger(__name__)


def finish(work: Work, made_of: dict) -> None:
    """Write indices, manifests and statistics, and move the folder to `out`.

    Args:
        work: the work folder, with every other stage finished.
        made_of: the settings to write into the statistics.
    """
    tokenizer, made = CorpusTokenizer(work.whole / "tokenizer"), fingerprint(work.whole / "tokenizer")
    read = work.read_json("read")
    frequencies = [np.load(path) for path in sorted((work.folder / "written").glob("*.npy"))]
    _write_manifests(work, made)
    statistics = Statistics(
        configuration=made_of,
        corpus=sha256("".join(part["digest"] for part in read).encode()).hexdigest()[:16],
        tokenizer=made,
        vocab_size=tokenizer.vocab_size,
        unigram_entropy=unigram_entropy(sum(frequencies)) if frequencies else None,
        sources=dict(each for source in work.config.sources for each in _of_source(work, source)),
        tasks=finish_tasks(work),
        conversations=_conversations(work),
    )
    _tell_unknown(work)
    work.write_bad_input(work.whole)
    if object_store.is_remote(work.config.out):
        object_store.upload(work.whole, work.config.out)
        _see_that_all_is_there(work)
        object_store.write_text(f"{work.config.out}/{FILE}", statistics.text())  # last: it marks a finished folder
    else:
        statistics.write(work.whole)
        _move(work.whole, Path(work.config.out))


def _tell_unknown(work: Work) -> None:
    """Say how many tokens of each source stand for text that the tokenizer does not know."""
    unknown, tokens = Counter(), Counter()
    names = [task.source for task in work.tasks] + list(work.config.sources)
    for rank, written in work.numbered_json("written"):
        unknown[names[rank]] += written.get("unknown", 0)
        tokens[names[rank]] += sum(part["tokens"] for part in written["bands"])
    for name, count in (+unknown).items():
        log.info(f"{name}: {count:,} of {tokens[name]:,} tokens stand for text that the tokenizer does not know")


def _move(folder: Path, out: Path) -> None:
    """Rename the folder to `out`; if it is on another disk, copy it to a hidden folder beside `out` first."""
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(folder, out)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        arriving = out.with_name(f".{out.name}-arriving")
        object_store.copy_folder(folder, arriving)
        os.rename(arriving, out)


def _see_that_all_is_there(work: Work) -> None:
    """Compare the shards in the indices with the files in the store.

    Raises:
        DataError: a shard is missing in the store or has another size.
    """
    there = object_store.sizes(work.config.out)
    for index in sorted(work.whole.glob("*/*/*/index.json")):
        folder = index.parent.relative_to(work.whole).as_posix()
        for shard in json.loads(index.read_text(encoding="utf-8"))["shards"]:
            name = f"{folder}/{shard['zip_data']['basename']}"
            if there.get(name) != shard["zip_data"]["bytes"]:
                raise DataError(
                    f"{work.config.out}/{name}: missing in the store or of another size than written; delete "
                    f"{work.config.out} and {work.folder}, and start again"
                )


def _of_source(work: Work, source: str) -> Iterator[tuple[str, SourceStatistics]]:
    """Yield the name and counts of a source, or those of each of its bands.

    Documents that were left out, and special tokens in texts, belong to no band. They are counted with the first band,
    which holds the shortest documents.

    Raises:
        DataError: a band of the source has no document.
    """
    bounds = work.config.sources[source].length_bands
    names = band_names(source, bounds)
    written = [tasks for tasks in work.read_json("written") if tasks["bands"][0]["source"] == names[0]]
    parts = {name: [tasks["bands"][band] for tasks in written] for band, name in enumerate(names)}
    left_out = work.left_out(source)
    left_out["held out and not wanted"] += sum(tasks["left_out"] for tasks in written)
    for reason, key in (("bad input", "bad"), ("too long", "too_long")):
        left_out[reason] += sum(len(tasks.get(key, ())) for tasks in written)
    if work.config.sources[source].conversations is not None:
        each = {split: sum(_documents(of, split) for of in parts.values()) for split in SPLITS}
        check_conversations(source, each, [line for tasks in written for line in tasks["bad"] + tasks["too_long"]])
    if bounds:
        check_bands(source, bounds, {split: [_documents(of, split) for of in parts.values()] for split in SPLITS})
    special = sum(tasks.get("special_tokens", 0) for tasks in written)
    for name in names:
        counts = {split: _counts(work, parts[name], split) for split in SPLITS}
        yield name, SourceStatistics(dict(+left_out), **counts, special_tokens=special)
        left_out.clear()
        special = 0


def _conversations(work: Work) -> dict[str, ConversationStatistics]:
    """Return the statistics of every source, or band of one, that holds conversations."""
    found: dict[str, list[dict]] = defaultdict(list)
    for tasks in work.read_json("written"):
        for part in tasks["bands"]:
            if "conversations" in part:
                found[part["source"]].append(part)
    return {
        name: ConversationStatistics(
            **{
                split: _conversation_counts(work, name, [part for part in parts if part["split"] == split], split)
                for split in SPLITS
            }
        )
        for name, parts in found.items()
    }


def _conversation_counts(work: Work, name: str, parts: list[dict], split: str) -> ConversationCounts:
    tables = [
        pq.read_table(work.whole / folder / "documents" / split / f"{part}.parquet", columns=["tokens", "responses"])
        for folder, part in (work.place(name, part["number"]) for part in parts)
    ]
    tokens, responses = (
        np.concatenate([table[column].to_numpy() for table in tables]) for column in ("tokens", "responses")
    )
    missing = {key: Counter() for key in ("left_out", "cut")}
    for part in parts:
        for key, counts in part["conversations"].items():
            missing[key].update(counts)
    return ConversationCounts.of(tokens, responses, **{key: dict(counts) for key, counts in missing.items()})


def _documents(parts: list[dict], split: str) -> int:
    return sum(part["documents"] for part in parts if part["split"] == split)


def _counts(work: Work, of_source: list[dict], split: str) -> Counts:
    parts = [part for part in of_source if part["split"] == split]
    rows = {length: rows_and_fill(parts, length) for length in work.config.row_lengths}
    return Counts(
        **{key: sum(part[key] for part in parts) for key in ("documents", "bytes", "tokens")},
        rows={str(length): number for length, (number, _) in rows.items()},
        fill={str(length): fill for length, (_, fill) in rows.items()},
    )


def _write_manifests(work: Work, tokenizer: str) -> None:
    """Write the index and manifest of every folder of rows, which holds the parts of a source, a band or a task."""
    folders = defaultdict(list)
    written = [part for tasks in work.read_json("written") for part in tasks["bands"]]
    for part in written + [part for task in work.read_json(LABELLED) for part in task["parts"]]:
        name, _ = work.place(part["source"], part["number"])
        folders[name, part["split"]].append(part)
    for (name, split), parts in folders.items():
        for row_length in work.config.row_lengths:
            _join_parts(work, name, split, parts, row_length, tokenizer)


def _join_parts(work: Work, name: str, split: str, parts: list[dict], row_length: int, tokenizer: str) -> None:
    folder = work.whole / name / str(row_length) / split
    shards = [shard for part in parts for shard in _shards(folder, work.place(part["source"], part["number"])[1])]
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": shards}), encoding="utf-8")
    counts, lengths = Counter(), counted_lengths(row_length)
    longer, responses = np.zeros((len(lengths), 2), dtype=np.int64), 0
    for part in parts:
        of_part = dict(part["rows"][str(row_length)])
        longer += np.array(of_part.pop("longer"), dtype=np.int64).reshape(longer.shape)
        responses = responses + np.array(of_part.pop("responses", 0))
        counts.update(of_part)
    if given_up := counts.pop("given_up", 0):
        log.info(f"{name}: left out {given_up:,} tokens, in last rows of {row_length:,} that could not be filled")
    _, fill = rows_and_fill(parts, row_length)
    counted = {"longer": dict(zip(map(str, lengths), longer.tolist(), strict=True))}
    if np.ndim(responses):
        counted["responses"] = dict(zip(map(str, (0, *lengths)), responses.tolist(), strict=True))
    manifest = Manifest(name, split, row_length, **counts, fill=fill, tokenizer=tokenizer, **counted)
    manifest.write(folder)


def _shards(folder: Path, part: str) -> Iterator[dict]:
    """Yield the entries of a part's index, with the part's folder added to the file names."""
    for shard in json.loads((folder / part / "index.json").read_text(encoding="utf-8"))["shards"]:
        for key in ("raw_data", "zip_data"):
            shard[key]["basename"] = f"{part}/{shard[key]['basename']}"
        yield shard
