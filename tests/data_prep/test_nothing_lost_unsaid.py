"""Nothing is lost without saying how much: where few documents or none come out, file, line and reason are said.

A CSV file in Latin-1, one JSON array, a quote that is never closed: reports of people whose corpus came out empty or
short, with a count and no reason.
"""

import gzip
import json
import re
import runpy
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from rotary_foundry.data_prep.corpus_config import CorpusConfig, TokenizerConfig, TrainTokenizer, load_corpus_config
from rotary_foundry.data_prep.pipeline import prepare, work_folder
from rotary_foundry.data_prep.readers import BadInput, SourceConfig, files
from rotary_foundry.data_prep.statistics import Statistics
from rotary_foundry.utils.errors import ConfigurationError, DataError
from tests.data_prep import reading
from tests.data_prep.reading import documents, texts
from tests.data_prep.small_corpus import sentences


@pytest.fixture
def corpus(tmp_path):
    def of(reader: str, path: Path, **keys) -> CorpusConfig:
        return CorpusConfig(
            sources={"mine": SourceConfig(reader, str(path), **keys)},
            tokenizer=TokenizerConfig(train=TrainTokenizer(320)),
            **{"row_lengths": [64], "validation": 0.2, "out": str(tmp_path / "out")},
            executor={"local": {"workers": 1}},
        )

    return of


def latin_1(path: Path) -> Path:
    rows = "".join(f"{n},café au lait dans la tasse numéro {n}\n" for n in range(50))
    path.write_text("id,text\n" + rows, encoding="latin-1")
    return path


def test_a_source_without_documents_says_where_and_why_the_first_were_left_out(corpus, tmp_path):
    config = corpus("csv", latin_1(tmp_path / "a.csv"))
    with pytest.raises(DataError) as refused:
        prepare(config)
    said, listed = str(refused.value), work_folder(config) / "bad_input.txt"
    reason = "column 'text' holds half a surrogate pair or a byte that is not UTF-8, at character 3"
    assert "source 'mine' has no documents (left out: 50 bad input); " in said
    assert [f"a.csv:{line}: {reason}" in said for line in (2, 3, 4, 5)] == [True, True, True, False]
    assert f"; all bad input is listed in {listed}; correct the files, or the source's reader, text_column" in said
    assert len(listed.read_text().splitlines()) == 50


def test_one_json_array_in_a_file_of_lines_says_what_would_be_right(corpus, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"text": f"text number {n}"} for n in range(50)]))
    with pytest.raises(DataError, match=r"a\.json:1: a list of objects on one line; write each on a line of its own"):
        prepare(corpus("jsonl", tmp_path / "a.json"))


def test_documents_that_are_too_short_or_that_a_filter_drops_are_named_too(corpus, tmp_path):
    reading.write_jsonl(tmp_path / "a.jsonl", ["short", "so is this"])
    with pytest.raises(DataError, match=r"\(left out: 2 near-empty\); .*a\.jsonl:1: under 32 characters$"):
        prepare(corpus("jsonl", tmp_path / "a.jsonl"))
    reading.write_jsonl(tmp_path / "b.jsonl", sentences(1, 5))
    config = corpus("jsonl", tmp_path / "b.jsonl", filters=[{"GopherQualityFilter": {"min_doc_words": 100_000}}])
    with pytest.raises(DataError, match=r"b\.jsonl:1: dropped by GopherQualityFilter, gopher_short_doc$"):
        prepare(replace(config, work=str(tmp_path / "work")))


def test_what_was_lost_of_a_corpus_is_printed_with_it(corpus, tmp_path, monkeypatch, capsys):
    rows = [f'"{text}"' for text in sentences(1, 60)]
    (tmp_path / "a.csv").write_text("text\n" + "\n".join([*rows, "[/b]\0", '"x"y', "z\0", "\0", ""]))
    (tmp_path / "mine.yaml").write_text(
        f"sources: {{mine: {{reader: csv, path: {tmp_path}/a.csv}}}}\ntokenizer: {{train: {{vocab_size: 320}}}}\n"
        f"row_lengths: [64]\nvalidation: 0.2\nout: {tmp_path}/out\nexecutor: {{local: {{workers: 1}}}}\n"
    )
    monkeypatch.setattr("sys.argv", ["data_prep", str(tmp_path / "mine.yaml")])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(Path(__file__).parents[2] / "data_prep"), run_name="__main__")
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "  mine: left out 4 bad input\n" in printed
    assert f"    mine: {tmp_path}/a.csv:62: column 'text' holds a NUL at character 4, which is not text\n" in printed
    assert f"    mine: {tmp_path}/a.csv:63: not valid CSV: ',' expected after '\"'\n" in printed
    assert f"    … 4 lines are in {tmp_path}/out/bad_input.txt\n" in printed


