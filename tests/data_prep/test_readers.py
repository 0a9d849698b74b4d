"""Readers: what is a document, in which order, and how a source is divided into parts."""

import importlib.metadata
import json
import os
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rotary_foundry.data_prep.corpus_config import load_corpus_config
from rotary_foundry.data_prep.readers import (
    BadInput,
    SourceConfig,
    fingerprint,
    installed_packages,
    listing,
    parts,
    read,
)
from rotary_foundry.utils.errors import DataError
from tests.data_prep import reading
from tests.data_prep.reading import documents, texts

NANO = Path(__file__).parents[2] / "yamls/data/nano.yaml"

ROWS = ["one", 'two, "quoted"\nand of two lines', "thrée", "", "five 漢字 🙂"]


@pytest.mark.parametrize(
    ("reader", "name", "write"),
    [
        ("jsonl", "some.jsonl", reading.write_jsonl),
        ("jsonl", "some.jsonl.gz", reading.write_gzip),
        ("jsonl", "some.jsonl.zst", reading.write_zstandard),
        ("csv", "some.csv", reading.write_csv),
        ("parquet", "some.parquet", reading.write_parquet),
        ("mds", "some", reading.write_mds),
        ("mds", "some", lambda path, rows: reading.write_mds(path, rows, compression=None)),
        ("huggingface", "some", reading.write_dataset),
    ],
)
def test_texts_come_as_they_were_written_and_in_order(tmp_path, reader, name, write):
    write(tmp_path / name, ROWS)
    assert texts(reader, tmp_path / name) == ROWS


def test_a_document_is_named_by_the_line_it_begins_at_and_keeps_its_url(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one", "n": 1}\n\n{"text": "two", "url": "http://x.org", "n": NaN}')
    (tmp_path / "a.csv").write_text('url,body\nhttp://x.org,"one\n1"\n\n,two\n')
    one, two = documents(SourceConfig("jsonl", str(tmp_path / "a.jsonl")))
    assert (one.id, one.metadata) == (f"{tmp_path}/a.jsonl:1", {})
    assert (two.id, two.metadata) == (f"{tmp_path}/a.jsonl:3", {"url": "http://x.org"})
    one, two = documents(SourceConfig("csv", str(tmp_path / "a.csv"), "body"))
    assert (one.id, one.text, one.metadata) == (f"{tmp_path}/a.csv:2", "one\n1", {"url": "http://x.org"})
    assert (two.id, two.text) == (f"{tmp_path}/a.csv:5", "two")


def test_rows_are_counted_from_0_over_row_groups_and_shards_of_a_file(tmp_path):
    reading.write_parquet(tmp_path / "a.parquet", ROWS)
    reading.write_dataset(tmp_path / "set", ROWS)
    assert documents(SourceConfig("parquet", str(tmp_path)))[4].id == f"{tmp_path}/a.parquet:4"
    assert documents(SourceConfig("huggingface", str(tmp_path / "set")))[4].id == f"{tmp_path}/set:4"


def test_a_folder_is_read_at_any_depth_in_the_order_of_names_and_a_glob_as_it_matches(tmp_path, monkeypatch):
    for name in ("b.txt", "a/z.txt", "a/deep/y.md", "a-b.txt", ".git/x.txt", "a/._z.txt", "a/w.log"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "a/empty.txt").touch()
    assert texts("text", tmp_path) == ["a/deep/y.md", "a/z.txt", "a-b.txt", "b.txt"]
    assert texts("text", tmp_path / "*.txt") == ["a-b.txt", "b.txt"]
    assert texts("text", tmp_path / "**/*.log") == ["a/w.log"]
    assert texts("text", tmp_path / "a/w.log") == ["a/w.log"]
    monkeypatch.chdir(tmp_path)
    assert [document.id for document in documents(SourceConfig("text", "a"))] == ["a/deep/y.md", "a/z.txt"]
    assert [document.id for document in documents(SourceConfig("text", "*.txt"))] == ["a-b.txt", "b.txt"]
    with pytest.raises(DataError, match=r"a/deep: no files ending in \.jsonl, .* for the reader jsonl"):
        texts("jsonl", "a/deep")


def test_links_to_files_are_read_as_a_cache_of_the_hub_holds_them(tmp_path):
    (tmp_path / "blobs").mkdir()
    reading.write_jsonl(tmp_path / "blobs" / "1234", ROWS)
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "some.jsonl").symlink_to("../blobs/1234")
    for path in ("snapshot", "snapshot/*.jsonl", "snapshot/some.jsonl"):
        assert texts("jsonl", tmp_path / path) == ROWS


def test_a_byte_order_mark_is_no_part_of_the_first_column_or_text(tmp_path):
    (tmp_path / "a.csv").write_text("text,n\none,1\n", encoding="utf-8-sig")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n', encoding="utf-8-sig")
    (tmp_path / "a.txt").write_text("one", encoding="utf-8-sig")
    assert [texts(reader, tmp_path)[0] for reader in ("csv", "jsonl", "text")] == ["one"] * 3


