"""No row of a damaged shard is ever read; what can be had again is, and the rest is refused by name."""

import json
import logging
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from streaming import MDSWriter
from torch.utils.data import DataLoader

from rotary_foundry.data import checked_shards
from rotary_foundry.data.checked_shards import CheckedShards
from rotary_foundry.data.rows import Row, columns, encode_row, token_dtype
from rotary_foundry.data.stream import Draw, TrainingStream, row_streams
from rotary_foundry.data_prep.inspection.shard_folder import ShardFolder
from rotary_foundry.utils.errors import DataError

from .conftest import ROW_LENGTH, ROWS, write_rows

EPOCH = sum(ROWS.values())
REMEDY = r"restore it from a copy, or prepare the data again with `python data_prep CONFIG`"


@pytest.fixture
def corpus(row_folder, tmp_path) -> Path:
    """Shards of which none has been decompressed yet."""
    return shutil.copytree(row_folder, tmp_path / "corpus", ignore=shutil.ignore_patterns("*.mds"))


def stream(local: Path, remote: Path | None = None, epochs: int = 1, cache_limit: str | None = None) -> TrainingStream:
    draw = Draw(17, 0, None, 0, updates=epochs * EPOCH // 19, global_batch_size=19)
    return TrainingStream(list(ROWS), local, remote and str(remote), ROW_LENGTH, 1 << 18, draw, cache_limit)


def drawn(local: Path, remote: Path | None = None, num_workers: int = 0, epochs: int = 1) -> list[int]:
    """The rows that the real loader draws, in order."""
    rows = stream(local, remote, epochs)
    loader = DataLoader(rows, batch_size=19, num_workers=num_workers, collate_fn=list, timeout=60 * (num_workers > 0))
    return [(sample["row"], sample["tokens"].tolist()) for batch in loader for sample in batch]


def shard(root: Path, suffix: str = ".zstd", split: str = "train") -> Path:
    return root / f"docs/{ROW_LENGTH}/{split}/shard.00001.mds{suffix}"


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


FAULTS = [
    (flip_a_byte, "damaged: its xxh64 hash differs from the one in the index"),
    (cut_short, r"truncated: expected [\d_]+ bytes, got [\d_]+"),
    (Path.unlink, "no such file"),
]


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize(("spoil", "says"), FAULTS)
def test_a_shard_that_is_not_what_was_written_is_refused_by_name(corpus, num_workers, spoil, says):
    spoil(shard(corpus))
    with pytest.raises(DataError, match=rf"^{shard(corpus)}: {says}; {REMEDY}$"):
        drawn(corpus, num_workers=num_workers)


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_shards_with_a_column_that_would_be_unpickled_are_refused_and_it_is_not(tmp_path):
    for source in ROWS:
        folder = tmp_path / source / str(ROW_LENGTH) / "train"
        column = {"tokens": "pkl", "lengths": "ndarray:uint32"}
        with MDSWriter(out=str(folder), columns=column, compression="zstd", hashes=["xxh64"]) as out:
            out.write({"tokens": Hostile(tmp_path / "mark"), "lengths": np.ones(ROW_LENGTH, np.uint32)})
    with pytest.raises(DataError, match=r"index\.json: cannot be read: .*unsafe"):
        drawn(tmp_path)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("form", ["raw_data", "zip_data"])
@pytest.mark.parametrize("outside", ["../../../../planted.py", "/{tmp_path}/planted.py", "00000/../../planted.py"])
def test_a_shard_that_its_index_would_have_written_outside_of_its_folder_is_refused(corpus, tmp_path, form, outside):
    outside = outside.format(tmp_path=tmp_path)
    index = shard(corpus).with_name("index.json")
    content = json.loads(index.read_text())
    content["shards"][0][form]["basename"] = outside
    index.write_text(json.dumps(content))
    for read in (drawn, lambda _: ShardFolder(index.parent)):
        with pytest.raises(DataError, match=rf"^{index}: .* outside of its folder, '{outside}'"):
            read(corpus)
    assert not list(tmp_path.rglob("planted.py"))


@pytest.mark.parametrize(("spoil", "says"), FAULTS)
def test_held_out_rows_are_checked_like_those_of_training(tmp_path, spoil, says):
    write_rows(tmp_path, "validation")
    spoil(shard(tmp_path, split="validation"))
    rows = CheckedShards(row_streams(list(ROWS), tmp_path, None, ROW_LENGTH, "validation"), batch_size=2)
    with pytest.raises(DataError, match=rf"^{shard(tmp_path, split='validation')}: {says}; {REMEDY}$"):
        list(map(rows.__getitem__, range(rows.size)))


@pytest.mark.parametrize("spoil", [flip_a_byte, cut_short])
def test_a_damaged_decompressed_file_is_made_anew(corpus, spoil, caplog):
    undisturbed = drawn(corpus)
    spoil(shard(corpus, suffix=""))
    assert drawn(corpus) == undisturbed
    what = "truncated" if spoil is cut_short else "damaged"
    assert f"{shard(corpus, suffix='')}: {what}: " in caplog.text


def test_a_damaged_copy_of_a_remote_shard_is_fetched_again(corpus, tmp_path):
    undisturbed = drawn(corpus)
    shard(tmp_path / "cache").parent.mkdir(parents=True)
    shutil.copy(shard(corpus), shard(tmp_path / "cache"))
    cut_short(shard(tmp_path / "cache"))
    assert drawn(tmp_path / "cache", remote=corpus) == undisturbed


@pytest.mark.parametrize(
    ("spoil", "says"), [(flip_a_byte, f"{FAULTS[0][1]}; {REMEDY}"), (Path.unlink, "cannot be loaded: .*No such file.*")]
)
def test_a_shard_that_the_remote_has_damaged_is_refused_until_it_is_put_right(
    corpus, row_folder, tmp_path, spoil, says
):
    undisturbed = drawn(corpus)
    spoil(shard(corpus))
    with pytest.raises(DataError, match=rf"^{shard(corpus)}: {says}$"):
        drawn(tmp_path / "cache", remote=corpus)
    shutil.copy(shard(row_folder), shard(corpus))
    assert drawn(tmp_path / "cache", remote=corpus) == undisturbed


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_shard_that_is_long_in_coming_is_named_and_then_trained_on(corpus, tmp_path, monkeypatch, capfd, num_workers):
    """The remote answers only once the user has been told."""
    undisturbed = drawn(corpus)
    monkeypatch.setattr(checked_shards, "STALL_SECONDS", 0.1)
    answers = threading.Event()
    download = checked_shards.CheckedStream._download_file
    named = f"{shard(corpus)}: not here after 0 s; still waiting"

    class Told(logging.Handler):
        def emit(self, record):
            if record.getMessage() == named:
                answers.set()

    def wait_and_download(self, basename, to_basename=None):
        if basename == shard(corpus).name and "docs" in self.local:
            assert answers.wait(30)
        return download(self, basename, to_basename)

    monkeypatch.setattr(checked_shards.CheckedStream, "_download_file", wait_and_download)
    handler = Told()
    checked_shards.log.addHandler(handler)
    try:
        assert drawn(tmp_path / "cache", remote=corpus, num_workers=num_workers) == undisturbed
    finally:
        checked_shards.log.removeHandler(handler)
    assert f"warning: {named}\n" in capfd.readouterr().err


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_shard_is_hashed_once_a_node_and_not_by_every_worker_or_with_every_row(corpus, monkeypatch, num_workers):
    hashed = corpus / "hashed"
    damage = checked_shards._damage

    def slowly(path, *expected):
        with hashed.open("a") as log:
            log.write(f"{path}\n")
        time.sleep(0.05)  # so that the workers meet
        return damage(path, *expected)

    monkeypatch.setattr(checked_shards, "_damage", slowly)
    drawn(corpus, num_workers=num_workers, epochs=2)
    assert sorted(hashed.read_text().split()) == sorted(map(str, corpus.rglob("*.mds")))


@pytest.mark.parametrize(("spoil", "says"), FAULTS[:2])
def test_a_damaged_shard_of_a_corpus_that_is_not_compressed_is_refused_and_left_where_it_is(corpus, spoil, says):
    """There is no other copy, and all of its rows but one may be sound."""
    drawn(corpus)
    index = shard(corpus).with_name("index.json")
    content = json.loads(index.read_text())
    for entry in content["shards"]:
        entry |= {"compression": None, "zip_data": None}
    index.write_text(json.dumps(content))
    raw = shard(corpus, suffix="")
    spoil(raw)
    with pytest.raises(DataError, match=rf"^{raw}: {says}; {REMEDY}$"):
        drawn(corpus)
    assert raw.exists()


def test_what_another_process_found_sound_is_hashed_again_once_it_is_another_file(corpus, caplog):
    """As of a cache, in which a shard that was removed comes again; or of a file that something writes into."""
    rows = stream(corpus)
    list(DataLoader(rows, batch_size=19, num_workers=2, collate_fn=list))
    undisturbed = rows[250]["tokens"].tolist()
    assert not caplog.text
    for file in corpus.rglob("*.mds"):
        flip_a_byte(file)
    assert rows[250]["tokens"].tolist() == undisturbed
    assert "making it again" in caplog.text


def test_a_process_that_dies_while_it_hashes_does_not_stop_the_others(corpus, monkeypatch):
    rows = stream(corpus)
    monkeypatch.setattr(checked_shards, "_damage", lambda *_: os._exit(9))
    if (child := os.fork()) == 0:
        rows[0]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    monkeypatch.undo()
    assert rows[0]["row"] == 0


def test_an_index_that_lists_more_rows_than_its_shard_holds_is_refused_before_one_of_them_is_read(corpus):
    """As it would be after a shard was written anew, and its hash with it."""
    index = shard(corpus).with_name("index.json")
    content = json.loads(index.read_text())
    entry = content["shards"][1]
    there = entry["samples"]
    entry["samples"] += 1
    index.write_text(json.dumps(content))
    says = rf"holds {there} rows, and index\.json lists {there + 1} \(samples\)"
    with pytest.raises(DataError, match=rf"^{shard(corpus, suffix='')}: {says}"):
        drawn(corpus)


def test_a_shard_that_was_removed_and_fetched_again_is_hashed_again(corpus, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    rows = stream(cache, corpus)
    list(map(rows.__getitem__, range(EPOCH)))
    spoiled = cache / f"code/{ROW_LENGTH}/train/shard.00000.mds"
    rows.evict_shard(0)
    decompress = checked_shards.CheckedStream.decompress

    def and_spoil(self, zip_info, zip_filename, raw_filename, compression):
        decompress(self, zip_info, zip_filename, raw_filename, compression)
        monkeypatch.undo()
        flip_a_byte(Path(raw_filename))

    monkeypatch.setattr(checked_shards.CheckedStream, "decompress", and_spoil)
    rows.prepare_shard(0)  # and not what was written arrives on this disk
    damaged = spoiled.read_bytes()
    assert rows[0]["tokens"].tolist() == stream(corpus)[0]["tokens"].tolist()
    assert spoiled.read_bytes() != damaged


def test_what_a_killed_process_left_half_fetched_in_a_cache_is_removed(corpus, tmp_path):
    left = [
        tmp_path / f"cache/code/{ROW_LENGTH}/train/{name}"
        for name in ("shard.00001.mds.here.123.tmp", "shard.00002.mds.zstd.5aF00b1E", "00007/shard.00000.mds.tmp")
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    drawn(tmp_path / "cache", remote=corpus)
    assert not any(path.exists() for path in left)


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.long)])
def test_shards_in_folders_below_their_index_come_from_a_disk_as_from_a_remote(tmp_path, num_workers):
    write_rows(tmp_path / "corpus", parts=3)
    there = drawn(tmp_path / "corpus", num_workers=num_workers)
    assert len(set(map(str, there))) == len(there) == EPOCH // 19 * 19
    assert drawn(tmp_path / "cache", remote=tmp_path / "corpus", num_workers=num_workers) == there
    assert (tmp_path / f"cache/docs/{ROW_LENGTH}/train/00002/shard.00000.mds").exists()