def read_listing(path: Path, limit: int = 100, **keys) -> tuple[list[str], BadInput]:
    bad = BadInput("mine", limit)
    return [document.text for document in documents(SourceConfig("csv", str(path), **keys), bad)], bad


def test_of_a_row_with_a_quoting_fault_no_part_is_taken_for_a_row(tmp_path):
    rows = "".join(f'"text number {n}\nwith a second line"\n' for n in range(5))
    fault = '"he said "hello" and then\nthis is a fragment of a broken text and no document "\n'
    (tmp_path / "a.csv").write_text(f"text\n{rows}{fault}{rows}")
    found, bad = read_listing(tmp_path / "a.csv")
    assert found == [f"text number {n}\nwith a second line" for n in range(5)] * 2
    assert (bad.count, len(bad.listed)) == (2, 1)
    assert bad.listed[0] == (
        f"{tmp_path}/a.csv:12: not valid CSV: ',' expected after '\"'; this line and the 1 after it are lost"
    )


@pytest.mark.parametrize("after", ["lost,x\n", '"quoted",x\n'])
def test_a_quote_that_is_never_closed_says_how_many_lines_it_took_and_counts_them(after, tmp_path):
    (tmp_path / "a.csv").write_text('text,n\nbefore,1\n"open,2\n' + after * 150)
    found, bad = read_listing(tmp_path / "a.csv", limit=151)
    assert found == ["before"]
    assert bad.count == 151
    assert bad.listed[0].endswith("; this line and the 150 after it are lost")
    with pytest.raises(DataError, match=r"151 documents cannot be read, 'max_bad_documents' allows 100: .*a\.csv:3: "):
        read_listing(tmp_path / "a.csv")


def test_rows_of_a_damaged_row_group_or_shard_are_counted_one_by_one(tmp_path):
    pq.write_table(
        pa.table({"text": [letter * 5000 for letter in "abcdef"]}),
        tmp_path / "a.parquet",
        **{"row_group_size": 3, "compression": None, "use_dictionary": False},
    )
    place = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(0).data_page_offset
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[place : place + 20] = b"\xff" * 20
    (tmp_path / "a.parquet").write_bytes(content)
    bad = BadInput("mine", limit=10)
    assert len(documents(SourceConfig("parquet", str(tmp_path / "a.parquet")), bad)) == 3
    assert (bad.count, len(bad.listed)) == (3, 1)
    reading.write_mds(tmp_path / "set", [f"text {n}" for n in range(30)], compression=None)
    shard = tmp_path / "set/shard.00000.mds"
    shard.write_bytes(b"\0" * shard.stat().st_size)
    bad = BadInput("mine", limit=30)
    left = documents(SourceConfig("mds", str(tmp_path / "set")), bad)
    assert (len(bad.listed), bad.count) == (1, 30 - len(left))
    assert bad.count > 1


EMPTY = "<html><head><title>x</title></head><body><script>var x = 1</script><nav>menu</nav></body></html>"


def write_pages(path: Path, kind: str, pages: list[str | bytes]) -> None:
    """A WARC file, each of whose records holds a page."""
    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=False)
        for number, page in enumerate(pages):
            http = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.1")
            content = BytesIO(page.encode() if isinstance(page, str) else page)
            url = f"http://example.org/{number}"
            headers = {"http_headers": http} if kind == "response" else {"warc_content_type": "text/plain"}
            writer.write_record(writer.create_warc_record(url, kind, payload=content, **headers))


