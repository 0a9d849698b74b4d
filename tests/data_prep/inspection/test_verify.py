"""`data verify`: a sound corpus passes, and every kind of damage is found and named."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from streaming import MDSWriter

from rotary_foundry.cli import main
from rotary_foundry.data.rows import SHARD_HASH, Manifest
from rotary_foundry.data_prep.inspection.shard_folder import ShardFolder
from rotary_foundry.data_prep.inspection.verify import verify
from rotary_foundry.data_prep.statistics import Counts, SourceStatistics, Statistics
from rotary_foundry.data_prep.work import SPLITS
from tests.data_prep.inspection.tree import COLUMNS, shard_files


def problems(directory: Path) -> list[str]:
    return verify(directory).problems


@contextmanager
def rewritten(folder: Path, shard_number: int = 0) -> Iterator[list[dict]]:
    """The rows of a shard, to be changed; written anew with hashes that are right, as a wrong writer would."""
    shards = ShardFolder(folder)
    shard = shards.shards[shard_number]
    rows = [{key: value.copy() for key, value in row.items()} for row in shards.rows(shard)]
    yield rows
    columns = {key: COLUMNS[key] for key in rows[0]}
    out = folder.parent / "rewritten"
    with MDSWriter(out=str(out), columns=columns, compression="zstd", hashes=[SHARD_HASH]) as writer:
        for row in rows:
            writer.write(row)
    index, written = (json.loads((path / "index.json").read_text()) for path in (folder, out))
    entry = written["shards"][0]
    (out / entry["zip_data"]["basename"]).replace(folder / shard.name)
    for key in ("raw_data", "zip_data"):
        entry[key]["basename"] = index["shards"][shard_number][key]["basename"]
    index["shards"][shard_number] = entry
    (folder / "index.json").write_text(json.dumps(index))
    shutil.rmtree(out)


def test_a_sound_corpus_passes_and_so_does_each_folder_of_it(tree):
    report = verify(tree.root)
    rows = {folder: len(rows) for folder, rows in tree.rows.items()}
    assert report.problems == []
    assert (report.folders, report.rows) == (len(rows), sum(rows.values()))
    assert report.documents == sum(len(ids) for rows in tree.rows.values() for ids in rows)
    assert str(report).startswith("all good: ")
    folder = tree.root / "yours/64/train"
    assert (verify(folder).rows, problems(folder)) == (rows[folder], [])


def test_every_bad_shard_is_named_with_what_is_wrong_and_the_status_is_1(copied, monkeypatch, capsys):
    missing, truncated = shard_files(copied / "mine/64/train")[:2]
    flipped = shard_files(copied / "yours/256/train")[1]
    longer = shard_files(copied / "yours/256/validation")[0]
    missing.unlink()
    truncated.write_bytes(truncated.read_bytes()[:-7])
    content = bytearray(flipped.read_bytes())
    content[50] ^= 1
    flipped.write_bytes(content)
    longer.write_bytes(longer.read_bytes() + b"x")
    monkeypatch.setattr("sys.argv", ["rotary-foundry", "data", "verify", str(copied)])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 1
    *named, summary = capsys.readouterr().out.splitlines()
    assert sorted(line.split(": ", 1)[0] for line in named) == sorted(map(str, (missing, truncated, flipped, longer)))
    said = dict(line.split(": ", 1) for line in named)
    assert said[str(missing)] == "no such file"
    assert said[str(truncated)].startswith("truncated: ")
    assert said[str(flipped)] == "damaged: its xxh64 hash differs from the one in the index"
    assert said[str(longer)].startswith("damaged: ")
    assert "4 of 20 shards are bad" in summary


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda row: row["tokens"].__setitem__(5, 384),
            "row 1 has token id 384, but the tokenizer's ids are in [0, 384)",
        ),
        (lambda row: row["lengths"].__setitem__(0, row["lengths"][0] + 1), "tokens, but documents of "),
        (lambda row: row["tokens"].__setitem__(0, 7), "a document without the tokenizer's special tokens"),
        (lambda row: row["documents"].__setitem__(0, 60), "document number 60, but the table of its part has 60 lines"),
        (lambda row: row.update(documents=np.zeros(9, np.uint32)), "row 1 has 9 document numbers for its "),
    ],
    ids=["id", "lengths", "specials", "number", "numbers"],
)
def test_a_row_that_was_written_wrong_is_named(copied, change, complaint):
    folder = copied / "mine/64/train"
    with rewritten(folder) as rows:
        change(rows[1])
    (problem,) = problems(folder)
    assert problem.startswith(f"{shard_files(folder)[0]}: row 1 has ")
    assert complaint in problem


def test_a_row_too_long_and_how_many_more_are_bad(copied):
    folder = copied / "mine/256/train"
    with rewritten(folder, 1) as rows:
        for row in rows:
            row["tokens"], row["lengths"] = np.resize(row["tokens"], 300), np.array([300], np.uint32)
    first_row = ShardFolder(folder).shards[1].first_row
    (problem,) = problems(folder)
    assert f"{shard_files(folder)[1]}: row {first_row} has 300 tokens, 300 of them in one document" in problem
    assert f"({len(rows) - 1} more of its {len(rows)} rows are bad)" in problem


def test_tokens_of_a_document_that_are_in_no_row_are_missed(copied):
    folder = copied / "mine/64/validation"
    with rewritten(folder) as rows:
        dropped = rows.pop()
    tokens, missing = len(dropped["tokens"]), int(dropped["lengths"].sum()) - 2 * len(dropped["lengths"])
    manifest = Manifest.read(folder)
    named = [problem.removeprefix(f"{folder}") for problem in problems(folder)]
    assert [problem.split(":")[0] for problem in named] == ["", "/manifest.json", "/manifest.json", "/manifest.json"]
    assert f"{missing} tokens of part 00000's documents are in no row" in named[0]
    assert f"rows: the manifest says {manifest.rows}, the folder has {manifest.rows - 1}" in named[1]
    assert f"tokens: the manifest says {manifest.tokens}, the folder has {manifest.tokens - tokens}" in named[3]


def test_a_training_part_may_leave_out_one_row(copied):
    folder = copied / "mine/64/train"
    with rewritten(folder) as rows:
        rows.pop()
    assert {problem.split(": ")[1] for problem in problems(folder)} == {"rows", "documents", "tokens"}  # the manifest's
    with rewritten(folder) as rows:
        rows.pop()
    assert any("tokens of part 00000's documents are in no row" in problem for problem in problems(folder))


def test_what_lies_beside_the_shards_is_checked_too(copied, tree):
    fine = problems(copied / "mine/64/train")
    table = copied / "mine/documents/train/00001.parquet"
    table.write_bytes(table.read_bytes()[:100])
    shutil.rmtree(copied / "yours/64/validation")
    (copied / "mine/64/validation/index.json").unlink()
    (copied / "yours/256/validation/manifest.json").write_text("{}")
    moved = copied / "mine/256/validation/manifest.json"
    shutil.copy(tree.root / "mine/256/train/manifest.json", moved)
    named = "\n".join(problems(copied))
    assert fine == []
    assert f"{table}: cannot be read: " in named
    assert f"{copied}/yours/64/validation: no shards there" in named
    assert f"{copied}/mine/64/validation/index.json: no such file" in named
    assert f"{copied}/yours/256/validation/manifest.json: key 'source' is missing" in named
    assert f"{moved}: split: the manifest says train, the folder has validation" in named


def test_a_source_and_a_row_length_that_are_gone_altogether_are_missed(copied):
    nothing = Counts(0, 0, 0, {}, {})
    made_of = {"sources": {"mine": {}, "yours": {}}, "row_lengths": [64, 256]}
    sources = dict.fromkeys(made_of["sources"], SourceStatistics({}, nothing, nothing))
    Statistics(made_of, "", "", 384, 0.0, sources).write(copied)
    assert problems(copied) == []
    shutil.rmtree(copied / "mine/256")
    shutil.rmtree(copied / "yours")
    gone = [f"mine/256/{split}" for split in SPLITS] + [
        f"yours/{rows}/{split}" for rows in (64, 256) for split in SPLITS
    ]
    assert problems(copied) == [f"{copied}/{folder}: no shards there" for folder in gone]
    (copied / "statistics.json").write_text("{}")
    assert [problem.split(": ")[1][:6] for problem in problems(copied)] == ["broken"]


def test_a_part_all_of_whose_shards_were_lost_from_the_index_is_missed(copied):
    folder = copied / "mine/64/validation"
    table = copied / "mine/documents/validation/00000.parquet"
    shutil.copy(table, table.with_name("00001.parquet"))
    (problem,) = problems(folder)
    assert f"{folder}: " in problem
    assert "tokens of part 00001's documents are in no row" in problem


def test_another_tokenizer_and_none_at_all_are_told(copied):
    folder = copied / "mine/64/train"
    path = copied / "tokenizer/tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["[another]"] = 384
    path.write_text(json.dumps(content))
    (problem,) = problems(folder)
    assert f"{folder}/manifest.json: tokenizer: " in problem
    path.unlink()
    (problem,) = problems(folder)
    assert f"{path}: no such file" in problem


def test_a_damaged_copy_that_a_run_decompressed_is_told(copied):
    folder = copied / "mine/64/train"
    shards = ShardFolder(folder)
    raw = folder / shards.shards[0].reader.raw_data.basename
    raw.write_bytes(shards.raw(shards.shards[0]))
    assert problems(folder) == []
    raw.write_bytes(raw.read_bytes()[:-1])
    (problem,) = problems(folder)
    assert "its decompressed copy, 00000/shard.00000.mds, is damaged: truncated" in problem


def test_a_table_without_its_columns_is_told(copied):
    table = copied / "mine/documents/train/00000.parquet"
    pq.write_table(pa.table({"id": ["a"]}), table)
    assert [problem.split(": ")[0] for problem in problems(copied / "mine/64/train")] == [str(table)]
