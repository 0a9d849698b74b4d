"""Readers: what is a document, in which order, and what is said of input that cannot be read."""

import importlib.metadata
from pathlib import Path

import pytest

from encoder_foundry.errors import DataError
from encoder_foundry.preparation import readers
from encoder_foundry.preparation.config import load_corpus_config
from encoder_foundry.preparation.corpus import gather
from encoder_foundry.preparation.readers import READERS, SourceConfig

NANO = Path(__file__).parents[2] / "yamls/data/nano.yaml"


def read(reader, path=None, text_column=None):
    return list(READERS[reader].read(SourceConfig(reader, path and str(path), text_column)))


def test_jsonl_files_are_read_in_sorted_order_and_blank_lines_passed_over(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"text": "three"}\n')
    (tmp_path / "a.jsonl").write_text('{"text": "one", "n": 1}\n\n{"text": "tw\\u00f6"}')
    documents = read("jsonl", tmp_path / "*.jsonl")
    assert [document.text for document in documents] == ["one", "twö", "three"]
    assert [document.id for document in documents][1] == f"{tmp_path / 'a.jsonl'}:3"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"text": "cut o', "not valid JSON"),
        (b'{"text": "caf\xe9"}', "not UTF-8"),
        (b'["text"]', "a JSON object is wanted"),
        (b'{"body": "x", "title": "y"}', "no column 'text'; the columns there are 'body', 'title'"),
        (b'{"text": null}', "holds null, which is not text"),
        (b'{"text": "\\ud83d"}', "half a surrogate pair"),
    ],
)
def test_a_bad_line_is_an_error_that_names_file_and_line(tmp_path, line, complaint):
    path = tmp_path / "some.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError, match=complaint) as error:
        read("jsonl", path)
    assert str(error.value).startswith(f"{path}:2: ")


def test_python_files_under_a_path_are_read_whole_and_sorted(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "b.py").write_bytes("# coding: latin-1\nname = 'café'\n".encode("latin-1"))
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "notes.txt").write_text("not Python")
    assert [document.text for document in read("python_files", tmp_path)] == [
        "x = 1\n",
        "# coding: latin-1\nname = 'café'\n",
    ]


def test_a_python_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "a.py").write_bytes(b"x = '\xff'\n")
    with pytest.raises(DataError, match=r"a\.py: not text"):
        read("python_files", tmp_path)


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
    documents = read("python_docstrings", tmp_path)
    assert len(documents) == 1
    paragraphs = documents[0].text.split("\n\n")
    assert paragraphs[1::2] == ["What it is for.", "Tells the time.", "Moves on."]
    assert paragraphs[4].endswith("module.Clock.tick")


def test_this_projects_own_readme_is_no_part_of_a_corpus():
    assert importlib.metadata.distribution("encoder-foundry")
    names = [document.id for document in read("distribution_readmes")]
    assert "numpy" in names
    assert "encoder-foundry" not in names


def test_the_installation_gives_5_to_20_megabytes_that_need_no_download():
    config = load_corpus_config(NANO)
    corpus = gather(config.sources, config.validation)
    texts = [document.text for source in corpus.sources for split in source.documents.values() for document in split]
    assert 5e6 < sum(len(text.encode()) for text in texts) < 20e6
    assert [source.name for source in corpus.sources] == ["code", "docs", "web"]


def test_the_budget_ends_a_source_of_the_installation(monkeypatch):
    monkeypatch.setattr(readers, "BYTE_BUDGET", 200_000)
    some = read("python_files")
    assert 100_000 < sum(len(document.text.encode()) for document in some) <= 200_000
    monkeypatch.setattr(readers, "BYTE_BUDGET", 300_000)
    assert read("python_files")[: len(some)] == some
