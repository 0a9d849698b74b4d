"""Sources and results in an object store: a real S3 API (moto's server) on loopback."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from datatrove.pipeline.readers import JsonlReader

from rotary_foundry.data_prep import stages
from rotary_foundry.data_prep.pipeline import prepare
from rotary_foundry.data_prep.readers import BadInput, SourceConfig, fingerprint, parts, read
from rotary_foundry.utils import object_store
from rotary_foundry.utils.errors import DataError
from tests.data_prep import reading
from tests.data_prep.reading import documents, texts
from tests.data_prep.small_corpus import content
from tests.object_store import bucket

ROWS = ["one", "two", "thrée", "four", "five 漢字 🙂"]
FOLDERS = iter(f"s3://corpora/{number}" for number in range(100))


@pytest.fixture(scope="module", autouse=True)
def endpoint():
    with bucket("corpora", "S3_ENDPOINT_URL") as url:
        yield url


@pytest.fixture
def folder() -> str:
    """A folder of the test's own in the store."""
    return next(FOLDERS)


@pytest.mark.parametrize(
    ("reader", "name", "write"),
    [
        ("jsonl", "a.jsonl", reading.write_jsonl),
        ("jsonl", "a.jsonl.gz", reading.write_gzip),
        ("jsonl", "a.jsonl.zst", reading.write_zstandard),
        ("csv", "a.csv", reading.write_csv),
        ("parquet", "a.parquet", reading.write_parquet),
        ("warc", "a.warc.wet.gz", reading.write_wet),
        ("mds", "set", reading.write_mds),
    ],
)
def test_a_source_in_a_store_is_read_as_one_on_disk(tmp_path, folder, reader, name, write):
    write(tmp_path / "local" / name if reader == "mds" else _made(tmp_path / "local") / name, ROWS)
    object_store.upload(tmp_path / "local", folder)
    assert texts(reader, f"{folder}/{name}") == ROWS
    if reader != "mds":
        assert texts(reader, folder) == texts(reader, f"{folder}/*{name[1:]}") == ROWS
        assert documents(SourceConfig(reader, folder))[0].id.startswith(f"{folder}/{name}:")


def test_the_fingerprint_changes_with_an_object_of_the_same_name_and_size(folder):
    source = SourceConfig("text", folder)
    object_store.write_text(f"{folder}/a.txt", "one")
    object_store.write_text(f"{folder}/b.txt", "two")
    before = fingerprint(source), fingerprint(SourceConfig("text", f"{folder}/a.txt"))
    assert before == (fingerprint(source), fingerprint(SourceConfig("text", f"{folder}/a.txt")))
    object_store.write_text(f"{folder}/a.txt", "six")
    assert before[0] != fingerprint(source)
    assert before[1] != fingerprint(SourceConfig("text", f"{folder}/a.txt"))


def test_bad_input_in_a_store_is_named_by_its_address(folder):
    object_store.write_text(f"{folder}/a.jsonl", '{"text": "fine"}\nbroken\n')
    bad = BadInput("mine")
    assert [document.text for document in documents(SourceConfig("jsonl", folder), bad)] == ["fine"]
    assert bad.listed[0].startswith(f"{folder}/a.jsonl:2: not valid JSON")


def test_a_folder_goes_to_the_store_whole_and_comes_back(tmp_path, folder):
    contents = {"index.json": b"{}", "a/b/shard.00000.mds.zstd": bytes(range(256)) * 60_000, "a/empty": b""}
    for name, there in contents.items():
        _made((tmp_path / "out" / name).parent).joinpath(Path(name).name).write_bytes(there)
    for destination in (folder, str(tmp_path / "copy")):
        assert not object_store.exists(destination)
        object_store.upload(tmp_path / "out", destination)
        assert object_store.exists(destination)
        assert object_store.exists(f"{destination}/a/b/shard.00000.mds.zstd")
        assert object_store.read_text(f"{destination}/index.json") == "{}"
        there = object_store.data_folder(destination)
        assert there.list_files() == sorted(contents)
        assert {name: there.cat_file(name) for name in contents} == contents


def test_datatroves_own_classes_work_on_a_store_also_in_another_process(folder):
    object_store.write_text(f"{folder}/a.jsonl", '{"text": "one"}\n')
    there = pickle.loads(pickle.dumps(object_store.data_folder(folder)))
    assert [document.text for document in JsonlReader(there).run()] == ["one"]
    with there.open("new/b.jsonl", "w") as file:
        file.write("{}")
    assert object_store.read_text(f"{folder}/new/b.jsonl") == "{}"


