"""Another tokenizer than the model's is refused by the first thing that differs and matters."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from rotary_foundry.data.same_tokenizer import check_same_tokenizer, keep_tokenizer
from rotary_foundry.utils.errors import DataError

TEXTS = {"model": ["the window of the encoder attends"] * 4, "other": ["int main(void) { return 0; }"] * 4}


def write(folder: Path, texts: list[str], change: Callable[[Tokenizer], object] = lambda _: None) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    change(tokenizer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def model(tmp_path) -> Path:
    return write(tmp_path / "model", TEXTS["model"])


def in_one_line(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text())))


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: None,
        lambda tokenizer: tokenizer.enable_truncation(8),
        lambda tokenizer: tokenizer.add_tokens([AddedToken("myocarditis")]),
    ],
    ids=["the same", "truncated", "with a token added"],
)
def test_the_models_tokenizer_is_taken_in_any_layout_and_with_tokens_added(tmp_path, model, change):
    shards = write(tmp_path / "shards", TEXTS["model"], change)
    in_one_line(shards)
    check_same_tokenizer(shards, model, "")


def test_a_model_without_a_tokenizer_takes_any(tmp_path, model):
    check_same_tokenizer(model, tmp_path, "")


def test_another_vocabulary_of_the_same_size_is_refused_by_the_first_id_that_means_something_else(tmp_path, model):
    shards = write(tmp_path / "shards", TEXTS["other"])
    ours, theirs = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (shards, model))
    assert ours.get_vocab_size() == theirs.get_vocab_size()
    first = next(i for i in range(270) if ours.id_to_token(i) != theirs.id_to_token(i))
    with pytest.raises(DataError) as refused:
        check_same_tokenizer(shards, model, "take the model's")
    says = f"id {first} is {ours.id_to_token(first)!r}, and {theirs.id_to_token(first)!r} to the model"
    assert str(refused.value) == f"{shards}: not the model's tokenizer: {says}; take the model's"


def test_a_smaller_vocabulary_is_refused_by_the_id_that_it_lacks(tmp_path, model):
    larger = write(tmp_path / "larger", TEXTS["model"], lambda tokenizer: tokenizer.add_tokens(["myocarditis"]))
    with pytest.raises(DataError, match="is nothing, and 'myocarditis' to the model"):
        check_same_tokenizer(model, larger, "")


def test_the_same_vocabulary_that_cuts_texts_otherwise_is_refused(tmp_path, model):
    def lowercase(tokenizer: Tokenizer) -> None:
        tokenizer.normalizer = normalizers.Lowercase()

    with pytest.raises(DataError, match="its normalizer, which changes texts, differs"):
        check_same_tokenizer(write(tmp_path / "shards", TEXTS["model"], lowercase), model, "")


def test_a_run_keeps_its_tokenizer_and_once_begun_takes_no_shards_of_another(tmp_path, model):
    run, other = tmp_path / "run/tokenizer", write(tmp_path / "other", TEXTS["other"])
    keep_tokenizer(other, run, begun=False)
    keep_tokenizer(model, run, begun=False)  # the first start was killed before it had saved anything
    assert (run / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    (run / "tokenizer.json").unlink()  # as a run of before they were kept
    keep_tokenizer(model, run, begun=True)
    with pytest.raises(DataError, match=r"not the model's tokenizer: id .*; prepare .*run/tokenizer"):
        keep_tokenizer(other, run, begun=True)
    assert (run / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