@pytest.mark.parametrize(("spoil", "says"), FAULTS[:2])
def test_a_shard_in_a_folder_is_named_with_it(tmp_path, spoil, says):
    write_rows(tmp_path / "corpus", parts=3)
    spoiled = tmp_path / f"corpus/docs/{ROW_LENGTH}/train/00001/shard.00000.mds.zstd"
    spoil(spoiled)
    for local, remote in ((tmp_path / "cache", tmp_path / "corpus"), (tmp_path / "corpus", None)):
        with pytest.raises(DataError, match=rf"^{spoiled}: {says}; {REMEDY}$"):
            drawn(local, remote)


@pytest.mark.parametrize(("limit", "bytes_"), [("1kb", "1_024"), ("20kb", "20_480")])
def test_a_limit_that_no_cache_can_keep_is_refused_in_one_line(corpus, tmp_path, limit, bytes_):
    says = (
        rf"data\.cache_limit is {bytes_} bytes, and the index files with four of the largest shards take [\d_]+; raise"
    )
    with pytest.raises(DataError, match=rf"^{tmp_path}/cache/\S+: {says} it$"):
        stream(tmp_path / "cache", corpus, cache_limit=limit)


def test_shards_without_hashes_are_refused(tmp_path):
    dtype = token_dtype(512)
    for source in ROWS:
        with MDSWriter(out=str(tmp_path / f"{source}/{ROW_LENGTH}/train"), columns=columns(dtype)) as out:
            one = np.ones(1, dtype=np.uint32)
            out.write(encode_row(Row(one, one, one), dtype))
    with pytest.raises(DataError, match=r"code/32/train/index\.json: has no xxh64 hashes; prepare the data again"):
        drawn(tmp_path)


@pytest.mark.parametrize("spoil", [cut_short, Path.unlink])
def test_a_broken_index_is_refused_by_name(corpus, spoil):
    index = corpus / f"docs/{ROW_LENGTH}/train/index.json"
    spoil(index)
    with pytest.raises(DataError, match=rf"^{index}: cannot be read: .*; {REMEDY}$"):
        drawn(corpus)