def test_rows_of_a_damaged_hugging_face_data_set_are_counted_one_by_one(tmp_path):
    reading.write_dataset(tmp_path / "set", [f"text number {n:04}" for n in range(250)])
    (file,) = (tmp_path / "set").glob("*.arrow")
    content = bytearray(file.read_bytes())
    offsets = b"".join((16 * n).to_bytes(4, "little") for n in range(10, 60))
    place = content.index(offsets)
    content[place : place + len(offsets)] = b"\xff" * len(offsets)
    file.write_bytes(content)
    source, bad = SourceConfig("huggingface", str(tmp_path / "set")), BadInput("mine", limit=100)
    left = documents(source, bad)
    assert len(left) < 250
    assert (len(left) + bad.count, len(bad.listed)) == (250, 1)
    with pytest.raises(DataError, match=r"100 documents cannot be read, 'max_bad_documents' allows 2: "):
        documents(source, BadInput("mine", limit=2))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("train.csv", "text,text\none,two\n", "set: the column 'text' occurs twice; .* datasets calls the second"),
        (
            "train.jsonl",
            '{"text": "one", "text": "two"}\n',
            "set: datasets cannot load it: .*text.* was specified twice",
        ),
    ],
)
def test_a_column_named_twice_in_a_file_of_a_hugging_face_data_set_is_refused(
    name, content, says, tmp_path, monkeypatch
):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_text(content)
    with pytest.raises(DataError, match=says):
        texts("huggingface", tmp_path / "set")


def write_without_text(kind: str, folder: Path) -> Path:
    """Two pages, files or repositories of a reader's, each without text."""
    if kind == "warc":
        write_pages(
            folder / "a.warc", "response", [EMPTY.replace("menu", ""), b"<html><p>" + bytes(range(128, 256)) * 20]
        )
    elif kind == "wet":
        write_pages(folder / "a.wet", "conversion", [b"", b"%PDF-1.4 " + bytes(range(128, 256))])
    else:
        name, content = WITHOUT_TEXT[kind]
        for number in range(2):
            path = folder / name.format(number)
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
    return folder


WITHOUT_TEXT = {
    "html": ("{}.html", EMPTY),
    "man": ("{}.1", ".so man1/other.1\n"),
    "text": ("{}.txt", ""),
    "csv": ("{}.csv", "id,text\n"),
    "jsonl": ("{}.jsonl", "\n[]\n"),
    "python_docstrings": ("{}.py", "def f(:\n"),
    "python_files": ("{}.py", ""),
    "repositories": ("r{}/a.py", "\n"),
}


@pytest.mark.parametrize("kind", [*WITHOUT_TEXT, "warc", "wet"])
def test_pages_and_files_without_text_are_counted_and_named_and_are_no_bad_input(kind, tmp_path):
    reader, bad = kind.replace("wet", "warc"), BadInput("mine", limit=0)
    assert documents(SourceConfig(reader, str(write_without_text(kind, tmp_path))), bad) == []
    assert (bad.count, bad.without_text) == (0, 2)
    assert all(re.fullmatch(rf"{tmp_path}/\S+: \w.+", line) for line in bad.listed_without_text)