def test_the_server_is_also_taken_from_the_name_that_boto3_knows(folder, endpoint, monkeypatch):
    object_store.write_text(f"{folder}/a", "one")
    monkeypatch.delenv("S3_ENDPOINT_URL")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert object_store.read_text(f"{folder}/a") == "one"


def test_what_is_not_there_is_named_in_one_line(tmp_path, folder):
    for path in (f"{folder}/none.jsonl", str(tmp_path / "none.jsonl")):
        with pytest.raises(DataError, match=f"^{path}: "):
            object_store.read_text(path)
        with pytest.raises(DataError, match=f"^{path}: nothing is there"):
            parts(SourceConfig("jsonl", path))
        assert not object_store.exists(path)
    object_store.write_text(f"{folder}/a.jsonl", "{}")
    source = SourceConfig("jsonl", f"{folder}/a.jsonl")
    (part,) = parts(source)
    object_store.filesystem(folder).rm_file(f"{folder}/a.jsonl")
    with pytest.raises(DataError, match=f"^{folder}/a.jsonl: cannot be read"):
        list(read(source, part, BadInput("mine")))


def test_a_store_out_of_reach_is_named_in_one_line(monkeypatch):
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(object_store, "RETRIES", 0)
    for call in (object_store.exists, object_store.read_text, lambda path: parts(SourceConfig("jsonl", path))):
        with pytest.raises(DataError, match=r"^s3://corpora/x: .*http://127\.0\.0\.1:1") as error:
            call("s3://corpora/x")
        assert "\n" not in str(error.value)


def test_a_protocol_that_nobody_speaks_is_refused():
    with pytest.raises(DataError, match=r"^ftp://x/y: unknown store ftp://; expected .* s3://, gs://, az://"):
        object_store.exists("ftp://x/y")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_a_preparation_can_end_in_a_store(config, tmp_path, folder):
    here = replace(config, out=str(tmp_path / "here"))
    prepare(here)
    there = replace(config, out=f"{folder}/prepared", work=str(tmp_path / "work"))
    assert prepare(replace(there, out=f"{there.out}/"))
    assert not (tmp_path / "work").exists()
    store = object_store.data_folder(there.out)
    stored = {name: store.cat_file(name) for name in store.find("")}
    assert stored == {name.replace(os.sep, "/"): text for name, text in content(tmp_path / "here").items()}
    assert prepare(there)  # nothing to do
    with pytest.raises(DataError, match="other values of row_lengths"):
        prepare(replace(there, row_lengths=[64]))


def test_an_interrupted_preparation_into_a_store_goes_on_and_no_shard_is_missing(config, tmp_path, folder, monkeypatch):
    def interrupted(work, rank, *rest):
        if rank == 1:
            raise KeyboardInterrupt
        write(work, rank, *rest)

    there = replace(config, out=f"{folder}/prepared", work=str(tmp_path / "work"))
    write = stages.write_shards
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(stages, "write_shards", interrupted)
        prepare(there)
    with pytest.raises(DataError, match=r"work: holds unfinished work for s3://.*/prepared; .*work="):
        prepare(replace(there, out=f"{folder}/another"))
    prepare(there)
    prepare(replace(config, out=str(tmp_path / "here")))
    assert set(object_store.sizes(there.out)) == set(content(tmp_path / "here"))


def test_a_store_that_lost_a_shard_is_not_called_finished(config, tmp_path, folder, monkeypatch):
    def lost(*arguments):
        upload(*arguments)
        name = f"{there.out}/mine/1024/train/00000/shard.00000.mds.zstd"
        if object_store.exists(name):
            object_store.filesystem(name).rm(name)

    there = replace(config, out=f"{folder}/prepared", work=str(tmp_path / "work"))
    upload = object_store.upload
    monkeypatch.setattr(object_store, "upload", lost)
    with pytest.raises(DataError, match=r"mine/1024/train/00000/shard\.00000\.mds\.zstd: missing in the store"):
        prepare(there)
    assert not object_store.exists(f"{there.out}/statistics.json")


def test_a_preparation_does_not_write_over_what_a_store_has(config, tmp_path, folder):
    object_store.write_text(f"{folder}/taken/thesis.txt", "precious")
    with pytest.raises(DataError, match="taken: holds something else"):
        prepare(replace(config, out=f"{folder}/taken", work=str(tmp_path / "work")))
