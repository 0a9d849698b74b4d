"""What cannot be read is listed with file and line, the rest is kept, and nothing but a DataError ends the reading."""

import errno
import gzip
import io
import json
import random
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datatrove.io import DataFolder

from rotary_foundry.data_prep.readers import BadInput, SourceConfig, files
from rotary_foundry.utils.errors import DataError
from tests.data_prep import reading
from tests.data_prep.reading import documents
from tests.mutations import damaged, repacked

ROWS = ["one " * 40, 'two, "quoted" ' * 8, "thrée " * 20, "four " * 10, "five " * 30, "six 漢字 🙂 " * 5]
PAGES = ["A token is what a model reads, and a row is what it reads at once, packed. " * 5 + str(n) for n in range(3)]


def read_listing(reader: str, path: Path, column: str | None = None, **keys: str) -> tuple[list[str], list[str]]:
    """(texts, what was listed), of which any text may be written and any complaint is one line."""
    bad = BadInput("mine", limit=100)
    found = [document.text for document in documents(SourceConfig(reader, str(path), column, **keys), bad)]
    "".join(found).encode()  # half a surrogate pair is an error
    assert "\0" not in "".join(found)
    assert "\n" not in "".join(bad.listed)
    return found, bad.listed


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"text": "cut o', "not valid JSON"),
        (b'{"text": "caf\xe9"}', "not UTF-8: invalid continuation byte at byte 13 of the line"),
        (b"[3]", "expected a JSON object on each line, got '[3]'"),
        (b'{"body": "x", "title": "y"}', "no column 'text'; the columns there are 'body', 'title'"),
        (b'{"text": null}', "column 'text' holds null, which is not text"),
        (b'{"text": 5}', "column 'text' holds 5, which is not text"),
        (b'{"text": "\\ud83d"}', "column 'text' holds half a surrogate pair"),
        (b'{"text": "a\\u0000"}', "column 'text' holds a NUL at character 1"),
        (b"\0" * 512, "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"text": ' * 100_000, "not valid JSON: nested too deeply"),
        (b'{"text": {"text": ' + b"[" * 1000 + b"]" * 1000 + b"}}", "not valid JSON: nested too deeply"),
        (b'{"text": 1' + b"0" * 10_000 + b"}", "not valid JSON"),
    ],
)
def test_a_bad_line_of_jsonl_is_listed_and_the_others_are_kept(tmp_path, line, complaint):
    path = tmp_path / "some.jsonl"
    path.write_bytes(b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n')
    found, (listed,) = read_listing("jsonl", path)
    assert found == ["before", "after"]
    assert listed.startswith(f"{path}:2: {complaint}")


def test_a_list_on_a_line_of_conversations_is_listed_and_the_others_are_kept(tmp_path):
    turns = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    (tmp_path / "a.jsonl").write_text(f'{turns}\n["messages"]\n[]\n{turns}\n')
    found, listed = read_listing("jsonl", tmp_path / "a.jsonl", conversations="messages")
    assert found == 2 * ['[["user", "a"], ["assistant", "b"]]']
    assert listed == [
        f"{tmp_path}/a.jsonl:{number}: expected a JSON object on each line, got {line!r}"
        for number, line in ((2, '["messages"]'), (3, "[]"))
    ]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (b"only one\n", "expected 2 fields, one per column, got 1"),
        (b"1,two,three\n", "expected 2 fields, one per column, got 3"),
        (b'1,"two"2\n', "not valid CSV: ',' expected after '\"'"),
        (b"1,caf\xe9\n", "column 'text' holds half a surrogate pair or a byte that is not UTF-8, at character 3"),
        (b"1,a\0b\n", "column 'text' holds a NUL"),
    ],
)
def test_a_bad_row_of_csv_is_listed_and_the_others_are_kept(tmp_path, row, complaint):
    path = tmp_path / "some.csv"
    path.write_bytes(b'id,text\n0,"before\n"\n' + row + b"2,after\n")
    found, (listed,) = read_listing("csv", path)
    assert found == ["before\n", "after"]
    assert listed.startswith(f"{path}:4: {complaint}")


