"""The guide says what is so: its configurations load, and its keys and readers are those that there are."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from rotary_foundry.data_prep.corpus_config import CorpusConfig, load_corpus_config
from rotary_foundry.data_prep.readers import READERS

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/data.md").read_text(encoding="utf-8")
CONFIGURATIONS = dict(re.findall(r"```yaml\n# (\S+)\n(.*?)```", GUIDE, re.DOTALL))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the files are that the guide's configurations name."""
    monkeypatch.chdir(tmp_path)
    names = ("my-tokenizer", "my-chat-tokenizer", "my_model")
    tokenizers = (f"{name}/tokenizer.json" for name in names)
    for file in (
        "exports/a.csv",
        "statutes/a.parquet",
        "my_texts/a.jsonl",
        "my_conversations/a.jsonl",
        "books/a.txt",
        *tokenizers,
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    return tmp_path


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_guides_configurations_load(name, folder):
    (folder / name).write_text(CONFIGURATIONS[name], encoding="utf-8")
    assert load_corpus_config(folder / name).sources


def test_common_crawls_configuration_loads_and_can_be_tried_without_slurm(folder):
    (folder / "one.warc.gz").touch()
    path = ROOT / "yamls/data/common_crawl.yaml"
    assert list(load_corpus_config(path).executor) == ["slurm"]
    tried = ["sources.web.path=one.warc.gz", "out=data/try", "work=null", "executor={}"]
    assert load_corpus_config(path, tried).executor == {}


def test_the_guide_names_every_key_and_reader():
    for key in (field.name for field in fields(CorpusConfig)):
        assert f"| `{key}" in GUIDE
    for reader in READERS:
        assert f"`{reader}`" in GUIDE
