"""A data YAML that cannot be used is refused with the file and the key."""

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rotary_foundry.data_prep.corpus_config import load_corpus_config
from rotary_foundry.utils.errors import ConfigurationError

NANO = Path(__file__).parents[2] / "yamls/data/nano.yaml"


@pytest.fixture
def good(tmp_path):
    (tmp_path / "some.jsonl").touch()
    return {
        "sources": {"mine": {"reader": "jsonl", "path": str(tmp_path / "*.jsonl")}},
        "tokenizer": {"train": {"vocab_size": 512}},
        "row_lengths": [1024],
        "out": "data/mine",
    }


def with_filter(entry):
    return {"sources": {"mine": {"reader": "python_files", "filters": [entry]}}}


def with_bands(bounds):
    return {"sources": {"mine": {"reader": "python_files", "length_bands": bounds}}}


def load(content, tmp_path):
    path = tmp_path / "data.yaml"
    OmegaConf.save(OmegaConf.create(content), path)
    return load_corpus_config(path)


def test_one_percent_is_held_out_by_default(good, tmp_path):
    assert load(good, tmp_path).validation == 0.01


def test_the_nano_configuration_loads_and_takes_overrides():
    assert load_corpus_config(NANO, ["row_lengths=[512]", "out=elsewhere"]).row_lengths == [512]