def test_a_quote_that_is_never_closed_is_listed_with_the_line_it_opens_in_and_other_files_are_kept(tmp_path):
    (tmp_path / "a.csv").write_text('id,text\n0,before\n1,"open\n2,lost\n3,lost\n')
    reading.write_csv(tmp_path / "b.csv", ROWS)
    found, (listed,) = read_listing("csv", tmp_path)
    assert found == ["before", *ROWS]
    assert listed == f"{tmp_path}/a.csv:3: not valid CSV: unexpected end of data; this line and the 2 after it are lost"


@pytest.mark.parametrize(
    ("write", "name"), [(reading.write_gzip, "a.jsonl.gz"), (reading.write_zstandard, "a.jsonl.zst")]
)
def test_a_cut_off_file_gives_the_lines_before_the_cut_and_other_files_are_kept(tmp_path, write, name):
    generator = random.Random(0)
    rows = ["".join(generator.choices("abcdefgh ", k=2000)) for _ in range(100)]
    write(tmp_path / name, rows)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-20_000])
    reading.write_jsonl(tmp_path / "b.jsonl", ["whole"])
    found, (listed,) = read_listing("jsonl", tmp_path)
    assert 50 < len(found) < 100
    assert found == [*rows[: len(found) - 1], "whole"]
    assert listed.startswith(f"{tmp_path / name}:{len(found)}: the file is cut off or damaged here: ")
    assert listed.endswith("; this line and all after it are lost")


def test_of_a_damaged_parquet_file_the_row_groups_that_can_be_read_are_kept(tmp_path):
    rows = [letter * 5000 for letter in "abcdef"]
    pq.write_table(
        pa.table({"text": rows}), tmp_path / "a.parquet", row_group_size=2, compression=None, use_dictionary=False
    )
    second = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(0).data_page_offset
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[second : second + 20] = b"\xff" * 20
    (tmp_path / "a.parquet").write_bytes(content)
    (tmp_path / "cut.parquet").write_bytes(content[:9000])
    found, (damaged, cut) = read_listing("parquet", tmp_path)
    assert found == [rows[0], rows[1], rows[4], rows[5]]
    assert damaged.startswith(f"{tmp_path}/a.parquet:2: damaged: ") and damaged.endswith("; rows up to 3 are lost")
    assert cut.startswith(f"{tmp_path}/cut.parquet: cut off or damaged: ")
    assert cut.endswith("; the whole file is lost")


class FailingDisk(io.FileIO):
    """A file of which a certain read fails, as over a network."""

    def __init__(self, path: Path, failing: int):
        super().__init__(path)
        self.size = path.stat().st_size
        self.reads_left = failing

    def read(self, *arguments):
        self.reads_left -= 1
        if not self.reads_left:
            raise OSError(errno.EIO, "Input/output error")
        return super().read(*arguments)


@pytest.mark.parametrize("failing", [1, 2])  # as the file is opened, and amid its content
@pytest.mark.parametrize("reader", ["parquet", "warc"])
def test_a_disk_that_fails_in_passing_ends_the_reading_and_no_file_is_taken_for_damaged(
    tmp_path, monkeypatch, reader, failing
):
    path = tmp_path / f"some.{reader}"
    {"parquet": reading.write_parquet, "warc": reading.write_warc}[reader](path, [PAGES[0] * 1000])
    monkeypatch.setattr(DataFolder, "open", lambda *_: FailingDisk(path, failing))
    with pytest.raises(DataError, match=rf"^{path}: cannot be read or written: \[Errno 5\] Input/output error$"):
        read_listing(reader, path)


def test_null_and_undecodable_values_of_a_parquet_column_are_listed_by_row(tmp_path):
    latin = pa.array([b"one", b"caf\xe9", None, b"four"]).view(pa.string())
    pq.write_table(pa.table({"text": latin}), tmp_path / "a.parquet")
    found, (undecodable, null) = read_listing("parquet", tmp_path)
    assert found == ["one", "four"]
    assert undecodable == f"{tmp_path}/a.parquet:1: column 'text' holds b'caf\\xe9', which is not text"
    assert null == f"{tmp_path}/a.parquet:2: column 'text' holds null, which is not text"


