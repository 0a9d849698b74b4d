"""examples/tokenizer_fertility.py counts what the held-out text really comes to."""

import runpy
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rotary_foundry.data_prep.encoding import CorpusTokenizer
from tests.evaluation.corpus import texts, write_corpus

SCRIPT = Path(__file__).parents[2] / "examples/tokenizer_fertility.py"


def test_words_bytes_and_tokens_are_those_of_the_held_out_text(tmp_path, monkeypatch, capsys):
    corpus = write_corpus(tmp_path / "corpus")
    by_word = Tokenizer(models.WordLevel({"[UNK]": 0}, "[UNK]"))
    by_word.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=by_word, unk_token="[UNK]").save_pretrained(tmp_path / "words")
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(corpus), str(tmp_path / "words")])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    held_out = texts()
    held_out["all"] = [text for of_source in held_out.values() for text in of_source]
    tokenizer = CorpusTokenizer(corpus / "tokenizer")
    for source, of_source in held_out.items():
        size, words = sum(len(text.encode()) for text in of_source), sum(len(text.split()) for text in of_source)
        tokens = len(tokenizer.encode(of_source)[0])
        assert lines[source][0] == f"{size:,}"
        found = [float(number) for number in lines[source][1:]]
        assert found[:4] == pytest.approx([tokens / words, 1.0, tokens / size, words / size], abs=6e-4)
        assert found[4] == pytest.approx(words / tokens, abs=6e-3)