@pytest.mark.parametrize("name", ["some.warc", "some.warc.gz"])
def test_of_a_crawl_the_main_text_of_html_pages_is_read(tmp_path, name):
    sentence = "A token is what a model reads, and a row is what it reads at once, packed from documents. " * 5
    reading.write_warc(tmp_path / name, [sentence, sentence.upper()])
    one, two = documents(SourceConfig("warc", str(tmp_path)))
    assert sentence.strip() in one.text and "All rights reserved" not in one.text
    assert (two.id, two.metadata) == (f"{tmp_path / name}:2", {"url": "http://example.org/1"})


def test_what_is_kept_of_a_page_does_not_depend_on_the_pages_before_it(tmp_path):
    sentence = "A token is what a model reads, and a row is what it reads at once, packed from documents. " * 5
    reading.write_warc(tmp_path / "a.warc", [sentence] * 8)
    assert len(set(texts("warc", tmp_path))) == 1 and len(texts("warc", tmp_path)) == 8


def test_the_texts_of_a_wet_file_are_read_as_they_are(tmp_path):
    reading.write_wet(tmp_path / "some.warc.wet.gz", ["one\n\n<b>1</b>", "twö"])
    assert texts("warc", tmp_path) == ["one\n\n<b>1</b>", "twö"]


def test_a_hugging_face_data_set_is_read_by_split_from_what_it_was_saved_as(tmp_path):
    train, test = (datasets.Dataset.from_dict({"body": rows}) for rows in (["one", "two"], ["three"]))
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "saved")
    assert texts("huggingface", tmp_path / "saved", text_column="body") == ["one", "two"]
    assert texts("huggingface", tmp_path / "saved", text_column="body", split="test") == ["three"]
    with pytest.raises(DataError, match="no split 'dev'; the splits there are 'train', 'test'"):
        texts("huggingface", tmp_path / "saved", text_column="body", split="dev")
    with pytest.raises(DataError, match="no column 'text'; the columns there are 'body'"):
        texts("huggingface", tmp_path / "saved")


def test_a_folder_of_files_is_a_hugging_face_data_set_too(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    reading.write_jsonl(tmp_path / "set/train.jsonl", ROWS)
    assert texts("huggingface", tmp_path / "set") == ROWS
    with pytest.raises(DataError, match='set: datasets cannot load it: Unknown split "dev"'):
        texts("huggingface", tmp_path / "set", split="dev")


def test_a_data_set_of_the_hub_that_cannot_be_had_is_named_in_one_line(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"^nobody/nothing: datasets cannot load it: [^\n]+$"):
        texts("huggingface", "nobody/nothing")


def test_a_pickled_column_is_refused_before_anything_of_it_is_run(tmp_path):
    reading.write_mds(tmp_path / "set", ["one"], extra="pkl")
    with pytest.raises(DataError, match=r"index\.json: column 'extra' is pickled"):
        texts("mds", tmp_path / "set")


def test_shards_are_not_unpacked_beside_the_users_own(tmp_path):
    reading.write_mds(tmp_path / "set", ROWS * 20)
    before = sorted(os.listdir(tmp_path / "set"))
    assert len(before) > 3
    assert texts("mds", tmp_path / "set") == ROWS * 20
    assert sorted(os.listdir(tmp_path / "set")) == before


@pytest.mark.parametrize(
    ("reader", "write"),
    [
        ("jsonl", lambda path: path.write_text('{"title": "a", "body": "b"}\n')),
        ("csv", lambda path: path.write_text("title,body\na,b\n")),
        ("parquet", lambda path: pq.write_table(pa.table({"title": ["a"], "body": ["b"]}), path)),
        ("mds", lambda path: reading.write_mds(path, ["a"])),
        ("huggingface", lambda path: datasets.Dataset.from_dict({"title": ["a"], "body": ["b"]}).save_to_disk(path)),
    ],
)
def test_the_error_for_a_missing_column_lists_those_there(tmp_path, reader, write):
    write(tmp_path / "some")
    there = "'id', 'text'" if reader == "mds" else "'title', 'body'"
    with pytest.raises(DataError, match=f"no column 'missing'; the columns there are {there}") as error:
        documents(SourceConfig(reader, str(tmp_path / "some"), "missing"), BadInput("mine", limit=100))
    assert str(error.value).startswith(str(tmp_path / "some"))


@pytest.mark.parametrize("reader", ["parquet", "huggingface", "mds"])
def test_a_text_column_of_numbers_is_refused(tmp_path, reader):
    write = {"parquet": reading.write_parquet, "huggingface": reading.write_dataset, "mds": reading.write_mds}[reader]
    write(tmp_path / "some", ROWS)
    with pytest.raises(DataError, match=r"column 'id': expected .*, got .*'int(64)?'"):
        documents(SourceConfig(reader, str(tmp_path / "some"), "id"))


def test_parts_hold_whole_files_up_to_a_size_and_can_be_stored_as_json(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "PART_BYTES", 100)
    for name, size in {"a": 60, "b": 40, "c": 1, "d": 300, "e": 99}.items():
        (tmp_path / f"{name}.txt").write_text(name * size)
    source = SourceConfig("text", str(tmp_path))
    divided = json.loads(json.dumps(parts(source)))
    assert [part["files"] for part in divided] == [["a.txt", "b.txt"], ["c.txt"], ["d.txt"], ["e.txt"]]
    assert [document.text[0] for part in divided for document in read(source, part, BadInput("x"))] == list("abcde")


@pytest.mark.parametrize(("reader", "write"), [("mds", reading.write_mds), ("huggingface", reading.write_dataset)])
def test_parts_of_rows_and_of_shards_make_up_the_whole(tmp_path, monkeypatch, reader, write):
    monkeypatch.setattr(listing, "PART_BYTES", 300)
    rows = [f"{number} {'x' * 40}" for number in range(40)]
    write(tmp_path / "set", rows)
    source = SourceConfig(reader, str(tmp_path / "set"))
    divided = json.loads(json.dumps(parts(source)))
    assert len(divided) > 3
    assert [document.text for part in divided for document in read(source, part, BadInput("x"))] == rows
    monkeypatch.setattr(listing, "MOST_PARTS", 3)
    assert 1 < len(parts(source)) <= 4  # shards and rows are not divided


def test_a_data_set_of_the_hub_is_read_at_the_commit_that_it_was_divided_at(monkeypatch):
    then, now = "0" * 40, "1" * 40

    def load_dataset(path, name=None, split=None, revision=None):
        commit = revision or newest
        data = datasets.Dataset.from_dict({"text": [f"of {commit}"]})
        data.info.download_checksums = {f"hf://datasets/{path}@{commit}/data/train-00000-of-00001.parquet": {}}
        return data

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source, newest = SourceConfig("huggingface", "somebody/something"), then
    (part,) = json.loads(json.dumps(parts(source)))
    newest = now
    assert [document.text for document in read(source, part, BadInput("x"))] == [f"of {then}"]


@pytest.mark.parametrize(
    ("reader", "write"),
    [("jsonl", reading.write_jsonl), ("mds", reading.write_mds), ("huggingface", reading.write_dataset)],
)
def test_the_fingerprint_is_of_the_content_and_not_of_the_place(tmp_path, reader, write):
    write(tmp_path / "some", ROWS)
    before = fingerprint(SourceConfig(reader, str(tmp_path / "some")))
    (tmp_path / "some").rename(tmp_path / "other")
    if reader != "jsonl":  # its name is part of what a file is known by
        assert fingerprint(SourceConfig(reader, str(tmp_path / "other"))) == before
    write(tmp_path / "some", [*ROWS, "six"])
    assert fingerprint(SourceConfig(reader, str(tmp_path / "some"))) != before


def test_python_files_under_a_path_are_read_whole_and_sorted(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "b.py").write_bytes("# coding: latin-1\nname = 'café'\n".encode("latin-1"))
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "notes.txt").write_text("not Python")
    assert texts("python_files", tmp_path) == ["x = 1\n", "# coding: latin-1\nname = 'café'\n"]