def test_a_text_file_that_is_none_is_listed_and_the_others_are_kept(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b.txt").write_bytes(b"\x7fELF\0\0")
    (tmp_path / "c.txt").write_text("fine")
    found, (latin, binary) = read_listing("text", tmp_path)
    assert found == ["fine"]
    why = "unexpected end of data at byte 3; set the source's `encoding`"
    assert latin == f"{tmp_path}/a.txt: not UTF-8, and neither UTF-16 nor UTF-32: {why}"
    assert binary == f"{tmp_path}/b.txt: the text holds a NUL at character 4, which is not text"


def test_a_cut_off_crawl_gives_the_pages_before_the_cut(tmp_path):
    reading.write_warc(tmp_path / "a.warc.gz", PAGES)
    content = (tmp_path / "a.warc.gz").read_bytes()
    (tmp_path / "a.warc.gz").write_bytes(content[:-300])
    (tmp_path / "b.warc").write_bytes(gzip.decompress(content)[:-300])
    found, (packed, plain) = read_listing("warc", tmp_path)
    assert [text[-1] for text in found] == ["0", "1", "0", "1"]
    assert packed.startswith(f"{tmp_path}/a.warc.gz:3: ")
    assert packed.endswith("all after it are lost")
    said = "a record that cannot be read: the file ends within it; it and all after it are lost"
    assert plain == f"{tmp_path}/b.warc:3: {said}"


def test_a_damaged_shard_is_listed_and_the_others_are_kept(tmp_path):
    rows = [f"{number} {'x' * 60}" for number in range(20)]
    reading.write_mds(tmp_path / "set", rows)
    shards = json.loads((tmp_path / "set/index.json").read_text())["shards"]
    damaged = tmp_path / "set" / shards[1]["zip_data"]["basename"]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    found, (listed,) = read_listing("mds", tmp_path / "set")
    first, lost = (shard["samples"] for shard in shards[:2])
    assert found == rows[:first] + rows[first + lost :]
    why = "its sha1 hash differs from the one in the index"
    assert listed == f"{damaged}: damaged: {why}; the whole shard, {lost} rows, is lost"


def test_a_shard_that_is_missing_ends_the_reading(tmp_path):
    reading.write_mds(tmp_path / "set", ROWS)
    shard = next((tmp_path / "set").glob("*.zstd"))
    shard.unlink()
    with pytest.raises(DataError, match=f"^{shard}: cannot be read"):
        read_listing("mds", tmp_path / "set")


@pytest.mark.parametrize("shards", ["[]", "those of no samples"])
def test_an_index_without_samples_is_refused_by_name(tmp_path, shards):
    """As a filter leaves one (mosaicml/streaming#242)."""
    reading.write_mds(tmp_path / "set", ROWS)
    index = json.loads((tmp_path / "set/index.json").read_text())
    index["shards"] = [] if shards == "[]" else [shard | {"samples": 0} for shard in index["shards"]]
    (tmp_path / "set/index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=rf"^{tmp_path}/set/index\.json: no samples there; expected at least one"):
        read_listing("mds", tmp_path / "set")


def test_of_a_folder_of_mds_splits_those_with_an_index_are_named(tmp_path):
    for split in ("train", "val"):
        reading.write_mds(tmp_path / "set" / split, ROWS)
    (tmp_path / "set/notes").mkdir()
    says = rf"^{tmp_path}/set/index\.json: no such file; .* {tmp_path}/set that have one are train, val: give the path"
    with pytest.raises(DataError, match=says):
        read_listing("mds", tmp_path / "set")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("raw_data", {}),
        ("zip_data", {"basename": "a", "bytes": 3, "hashes": ["sha1"]}),
        ("samples", "x"),
        ("column_sizes", []),
    ],
)
def test_an_index_with_a_value_of_another_type_is_refused_by_name(tmp_path, key, value):
    reading.write_mds(tmp_path / "set", ROWS)
    index = json.loads((tmp_path / "set/index.json").read_text())
    index["shards"][0][key] = value
    (tmp_path / "set/index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=rf"^{tmp_path}/set/index\.json: not an index of MDS shards"):
        read_listing("mds", tmp_path / "set")


@pytest.mark.parametrize("path", ["", "/", "/*", "//", "/tmp/.."])
def test_the_root_of_the_file_system_is_no_source(path):
    with pytest.raises(DataError, match="a folder below the root"):
        read_listing("jsonl", path)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", 5])
def test_an_index_cannot_name_files_outside_of_its_folder(tmp_path, name):
    reading.write_mds(tmp_path / "set", ROWS)
    index = json.loads((tmp_path / "set/index.json").read_text())
    index["shards"][0]["zip_data"]["basename"] = name
    (tmp_path / "set/index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"index\.json: not an index of MDS shards"):
        read_listing("mds", tmp_path / "set")


def test_null_values_of_a_hugging_face_data_set_are_listed_by_row(tmp_path):
    datasets.Dataset.from_dict({"text": ["one", None, "three"]}).save_to_disk(tmp_path / "set")
    found, listed = read_listing("huggingface", tmp_path / "set")
    assert found == ["one", "three"]
    assert listed == [f"{tmp_path}/set:1: column 'text' holds null, which is not text"]


@pytest.mark.parametrize(
    ("reader", "extension"), [("jsonl", "jsonl"), ("csv", "csv"), ("text", "txt"), ("warc", "warc")]
)
def test_an_empty_file_has_no_documents_and_is_no_error(tmp_path, reader, extension):
    (tmp_path / f"empty.{extension}").touch()
    (tmp_path / f"packed.{extension}.gz").write_bytes(gzip.compress(b""))
    assert read_listing(reader, tmp_path) == ([], [])


def test_an_empty_parquet_file_has_no_documents_and_is_no_error(tmp_path):
    (tmp_path / "empty.parquet").touch()
    reading.write_parquet(tmp_path / "rowless.parquet", [])
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "rowless.parquet")
    assert read_listing("parquet", tmp_path) == ([], [])


def test_more_bad_documents_than_allowed_end_the_reading_and_the_first_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + "broken\n" * 5)
    source = SourceConfig("jsonl", str(tmp_path))
    assert len(documents(source, BadInput("mine", limit=5))) == 1
    with pytest.raises(
        DataError, match=r"^source 'mine': 5 documents cannot be read, 'max_bad_documents' allows 4"
    ) as error:
        documents(source, BadInput("mine", limit=4))
    assert str(error.value).count("a.jsonl:") == 3
    assert "a.jsonl:2: not valid JSON" in str(error.value)


