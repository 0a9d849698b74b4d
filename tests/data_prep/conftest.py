"""A small corpus of the tests' own, and the configuration that prepares it."""

import pytest

from rotary_foundry.data_prep.corpus_config import CorpusConfig, TokenizerConfig, TrainTokenizer
from rotary_foundry.data_prep.readers import SourceConfig
from tests.data_prep.small_corpus import sentences, write_jsonl


@pytest.fixture
def config(tmp_path) -> CorpusConfig:
    """Two sources of 80 and 40 documents; at 64 tokens a row they are cut, at 1024 packed."""
    return CorpusConfig(
        sources={
            "mine": SourceConfig("jsonl", str(write_jsonl(tmp_path / "mine.jsonl", sentences(1, 80)))),
            "yours": SourceConfig(
                "jsonl", str(write_jsonl(tmp_path / "yours.jsonl", sentences(2, 40), "body")), "body"
            ),
        },
        tokenizer=TokenizerConfig(train=TrainTokenizer(320)),
        row_lengths=[64, 1024],
        validation=0.2,
        out=str(tmp_path / "out"),
        executor={"local": {"workers": 1}},
    )