def test_an_empty_parquet_file_is_counted_as_without_text(tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    bad = BadInput("mine", limit=0)
    assert documents(SourceConfig("parquet", str(tmp_path)), bad) == []
    assert bad.listed_without_text == [f"{tmp_path}/a.parquet: no rows"]


def test_a_source_of_pages_without_text_names_the_first_and_why(corpus, tmp_path):
    (tmp_path / "pages").mkdir()
    config = corpus("html", write_without_text("html", tmp_path / "pages"))
    said = r"no documents \(left out: 2 without text\); .*pages/0\.html: no text outside of head.*; all bad input is "
    with pytest.raises(DataError, match=said):
        prepare(config)


def test_of_many_pages_without_text_all_are_counted_and_the_first_listed(corpus, tmp_path):
    (tmp_path / "pages").mkdir()
    for number, text in enumerate(sentences(1, 60)):
        (tmp_path / f"pages/{number}.html").write_text(f"<p>{text}</p>")
    for number in range(130):
        (tmp_path / f"pages/e{number:03d}.html").write_text(EMPTY)
    config = replace(corpus("html", tmp_path / "pages"), max_bad_documents=0)
    prepare(config)
    assert Statistics.read(config.out).sources["mine"].left_out == {"without text": 130}
    listed = (tmp_path / "out/bad_input.txt").read_text().splitlines()
    assert len(listed) == 101
    assert listed[0].startswith(f"mine: {tmp_path}/pages/e000.html: no text outside of")
    assert listed[-1] == "mine: 30 more without text in the same part"


def test_a_folder_whose_files_are_all_passed_over_names_their_endings(tmp_path):
    for name in ("a.xlsx", "b.XLSX", "c.xlsx", "README", ".hidden"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"those there end in \.xlsx \(2\), \.XLSX \(1\), no ending \(1\)$"):
        texts("csv", tmp_path)


def test_linked_folders_are_read_once_and_links_to_nothing_are_named(tmp_path):
    for folder, name in (("set/real", "a"), ("elsewhere", "b"), ("elsewhere/deeper", "c")):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        reading.write_jsonl(tmp_path / folder / f"{name}.jsonl", [name])
    links = {"set/sub": "../elsewhere", "set/again": "../elsewhere", "set/real/loop": "..", "elsewhere/up": "../set"}
    links |= {"set/gone.jsonl": "nowhere", "set/gone": "nowhere", "set/gone.png": "nowhere"}
    for link, target in links.items():
        (tmp_path / link).symlink_to(target)
    for path in ("set", "set/**/*.jsonl"):
        bad = BadInput("mine")
        found = documents(SourceConfig("jsonl", str(tmp_path / path)), bad)
        assert [document.text for document in found] == ["b", "c", "a"]
        assert f"{tmp_path}/set/gone.jsonl: a link to a file or folder that does not exist" in bad.listed
        assert bad.count == (2 if path == "set" else 1)
    assert texts("jsonl", tmp_path / "set/s*/*.jsonl") == ["b"]


def test_a_linked_repository_is_read_and_one_that_is_gone_is_named(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.py").write_text("x = 1")
    (tmp_path / "elsewhere/b.py").symlink_to("nowhere")
    (tmp_path / "all").mkdir()
    (tmp_path / "all/one").symlink_to("../elsewhere")
    (tmp_path / "all/two").symlink_to("../nowhere")
    bad = BadInput("mine")
    assert len(documents(SourceConfig("repositories", str(tmp_path / "all")), bad)) == 1
    assert [line.split(":")[0] for line in bad.listed] == [f"{tmp_path}/all/{name}" for name in ("one/b.py", "two")]


@pytest.mark.parametrize(
    ("listed", "says"),
    [
        (3, r"set/shard\.00000\.mds\S*: holds 5 samples, and .*set/index\.json lists 3; correct the index, or restore"),
        (9, r"set/shard\.00000\.mds\S*: holds 5 samples, and .*set/index\.json lists 9; "),
        (-1, r"set/index\.json: not an index of MDS shards: .*expected sizes of at least 0, got samples=-1"),
    ],
)
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_an_index_that_lists_another_number_of_samples_than_its_shard_has_is_refused(
    listed, says, compression, tmp_path
):
    reading.write_mds(tmp_path / "set", [f"text {n}" for n in range(5)], compression=compression)
    index = json.loads((tmp_path / "set/index.json").read_text())
    assert [shard["samples"] for shard in index["shards"]] == [5]
    index["shards"][0]["samples"] = listed
    (tmp_path / "set/index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=says):
        documents(SourceConfig("mds", str(tmp_path / "set")), BadInput("mine"))


@pytest.mark.parametrize(("target", "what"), [("../elsewhere", "a folder"), ("nowhere", "nothing")])
def test_a_link_that_datasets_passes_over_is_refused(target, what, tmp_path):
    for name in ("set", "elsewhere"):
        (tmp_path / name).mkdir()
        reading.write_jsonl(tmp_path / name / "train.jsonl", ["one"])
    (tmp_path / "set/more").symlink_to(target)
    with pytest.raises(DataError, match=f"set/more: a link to {what}, which datasets passes over; remove it"):
        texts("huggingface", tmp_path / "set")


CR_FILES = {
    "csv": 'text,n\r"one\rand a line",1\rtwo,2\r\rthree,3',
    "tsv": "text\tn\rone\rand a line\t1\rtwo\t2\r",
    "jsonl": '{"text": "one"}\r\r{"text": "two"}\r{"text": "three"}',
}


@pytest.mark.parametrize("packed", [False, True])
def test_files_whose_lines_end_in_cr_are_read(packed, tmp_path):
    for ending, content in CR_FILES.items():
        path = tmp_path / (f"a.{ending}.gz" if packed else f"a.{ending}")
        path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    suffix = ".gz" if packed else ""
    found, bad = read_listing(tmp_path / f"a.csv{suffix}")
    assert (found, bad.count) == (["one\rand a line", "two", "three"], 0)
    assert documents(SourceConfig("csv", str(tmp_path / f"a.csv{suffix}")))[2].id.endswith(":6")
    found, bad = read_listing(tmp_path / f"a.tsv{suffix}")
    assert (found, bad.count) == (["and a line", "two"], 1)
    assert texts("jsonl", tmp_path / f"a.jsonl{suffix}") == ["one", "two", "three"]


def test_a_large_file_whose_lines_end_in_cr_is_read_line_by_line(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LONGEST", 5000)
    rows = [f"row {number} {'x' * 100}" for number in range(30_000)]
    (tmp_path / "a.csv").write_bytes("\r".join(["text", *rows[:100], "y" * 6000, *rows[100:]]).encode())
    found, bad = read_listing(tmp_path / "a.csv")
    assert found == rows
    assert (bad.count, bad.listed[0].startswith(f"{tmp_path}/a.csv:102: a line of more than")) == (1, True)


def test_rows_that_end_in_cr_within_a_file_of_lf_are_counted_one_by_one(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text\r\nbefore\n" + b"lost\r" * 50 + b"\nafter\r\n")
    found, bad = read_listing(tmp_path / "a.csv")
    assert (found, bad.count) == (["before", "after"], 50)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "before"}\n' + b'{"text": "lost"}\r' * 50 + b"\n")
    bad = BadInput("mine")
    assert [document.text for document in documents(SourceConfig("jsonl", str(tmp_path / "a.jsonl")), bad)] == [
        "before"
    ]
    assert bad.count == 50


def test_a_delimiter_can_be_named_and_a_tsv_has_tabs_and_no_quotes(tmp_path):
    (tmp_path / "a.csv").write_text('text;n\n"one; 1";2\n')
    assert texts("csv", tmp_path / "a.csv", delimiter=";") == ["one; 1"]
    (tmp_path / "b.tsv").write_text('n\ttext\n1\t"one\n2\ttwo" and ,\n')
    assert texts("csv", tmp_path / "b.tsv") == ['"one', 'two" and ,']
    (tmp_path / "c.tsv").write_text('n\ttext\n1\t"one\n1"\n')
    assert texts("csv", tmp_path / "c.tsv", delimiter="\t") == ["one\n1"]


@pytest.mark.parametrize("delimiter", ["\t", " ", "\u3000"])
def test_an_override_whose_value_is_a_blank_or_a_tab_is_kept(delimiter, tmp_path):
    (tmp_path / "a.tsv").write_text(f'n{delimiter}text\n1{delimiter}"one\n1"\n')
    (tmp_path / "mine.yaml").write_text(
        f"sources: {{mine: {{reader: csv, path: {tmp_path}/a.tsv}}}}\ntokenizer: {{train: {{vocab_size: 320}}}}\n"
        "row_lengths: [64]\nout: out\n"
    )
    config = load_corpus_config(tmp_path / "mine.yaml", [f"sources.mine.delimiter={delimiter}"])
    assert [document.text for document in documents(config.sources["mine"])] == ["one\n1"]
    with pytest.raises(ConfigurationError, match="validation"):
        load_corpus_config(tmp_path / "mine.yaml", [f"validation={delimiter}"])


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "shift_jis"])
@pytest.mark.parametrize("reader", ["csv", "jsonl", "text"])
def test_an_encoding_can_be_named(reader, encoding, tmp_path):
    text = "日本" if encoding == "shift_jis" else "café"
    written = {"csv": f"id,text\n1,{text}\n", "jsonl": f'{{"text": "{text}"}}\n', "text": text}[reader]
    (tmp_path / "a").write_text(written, encoding=encoding)
    assert texts(reader, tmp_path / "a", encoding=encoding) == [text]


CJK = "日本語のテキスト、二つ目の文"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("reader", ["csv", "jsonl", "text"])
def test_utf_16_and_utf_32_are_named_as_such(reader, encoding, tmp_path):
    written = {"csv": "id,text\n1,a\n", "jsonl": '{"text": "a"}\n', "text": "some text"}[reader]
    (tmp_path / "a").write_text(written, encoding=encoding)
    said = rf"a: {encoding[:6].upper()}, expected UTF-8; set the source's `encoding: {encoding}`"
    with pytest.raises(DataError, match=said):
        texts(reader, tmp_path / "a")  # of a text it is bad input, and no bad input is allowed here
    assert len(texts(reader, tmp_path / "a", encoding=encoding)) == 1


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", [CJK, "Приветствую вас, друзья", "안녕하세요 여러분 모두", f"{CJK}\n" * 3000])
def test_utf_16_of_other_scripts_without_a_mark_is_named(text, encoding, tmp_path):
    (tmp_path / "a.txt").write_text(text, encoding=encoding)
    with pytest.raises(DataError, match=rf"a\.txt: UTF-16, expected UTF-8; set the source's `encoding: {encoding}`"):
        texts("text", tmp_path / "a.txt")
    (tmp_path / "a.csv").write_text(f"見出し,text\n1,{text}\n", encoding=encoding)
    with pytest.raises(DataError, match=rf"a\.csv: UTF-16, expected UTF-8; set the source's `encoding: {encoding}`"):
        texts("csv", tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (CJK, "shift_jis"),
        (CJK, "euc_jp"),
        ("这是一个句子，还有一个", "gbk"),
        ("30,20,10,00 €", "cp1252"),
        ("été 0000", "latin-1"),
    ],
)
def test_of_another_encoding_it_is_said_what_was_tried(text, encoding, tmp_path):
    (tmp_path / "a.txt").write_text(text * 50, encoding=encoding)
    said = r"a\.txt: not UTF-8, and neither UTF-16 nor UTF-32: .* at byte \d+; set the source's `encoding`$"
    with pytest.raises(DataError, match=said):
        texts("text", tmp_path / "a.txt")


def test_a_few_nuls_do_not_make_a_file_utf_16(tmp_path):
    (tmp_path / "a.csv").write_text("text\n" + "1000 2000 3000\n" * 50 + "a\0b\n\0\n" * 20)
    found, bad = read_listing(tmp_path / "a.csv")
    assert (len(found), bad.count) == (50, 40)
    (tmp_path / "b.csv").write_text("te\0xt\nx\n")
    with pytest.raises(DataError, match=r"b\.csv:1: no column 'text'; the columns there are 'te\\x00xt'"):
        read_listing(tmp_path / "b.csv")


def test_a_reader_that_takes_no_encoding_does_not_advise_one(tmp_path):
    (tmp_path / "a.html").write_text("<p>text</p>", encoding="utf-16")
    with pytest.raises(DataError, match=r"a\.html: UTF-16, expected UTF-8; convert the file$"):
        texts("html", tmp_path / "a.html")


def test_bytes_that_are_not_of_the_encoding_are_listed_by_line(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"id,text\n1,caf\xe9\n2,a\x81b\n3,fine\n")  # 0x81 is nothing in cp1252
    found, bad = read_listing(tmp_path / "a.csv", encoding="cp1252")
    assert found == ["café", "fine"]
    assert bad.listed[0].startswith(f"{tmp_path}/a.csv:3: column 'text' holds half a surrogate pair or a byte that")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("reader: jsonl, delimiter: ;", r"sources\.mine\.delimiter': the reader jsonl takes none; it is for csv"),
        ("reader: csv, delimiter: ab", r"sources\.mine\.delimiter': expected one character such as ';', got 'ab'"),
        ("reader: parquet, encoding: latin-1", r"encoding': the reader parquet takes none; it is for csv, jsonl, text"),
        ("reader: csv, encoding: hex", r"encoding': expected an encoding of Python's such as latin-1, got 'hex'"),
        ("reader: csv, encoding: punycode", r"encoding': expected an encoding of Python's such as latin-1, got 'puny"),
    ],
)
def test_wrong_keys_of_how_files_are_written_are_refused(keys, says, tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "mine.yaml").write_text(
        f"sources: {{mine: {{path: {tmp_path}/a, {keys}}}}}\ntokenizer: {{train: {{vocab_size: 320}}}}\n"
        "row_lengths: [64]\nout: out\n"
    )
    with pytest.raises(ConfigurationError, match=says):
        load_corpus_config(tmp_path / "mine.yaml")


def test_settings_of_before_stay_the_same_without_the_new_keys(corpus, tmp_path):
    reading.write_jsonl(tmp_path / "a.jsonl", sentences(1, 60))
    config = corpus("jsonl", tmp_path / "a.jsonl")
    prepare(config)
    assert not {"delimiter", "encoding"} & Statistics.read(config.out).configuration["sources"]["mine"].keys()