def test_a_line_longer_than_any_document_is_listed_and_those_after_it_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LONGEST", 1 << 20)
    (tmp_path / "a.jsonl").write_text(f'{{"text": "one"}}\n[{"1," * 3_000_000}1]\n{{"text": "three"}}\n')
    found, listed = read_listing("jsonl", tmp_path)
    assert found == ["one", "three"]
    assert listed == [f"{tmp_path}/a.jsonl:2: a line of more than 1 MiB"]


READ_ONE = """
import sys
from pathlib import Path
from rotary_foundry.data_prep.readers import BadInput, SourceConfig, parts, read
source = SourceConfig(*sys.argv[1:])
sizes = [len(document.text) for part in parts(source) for document in read(source, part, BadInput("mine", 0))]
peak = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
print(*sizes, peak)
"""


@pytest.mark.parametrize("reader", ["jsonl", "csv", "text"])
def test_a_document_of_100_megabytes_is_read_in_less_than_a_gigabyte(tmp_path, reader):
    text = "word " * 20_000_000
    path = tmp_path / "a.file"
    path.write_text({"jsonl": f'{{"text": "{text}"}}\n', "csv": f"text\n{text}\n", "text": text}[reader])
    ran = subprocess.run([sys.executable, "-c", READ_ONE, reader, path], capture_output=True, text=True, check=True)
    size, peak_kilobytes = map(int, ran.stdout.split())
    assert size == len(text)
    assert peak_kilobytes < 1_000_000