def test_a_python_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "a.py").write_bytes(b"x = '\xff'\n")
    with pytest.raises(DataError, match=r"a\.py: not text"):
        texts("python_files", tmp_path)


def test_docstrings_are_collected_without_importing(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        '"""What it is for."""\n'
        "raise RuntimeError('imported')\n"
        "class Clock:\n"
        '    """Tells the time."""\n'
        "    if True:\n"
        "        def tick(self):\n"
        '            """Moves on."""\n'
        "def silent(): pass\n"
    )
    (tmp_path / "template.py").write_text("{{ not python }} (")
    (tmp_path / "silent.py").write_text("x = 1")
    (document,) = texts("python_docstrings", tmp_path)
    paragraphs = document.split("\n\n")
    assert paragraphs[1::2] == ["What it is for.", "Tells the time.", "Moves on."]
    assert paragraphs[4].endswith("module.Clock.tick")


def test_readmes_are_of_what_this_project_requires_whatever_else_is_installed():
    names = {document.id for document in documents(SourceConfig("distribution_readmes"))}
    assert {"numpy", "mosaicml", "sympy", "warcio"} <= names  # required; by those; by an extra, datatrove[io]
    assert names.isdisjoint({"rotary-foundry", "pytest", "mteb", "pip"})
    assert all(map(importlib.metadata.distribution, ("rotary-foundry", "pytest", "mteb", "pip")))


@pytest.mark.long  # reads all that is installed, as `make nano` does
def test_the_installation_gives_5_to_20_megabytes_that_need_no_download():
    config = load_corpus_config(NANO)
    sizes = {name: sum(len(d.text.encode()) for d in documents(source)) for name, source in config.sources.items()}
    assert 5e6 < sum(sizes.values()) < 20e6
    assert list(sizes) == ["code", "docs", "web"]


def test_the_budget_ends_a_source_of_the_installation(monkeypatch):
    source = SourceConfig("python_files")
    monkeypatch.setattr(installed_packages, "BYTE_BUDGET", 200_000)
    some = documents(source)
    assert 100_000 < sum(len(document.text.encode()) for document in some) <= 200_000
    monkeypatch.setattr(installed_packages, "BYTE_BUDGET", 300_000)
    assert documents(source)[: len(some)] == some