@pytest.mark.parametrize(
    ("change", "key", "complaint"),
    [
        ({"row_length": [512]}, "row_length", "did you mean 'row_lengths'"),
        ({"row_lengths": [10**30]}, "row_lengths", "too long"),
        ({"sources": {}}, "sources", "at least one source"),
        ({"sources": {"a/b": {"reader": "python_files"}}}, "sources.a/b", "becomes a folder"),
        ({"sources": {"tokenizer": {"reader": "python_files"}}}, "sources.tokenizer", "reserved"),
        ({"sources": {"mine": {"reader": "json"}}}, "sources.mine.reader", "did you mean 'jsonl'"),
        ({"sources": {"mine": {"reader": "zzz"}}}, "sources.mine.reader", "python_docstrings"),
        ({"sources": {"mine": {"reader": "jsonl", "pfad": "x"}}}, "sources.mine.pfad", "unknown key"),
        ({"sources": {"mine": {"reader": "jsonl"}}}, "sources.mine.path", "needs a path"),
        ({"sources": {"mine": {"reader": "jsonl", "path": "no/*.jsonl"}}}, "sources.mine.path", "nothing is there"),
        ({"sources": {"r": {"reader": "distribution_readmes", "path": "."}}}, "sources.r.path", "takes no path"),
        ({"sources": {"c": {"reader": "python_files", "text_column": "t"}}}, "sources.c.text_column", "no columns"),
        ({"sources": {"mine": {"reader": "text", "path": ".", "split": "x"}}}, "sources.mine.split", "Hugging Face"),
        (
            {"sources": {"c": {"reader": "python_files", "separator": "("}}},
            "sources.c.separator",
            "regular expression, got",
        ),
        ({"sources": {"c": {"reader": "python_files", "remove": "(a)"}}}, "sources.c.remove", "without groups"),
        *(
            ({"sources": {"c": {"reader": "python_files", "remove": remove}}}, "sources.c.remove", "expression, got")
            for remove in ("a{99999999999999999999}", "(?:" * 5000 + ")" * 5000)
        ),
        *(
            (
                {"sources": {"mine": {"reader": "jsonl", "path": ".", "encoding": encoding}}},
                "sources.mine.encoding",
                "encoding of Python's such as latin-1",
            )
            for encoding in ("latin-0", "undefined", "a\0b")
        ),
        (with_bands([]), "sources.mine.length_bands", "at least one length"),
        (with_bands([0, 512]), "sources.mine.length_bands", "at least 1 token, got 0"),
        (with_bands([512, 512]), "sources.mine.length_bands", r"ascending order, got \[512, 512\]"),
        (with_bands(["long"]), "sources.mine.length_bands[0]", "long"),
        (
            {"sources": with_bands([512])["sources"] | {"mine_from_512": {"reader": "python_files"}}},
            "sources.mine.length_bands",
            "makes a source named 'mine_from_512', and there is one already",
        ),
        ({"tokenizer": {}}, "tokenizer", "either"),
        ({"tokenizer": {"train": {"vocab_size": 512}, "path": "x"}}, "tokenizer", "either"),
        ({"tokenizer": {"train": {"vocab_size": 260}}}, "tokenizer.train.vocab_size", "too small"),
        ({"tokenizer": {"train": {"vocab_size": "many"}}}, "tokenizer.train.vocab_size", "many"),
        (
            {"tokenizer": {"train": {"vocab_size": 512, "kind": "word"}}},
            "tokenizer.train.kind",
            "bpe or wordpiece, got",
        ),
        ({"tokenizer": {"train": {"vocab_size": 9, "kind": "wordpiece"}}}, "tokenizer.train.vocab_size", "too small"),
        (
            {"tokenizer": {"causal": True, "train": {"vocab_size": 512, "kind": "wordpiece"}}},
            "tokenizer.causal",
            "a wordpiece is for encoders",
        ),
        ({"tokenizer": {"path": "no/where"}}, "tokenizer.path", "tokenizer.json is missing"),
        ({"word_starts": "words"}, "word_starts", "expected pre_tokenizer or jieba, got 'words'"),
        ({"row_lengths": []}, "row_lengths", "at least one"),
        ({"row_lengths": [2]}, "row_lengths", "too short"),
        ({"row_lengths": [512, 512]}, "row_lengths", r"\[512, 512\]"),
        ({"validation": 0}, "validation", "between 0 and 1"),
        ({"validation": 1.5}, "validation", "between 0 and 1"),
        ({"out": ".."}, "out", r"'\.\.'"),
        ({"work": "s3://bucket/x"}, "work", "a disk that all workers share"),
        ({"work": "data/mine/work"}, "work", "'data/mine/work' and out, 'data/mine', overlap"),
        ({"work": "data"}, "work", "'data' and out, 'data/mine', overlap"),
        ({"validation": float("inf")}, "validation", "between 0 and 1"),
        ({"max_bad_documents": -1}, "max_bad_documents", "at least 0, got -1"),
        ({"deduplication": {"minhash": 5}}, "deduplication", "minhash: expected options by name"),
        (
            {"deduplication": {"minhash": {"n_grams": "five"}}},
            "deduplication",
            "n_grams: expected .* at least 1, got five",
        ),
        ({"deduplication": {"minhash": {"language": "klingon"}}}, "deduplication", "klingon"),
        ({"stride": 1022}, "stride", "expected 0 to .*, got 1022"),
        ({"deduplication": "fuzzy"}, "deduplication", "exact or minhash"),
        ({"deduplication": {"minhash": {"ngrams": 5}}}, "deduplication", "unknown option 'ngrams'"),
        ({"executor": {"slurm": {"time": "1:00:00"}}}, "executor", "'partition' is missing"),
        (with_filter("GopherQuality"), "sources.mine.filters", "no filter 'GopherQuality'; there are"),
        (with_filter({"URLFilter": {"domains": []}}), "sources.mine.filters", "unknown argument 'domains'"),
        (with_filter({"URLFilter": 3}), "sources.mine.filters", "expected arguments by name"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(good, tmp_path, change, key, complaint):
    with pytest.raises(ConfigurationError, match=complaint) as error:
        load(good | change, tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'data.yaml'}: ")
    assert f"'{key}'" in str(error.value)


def test_jieba_is_refused_at_once_if_it_is_not_installed(good, tmp_path, monkeypatch):
    monkeypatch.setattr("rotary_foundry.data_prep.word_starts.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"'word_starts'.*needs the package rjieba: uv pip install .*chinese"):
        load(good | {"word_starts": "jieba"}, tmp_path)


@pytest.mark.parametrize("key", ["sources", "tokenizer", "row_lengths", "out"])
def test_what_is_required_is_named(good, tmp_path, key):
    del good[key]
    with pytest.raises(ConfigurationError, match=f"'{key}.*' is required"):
        load(good, tmp_path)


def test_a_configuration_is_checked_without_what_reads_the_data_being_imported():
    code = (
        "import sys, rotary_foundry.data_prep.corpus_config; "
        "print({'torch', 'datatrove', 'pyarrow', 'datasets', 'streaming', 'obstore'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