@pytest.mark.long  # a file of a gigabyte
def test_a_row_group_of_parquet_is_not_in_memory_as_a_whole(tmp_path):
    """kkkamur07/indic-modernBERT, learnings, 5 and 8: a row group of a gigabyte killed the reader."""
    text = random.Random(0).randbytes(1 << 20).hex()
    rows = pa.table({"text": [text[number % 97 :] for number in range(500)]})
    path = tmp_path / "a.parquet"
    pages = {"row_group_size": 500, "write_batch_size": 8}  # of 8 rows: a page is read as a whole
    pq.write_table(rows, path, compression=None, use_dictionary=False, **pages)
    assert path.stat().st_size > 1_000_000_000
    ran = subprocess.run([sys.executable, "-c", READ_ONE, "parquet", path], capture_output=True, text=True, check=True)
    *sizes, peak_kilobytes = map(int, ran.stdout.split())
    assert len(sizes) == 500
    assert peak_kilobytes < 900_000


def test_of_text_that_other_programs_have_broken_the_rest_is_kept(tmp_path):
    """openai/tiktoken#82, agent0ai/agent-zero#1773: half surrogates; a BOM, CRLF, NUL and quoted line ends in CSV."""
    lines = [b'{"text": "whole"}', b'{"text": "half \\ud83d"}', b'{"text": "caf\xe9"}', b'{"text": "a\\u0000b"}']
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([*lines, b'{"text": "end"}']) + b"\r\n")
    found, listed = read_listing("jsonl", tmp_path / "a.jsonl")
    assert found == ["whole", "end"]
    assert [line.split(": ")[0] for line in listed] == [f"{tmp_path}/a.jsonl:{number}" for number in (2, 3, 4)]
    rows = [b"id,text", b'0,"two\r\nlines"', b"1,a\0b", b"2,caf\xe9", b'3,"quoted ""word"""', b"4,end"]
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(rows) + b"\r\n")
    found, listed = read_listing("csv", tmp_path / "a.csv")
    assert found == ["two\r\nlines", 'quoted "word"', "end"]
    assert [line.split(": ")[0] for line in listed] == [f"{tmp_path}/a.csv:{number}" for number in (4, 5)]


FUZZED = {
    "jsonl": ("jsonl", "some.jsonl", reading.write_jsonl),
    "gzip": ("jsonl", "some.jsonl.gz", reading.write_gzip),
    "zstandard": ("jsonl", "some.jsonl.zst", reading.write_zstandard),
    "csv": ("csv", "some.csv", reading.write_csv),
    "parquet": ("parquet", "some.parquet", reading.write_parquet),
    "text": ("text", "some.txt", reading.write_text),
    "warc": ("warc", "some.warc", reading.write_warc),
    "wet": ("warc", "some.warc.wet.gz", reading.write_wet),
    "mds": ("mds", "some", reading.write_mds),
    "unpacked mds": ("mds", "some", lambda path, rows: reading.write_mds(path, rows, compression=None)),
    "huggingface": ("huggingface", "some", reading.write_dataset),
}


@pytest.mark.parametrize("kind", FUZZED)
def test_of_malformed_input_nothing_but_a_listing_or_a_data_error_comes(tmp_path, kind):
    """Twenty of each of eleven kinds."""
    reader, name, write = FUZZED[kind]
    write(tmp_path / name, PAGES if kind == "warc" else ROWS)
    generator = random.Random(kind)
    sound = sorted(path for path in [tmp_path / name, *(tmp_path / name).rglob("*")] if path.is_file())
    contents = {path: path.read_bytes() for path in sound}
    outcomes = {"read": 0, "listed": 0, "refused": 0}
    for _ in range(20):
        path = generator.choice(sound)
        change = repacked if path.suffix == ".gz" and generator.random() < 0.5 else damaged
        path.write_bytes(change(contents[path], generator))
        try:
            _, listed = read_listing(reader, tmp_path / name)
        except DataError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
        else:
            outcomes["listed" if listed else "read"] += 1
        path.write_bytes(contents[path])
    assert outcomes["listed"] + outcomes["refused"] > 3, outcomes
